"""Every policy keeps to the space that the history leaves: step by step, from the start, from files."""

import pytest
import torch
from models import blood_samples_in_order, gaussian_prior

from sbi_bed.inference.trainers.design.bounded_gradients import BoundedGradients
from sbi_bed.policies import (
    DeepSetsPolicy,
    GreedyPolicy,
    RandomPolicy,
    StaticPolicy,
    TransformerPolicy,
    load_policy,
)
from sbi_bed.simulators import StochasticEpidemic, rollout
from sbi_bed.utils import pack_history, seeded

POLICIES = {
    "random": RandomPolicy,
    "static": lambda simulator: StaticPolicy(simulator, horizon=6),
    "deep sets": lambda simulator: DeepSetsPolicy(simulator, hidden_dim=16, summary_dim=8),
    "transformer": lambda simulator: TransformerPolicy(simulator, horizon=6, hidden_dim=8, num_heads=2),
}
SIMULATORS = {"epidemic": StochasticEpidemic, "blood samples": blood_samples_in_order}


@pytest.mark.parametrize("name", POLICIES)
def test_counts_of_an_epidemic_are_taken_in_order(name):
    simulator = StochasticEpidemic()
    times = rollout(simulator, POLICIES[name](simulator), simulator.prior.sample((500,)), 5).designs[..., 0].detach()
    assert times.min() >= 0 and times.max() <= 100
    # Chance comes arbitrarily close to day 100, of which the last 1e-4 stay open; other policies do not.
    assert (times.diff() > (-1e-4 if name == "random" else 0)).all()
    assert name == "random" or times.max() < 100


@pytest.mark.parametrize("model", SIMULATORS)
@pytest.mark.parametrize("name", POLICIES)
def test_a_rollout_and_the_policy_of_its_history_agree(name, model, tmp_path):
    simulator = SIMULATORS[model]()
    policy = POLICIES[name](simulator)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", SIMULATORS[model]())
    x = pack_history(*rollout(simulator, policy, simulator.prior.sample((7,)), 5)).detach()
    for num_trials in (0, 2, 4):
        padded = x.clone()
        padded[:, num_trials:] = 0
        for history in (x[:, :num_trials], padded):
            with seeded(1):
                design = policy(history)
            if name != "random":
                torch.testing.assert_close(design, x[:, num_trials, :1], rtol=1e-5, atol=1e-5)
            with seeded(1):
                assert torch.equal(loaded(history), design)
            if num_trials:
                assert (design >= x[:, num_trials - 1, :1] - 1e-4).all()


@pytest.mark.parametrize("name", ["static", "deep sets", "transformer"])
def test_lengths_are_free_within_a_batch(name):
    simulator = blood_samples_in_order()
    policy = POLICIES[name](simulator)
    x = pack_history(*rollout(simulator, policy, simulator.prior.sample((4,)), 5)).detach()
    lengths = torch.tensor([3, 0, 4, 3])
    ragged = x * (torch.arange(5) < lengths.unsqueeze(-1)).unsqueeze(-1)
    torch.testing.assert_close(policy(ragged), x[torch.arange(4), lengths, :1], rtol=1e-5, atol=1e-5)


def test_random_designs_are_uniform_in_what_is_left():
    simulator = blood_samples_in_order()
    history = torch.tensor([[6.0, 3.0, 1.0]]).expand(20_000, 1, 3)
    share = (RandomPolicy(simulator)(history) - 6) / 18
    assert abs(float(share.mean()) - 0.5) < 4 / (12 * 20_000) ** 0.5
    assert share.min() >= 0 and share.max() <= 1 and float(share.var()) == pytest.approx(1 / 12, rel=0.03)


def test_gradients_are_bounded_in_the_coordinates_of_the_present_space():
    """The mean over histories of 1000 ξ_2 is steep in u_2 and, since ξ_2 starts at ξ_1, in u_1: the bound c arrives."""
    simulator, largest = blood_samples_in_order(), 0.7
    policy = StaticPolicy(simulator, 2)
    policy.free.data[:] = 0.3
    bounded = BoundedGradients(policy, simulator.design_space, largest)
    designs, _ = rollout(simulator, bounded, simulator.prior.sample((10,)), 2)
    (gradient,) = torch.autograd.grad(1000 * designs[:, 1].mean(), policy.free)
    # The coordinate of the bound is that before u saturates, ξ = 6 tanh(u / 6).
    slope = 1 - torch.tanh(torch.tensor(0.3) / 6) ** 2
    second = largest * float(slope)
    first = designs[0, 0].detach() / 24  # the logistic function of the coordinate, the same in both trials
    # What ξ_2 sends back, c over dξ_2/du_2 = (24 − ξ_1) p (1 − p), times dξ_2/dξ_1 = 1 − p, times dξ_1/du_1 = 24 p (1 − p).
    passed_on = largest * float((1 - first) / (1 - first))
    assert gradient.flatten().tolist() == pytest.approx([min(largest, passed_on) * float(slope), second], rel=1e-4)


def test_what_cannot_follow_the_history_says_so():
    simulator = blood_samples_in_order()
    with pytest.raises(ValueError, match="it cannot follow one that depends on the history"):
        GreedyPolicy(simulator)
    with pytest.raises(ValueError, match="but distribution= does not"):
        RandomPolicy(simulator, gaussian_prior(1))
    backwards = StaticPolicy(simulator, 2, torch.tensor([[5.0], [3.0]]))
    with pytest.raises(ValueError, match=r"design \[3.0\] lies outside the design space"):
        rollout(simulator, backwards, simulator.prior.sample((2,)), 2)
    forwards = StaticPolicy(simulator, 2, torch.tensor([[3.0], [5.0]]))
    assert rollout(simulator, forwards, simulator.prior.sample((2,)), 2).designs[1, :, 0].tolist() == [3.0, 5.0]
