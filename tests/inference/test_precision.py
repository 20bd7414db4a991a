"""Priors, designs and nets of different precision: one rule, and it works everywhere."""

import itertools
import math

import pytest
import torch
from sbi.utils import BoxUniform
from torch.distributions import MultivariateNormal, Normal, constraints

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD, AdaptiveExperiment, StepDAD, likelihood_posterior
from sbi_bed.neural_nets import HistoryEmbedding
from sbi_bed.policies import DeepSetsPolicy, GreedyPolicy, RandomPolicy, StaticPolicy, TransformerPolicy
from sbi_bed.simulators import DesignSimulator, DesignSpace, PolicySimulator, rollout, simulate_histories
from sbi_bed.utils import pack_history

F32, F64 = torch.float32, torch.float64
QUICK = {
    "num_steps": 2,
    "batch_size": 8,
    "num_contrastive": 7,
    "num_particles": 128,
    "num_held_out": 32,
    "show_progress_bars": False,
}
POLICIES = {
    "deep sets": lambda simulator: DeepSetsPolicy(simulator, 16, 8),
    "transformer": lambda simulator: TransformerPolicy(simulator, 3, hidden_dim=8, num_heads=2),
    "static": lambda simulator: StaticPolicy(simulator, 3),
    "random": RandomPolicy,
    "greedy": lambda simulator: GreedyPolicy(simulator, num_particles=64, num_candidates=4, num_inner=16, num_outer=8),
}


def line(prior_dtype, space_dtype, candidates=False):
    """y ~ N(θ_1 + θ_2 ξ, 0.5²), which checks the precision of what it gets."""
    prior = MultivariateNormal(torch.zeros(2, dtype=prior_dtype), torch.eye(2, dtype=prior_dtype))
    bound = torch.full((1,), 0.1, dtype=space_dtype)
    space = (
        torch.linspace(-1, 1, 5, dtype=space_dtype).unsqueeze(-1)
        if candidates
        else DesignSpace(constraints.interval(-bound, bound))
    )

    def mean(theta, design):
        assert theta.dtype == prior_dtype and design.dtype in (prior_dtype, F64)
        return theta[..., :1] + theta[..., 1:] * design

    return DesignSimulator(
        prior,
        lambda theta, design: mean(theta, design) + 0.5 * torch.randn_like(mean(theta, design)),
        space,
        lambda theta, design, y: Normal(mean(theta, design), 0.5).log_prob(y).sum(-1),
        reparameterized=not candidates,
    )


@pytest.fixture(params=[F32, F64], ids=["default float32", "default float64"])
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(F32)


@pytest.mark.parametrize(("prior_dtype", "space_dtype"), list(itertools.product((F32, F64), repeat=2)))
@pytest.mark.parametrize("candidates", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_all_combinations_run(default_dtype, prior_dtype, space_dtype, candidates, name):
    simulator = line(prior_dtype, space_dtype, candidates)
    policy = POLICIES[name](simulator)
    trials = rollout(simulator, policy, simulator.prior.sample((4,)), 3)
    assert trials.designs.dtype == prior_dtype
    gain = expected_information_gain(simulator, policy, 3, 8, 20, seed=0)
    assert math.isfinite(gain.lower) and math.isfinite(gain.upper)
    x = PolicySimulator(simulator, policy, 3)(torch.zeros(2, 2))
    assert x.dtype == (F64 if default_dtype == prior_dtype == F64 else F32)
    theta, x = simulate_histories(simulator, policy, 3, 6, seed=0)
    assert theta.dtype == x.dtype == F32
    assert torch.isfinite(HistoryEmbedding(simulator)(x)).all()
    experiment = AdaptiveExperiment(policy, simulator, 3, seed=0)
    for outcome in ([0.3], torch.tensor([0.1], dtype=F64), torch.tensor([0.2], dtype=F32)):
        experiment.next_design()
        experiment.record(outcome)
    draws = experiment.posterior(num_particles=200).sample((20,))
    assert draws.dtype == prior_dtype and torch.isfinite(draws).all()


@pytest.mark.parametrize(("prior_dtype", "space_dtype"), [(F64, F64), (F64, F32), (F32, F64)])
@pytest.mark.parametrize("name", ["deep sets", "transformer", "static"])
def test_policies_are_trained_and_refined(default_dtype, prior_dtype, space_dtype, name):
    simulator = line(prior_dtype, space_dtype)
    policy = DAD(simulator, 3, POLICIES[name](simulator), show_progress_bars=False).train(3, 8, 7, 1e-3, seed=0)
    assert all(torch.isfinite(p).all() and p.dtype == default_dtype for p in policy.parameters())
    experiment = StepDAD(policy, simulator, 3, (1,), refine_settings=QUICK, seed=0)
    while not experiment.done:
        experiment.record(simulator(torch.zeros(2, dtype=prior_dtype), experiment.next_design()))
    assert len(experiment.refinements) == 1


@pytest.mark.parametrize("sample_with", ["smc", "importance"])
def test_a_noise_beyond_float32_is_warned_of(sample_with):
    """A Lorentzian dip in 10⁵ counts with noise 10⁻³: in float32 one count in a hundred thousand cannot be told."""
    prior = BoxUniform(torch.zeros(1), torch.ones(1))

    def mean(theta, design):
        return 1e5 * (1 - 0.1 / (1 + ((design - theta) / 0.1) ** 2))

    simulator = DesignSimulator(
        prior,
        lambda theta, design: mean(theta, design) + 1e-3 * torch.randn_like(mean(theta, design)),
        DesignSpace(constraints.interval(0.0, 1.0)),
        lambda theta, design, y: Normal(mean(theta, design), 1e-3).log_prob(y).sum(-1),
    )
    torch.manual_seed(0)
    designs = torch.rand(6, 1)
    history = pack_history(designs, simulator(torch.tensor([[0.4]]), designs))
    posterior = likelihood_posterior(simulator, history, sample_with, seed=0)
    with pytest.warns(UserWarning, match="this posterior is not to be trusted") as caught:
        posterior.sample((500,))
        posterior.sample((500,))
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize("sample_with", ["smc", "importance", "mcmc"])
def test_a_small_noise_on_a_large_number_needs_doubles(sample_with):
    """y = 10⁵ + θ ξ ± 10⁻³: float32 cannot hold y. With a prior in float64 the posterior is the conjugate one."""
    prior = MultivariateNormal(torch.zeros(1).double(), torch.eye(1).double())

    def mean(theta, design):
        return 1e5 + theta * design

    simulator = DesignSimulator(
        prior,
        lambda theta, design: mean(theta, design) + 1e-3 * torch.randn_like(mean(theta, design)),
        DesignSpace(constraints.real),
        lambda theta, design, y: Normal(mean(theta, design), 1e-3).log_prob(y).sum(-1),
    )
    torch.manual_seed(0)
    theta, designs = torch.tensor([[0.7]]).double(), torch.rand(8, 1).double()
    outcomes = simulator(theta, designs)
    precision = 1 + float(designs.square().sum()) / 1e-6
    exact = float((designs * (outcomes - 1e5)).sum()) / 1e-6 / precision
    options = {"num_chains": 20, "warmup_steps": 10} if sample_with == "mcmc" else {}
    posterior = likelihood_posterior(simulator, pack_history(designs, outcomes), sample_with, seed=0, **options)
    draws = posterior.sample((400,)).double()
    sd = precision**-0.5
    assert abs(float(draws.mean()) - exact) < 5 * sd / math.sqrt(100)
    assert abs(float(draws.std()) / sd - 1) < 5 / math.sqrt(2 * 100)
