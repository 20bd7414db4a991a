"""On a CUDA device: the same bounds and gradients as on the CPU, and training that stays on the device."""

import pytest
import torch

from sbi_bed.inference import DAD
from sbi_bed.objectives import InfoNCE, log_sum_likelihood
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy, TransformerPolicy
from sbi_bed.simulators import HyperbolicDiscounting, LocationFinding, StochasticEpidemic, rollout

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("compile", [False, True])
def test_bounds_and_gradients_equal_those_of_the_cpu(compile):
    simulator = LocationFinding(2)
    theta, contrastive = simulator.prior.sample((64,)), simulator.prior.sample((500,))
    trials = rollout(simulator, RandomPolicy(simulator), theta, 5)
    results = []
    for device in ("cpu", "cuda"):
        designs, outcomes = (x.to(device, torch.float64).requires_grad_() for x in trials)
        value = log_sum_likelihood(simulator, contrastive.to(device, torch.float64), designs, outcomes, compile=compile)
        results.append([x.cpu() for x in (value, *torch.autograd.grad(value.sum(), (designs, outcomes)))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("simulator", [LocationFinding(), HyperbolicDiscounting(), StochasticEpidemic()])
@pytest.mark.parametrize("build", [lambda s: DeepSetsPolicy(s, 16, 8), lambda s: TransformerPolicy(s, 4, 16)])
def test_training_raises_the_bound_on_the_device(simulator, build):
    torch.manual_seed(0)
    trainer = DAD(simulator, 4, build(simulator), device="cuda", show_progress_bars=False)
    policy = trainer.train(100, 128, 127, 5e-3, seed=0)
    assert all(p.is_cuda and torch.isfinite(p).all() for p in policy.parameters())
    assert trainer.bounds[-1] > trainer.bounds[0]


def test_a_step_waits_for_the_device_only_when_it_reports():
    simulator = LocationFinding()
    for bound in (None, InfoNCE(simulator)):
        trainer = DAD(simulator, 3, TransformerPolicy(simulator, 3, 16), "cuda", show_progress_bars=False, bound=bound)
        trainer.train(5, 64, 63, seed=0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train(10, 64, 63)
        finally:
            torch.cuda.set_sync_debug_mode("default")
