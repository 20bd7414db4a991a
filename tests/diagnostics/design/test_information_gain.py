"""Both bounds around the exact gain, with error bars that mean what they say."""

import math

import pytest
import torch
from models import LinearGaussian, TinyPolicy, YesNo, gaussian_prior
from torch.distributions import MultivariateNormal, Normal, constraints

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.objectives import bounds as module
from sbi_bed.policies import RandomPolicy, StaticPolicy
from sbi_bed.simulators import DesignSimulator, HyperbolicDiscounting, LocationFinding, rollout
from sbi_bed.utils import pack_history


def assert_brackets(gain, exact):
    """lower ≤ exact ≤ upper within three standard errors."""
    assert gain.lower <= exact + 3 * gain.lower_stderr
    assert gain.upper >= exact - 3 * gain.upper_stderr
    assert gain.lower <= gain.upper + gain.lower_stderr


@pytest.mark.parametrize(("dim", "horizon"), [(1, 1), (1, 3), (2, 2), (2, 4)])
def test_fixed_designs_have_their_closed_form_gain_between_the_bounds(dim, horizon):
    simulator = LinearGaussian(dim)
    designs = simulator.design_space.sample((horizon,))
    exact = float(simulator.gain_of(designs))
    gain = expected_information_gain(
        simulator, StaticPolicy(simulator, horizon, designs), horizon, 2000, 20_000, seed=1
    )
    assert_brackets(gain, exact)
    # With this many contrastive samples both bounds are also close.
    assert abs(gain.lower - exact) < 4 * gain.lower_stderr and abs(gain.upper - exact) < 4 * gain.upper_stderr
    assert gain.lower_stderr < 0.05


@pytest.mark.parametrize("build", [TinyPolicy, RandomPolicy])
def test_policies_have_the_mean_gain_of_their_designs_between_the_bounds(build):
    simulator = LinearGaussian(2)
    policy = build(simulator)
    with torch.no_grad():
        exact = float(
            simulator.gain_of(rollout(simulator, policy, simulator.prior.sample((20_000,)), 3).designs).mean()
        )
    for num_contrastive in (10, 200, 10_000):
        assert_brackets(expected_information_gain(simulator, policy, 3, 2000, num_contrastive, seed=2), exact)


def test_enumerable_outcomes():
    """One yes or no: the gain is an integral over one θ."""
    simulator = YesNo(torch.float32)
    theta = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    prior = torch.exp(-0.5 * theta.square()) / math.sqrt(2 * math.pi) * (theta[1] - theta[0])
    p = torch.sigmoid(3 * theta * 0.8)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    exact = math.log(2) - float((prior * entropy).sum())
    gain = expected_information_gain(simulator, lambda history: torch.full((1,), 0.8), 1, 4000, 4000, seed=0)
    assert_brackets(gain, exact)
    assert abs(gain.lower - exact) < 4 * gain.lower_stderr


def test_lower_bound_is_capped_and_upper_is_not():
    simulator = LinearGaussian(1, noise_sd=0.01)
    designs = torch.ones(5, 1)
    gain = expected_information_gain(simulator, StaticPolicy(simulator, 5, designs), 5, 500, 3, seed=0)
    assert gain.lower_samples.max() <= math.log(4) + 1e-5 and gain.lower <= math.log(4)
    assert_brackets(gain, float(simulator.gain_of(designs)))


@pytest.mark.parametrize("which", ["lower", "upper"])
def test_standard_errors_are_honest(which):
    """Estimates under many seeds scatter as each of them says, also with few shared contrastive samples."""
    simulator = LinearGaussian()
    policy = StaticPolicy(simulator, 2, torch.ones(2, 1))
    gains = [expected_information_gain(simulator, policy, 2, 320, 40, seed=seed) for seed in range(120)]
    scatter = torch.tensor([getattr(g, which) for g in gains]).std()
    reported = torch.tensor([getattr(g, f"{which}_stderr") for g in gains]).square().mean().sqrt()
    # The sd of a sd of 120 values is 6.5 %.
    assert 0.8 < float(reported / scatter) < 1.25


def test_blocks_do_not_share_contrastive_samples():
    """A naive error over rollouts would call histories independent that share their contrastive samples."""
    drawn = []
    simulator = LinearGaussian()

    def sample(num):
        drawn.append(num)
        return simulator.prior.sample((num,))

    expected_information_gain(simulator, RandomPolicy(simulator), 1, 640, 50, prior=sample, seed=0)
    assert drawn == [640] + [50] * 64


def test_more_contrastive_samples_tighten_both_bounds():
    simulator, policy = (
        LinearGaussian(2, noise_sd=0.1),
        StaticPolicy(LinearGaussian(2), 2, torch.tensor([[1.0, 1.0], [1.0, -1.0]])),
    )
    few, many = (expected_information_gain(simulator, policy, 2, 500, n, seed=3) for n in (20, 2000))
    assert many.lower > few.lower + 5 * few.lower_stderr and many.upper < few.upper - 5 * few.upper_stderr


def test_a_gap_that_is_too_wide_raises_the_number_of_contrastive_samples():
    simulator, policy = LinearGaussian(2, noise_sd=0.1), RandomPolicy(LinearGaussian(2))
    wide = expected_information_gain(simulator, policy, 2, 200, 50, seed=3)
    narrow = expected_information_gain(simulator, policy, 2, 200, 50, seed=3, max_gap=0.05)
    assert wide.upper - wide.lower > 0.05 >= narrow.upper - narrow.lower
    assert narrow.num_contrastive > 50 and math.log2(narrow.num_contrastive / 50) % 1 == 0
    capped = expected_information_gain(simulator, policy, 2, 200, 50, seed=3, max_gap=0.0, max_contrastive=170)
    assert capped.num_contrastive == 170
    enough = expected_information_gain(simulator, policy, 2, 200, 50, seed=3, max_gap=100.0)
    assert enough.num_contrastive == 50 and enough.lower == wide.lower


def test_raising_keeps_what_was_done():
    """L = 50 doubled twice is the estimate from 200 samples, not from the last 100."""
    seen = []
    simulator = LinearGaussian(noise_sd=0.02)

    def sample(num):
        seen.append(num)
        return simulator.prior.sample((num,))

    gain = expected_information_gain(
        simulator, TinyPolicy(simulator), 2, 2, 50, prior=sample, max_gap=0.0, max_contrastive=200, seed=0
    )
    assert seen == [2, 50, 50, 50, 50, 100, 100] and gain.num_contrastive == 200


def test_memory_is_flat_in_the_number_of_contrastive_samples():
    base, largest, portions = LinearGaussian(), [0], []

    def log_likelihood(theta, design, outcome):
        value = base.log_likelihood(theta, design, outcome)
        largest[0] = max(largest[0], value.numel())
        return value

    def sample(num):
        portions.append(num)
        return base.prior.sample((num,))

    simulator = DesignSimulator(base.prior, base.simulate, constraints.real, log_likelihood, reparameterized=True)
    gain = expected_information_gain(simulator, TinyPolicy(simulator), 4, 8, 1_050_000, prior=sample, seed=0)
    assert gain.num_contrastive == 1_050_000
    assert max(portions) == 100_000 and sum(portions) == 8 + 8 * 1_050_000
    assert largest[0] <= 2**17


def test_seeds():
    simulator, policy = LinearGaussian(), RandomPolicy(LinearGaussian())
    before = torch.get_rng_state()
    first, second, other = (expected_information_gain(simulator, policy, 2, 50, 20, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.lower_samples, second.lower_samples) and first.lower_stderr == second.lower_stderr
    assert first.lower != other.lower


def test_gain_of_the_trials_that_remain():
    simulator = LinearGaussian(2)
    history = pack_history(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.3]]), horizon=4)
    precision = torch.eye(2) + torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    posterior = MultivariateNormal(torch.tensor([4 * 0.3 / 5, 0.0]), precision_matrix=precision)
    designs = torch.tensor([[1.0, 0.0], [0.5, 1.0], [1.0, -1.0]])
    policy = StaticPolicy(simulator, 3, designs)
    exact = float(simulator.gain_of(designs) - simulator.gain_of(designs[:1]))
    gain = expected_information_gain(simulator, policy, 3, 2000, 5000, seed=0, prior=posterior, history=history)
    assert_brackets(gain, exact)
    assert abs(gain.lower - exact) < 4 * gain.lower_stderr


def test_what_it_reports():
    simulator = LocationFinding()
    gain = expected_information_gain(simulator, RandomPolicy(simulator), 2, 70, 30, seed=0)
    assert (gain.num_rollouts, gain.num_contrastive) == (70, 30)
    assert gain.lower_samples.shape == gain.upper_samples.shape == (70,)
    assert gain.lower == pytest.approx(float(gain.lower_samples.mean()))
    # Upper above lower holds on the mean; for one history only where its own likelihood is above the others' mean.
    assert gain.upper == pytest.approx(float(gain.upper_samples.mean())) and gain.lower < gain.upper
    assert "70 rollouts" in str(gain) and "nats" in str(gain) and "L = 30" in str(gain)
    one = expected_information_gain(simulator, RandomPolicy(simulator), 2, 1, 30, seed=0)
    assert math.isnan(one.lower_stderr) and math.isfinite(one.lower)


def test_discrete_outcomes():
    simulator = HyperbolicDiscounting()
    gain = expected_information_gain(simulator, RandomPolicy(simulator), 5, 300, 2000, seed=0)
    assert 0 < gain.lower < gain.upper < 5 * math.log(2)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"simulator": DesignSimulator(LinearGaussian().prior, lambda t, d: t + d, constraints.real)},
            ValueError,
            "needs a simulator with a log_likelihood",
        ),
        ({"horizon": 0}, ValueError, "horizon must be at least 1"),
        ({"num_rollouts": 0}, ValueError, "num_rollouts must be at least 1"),
        ({"num_contrastive": 0}, ValueError, "num_contrastive must be at least 1"),
        ({"num_contrastive": 1.5}, TypeError, "num_contrastive must be a whole number"),
        ({"history": torch.ones(2, 3)}, ValueError, "no trial remains of a horizon of 2"),
        ({"history": torch.ones(5, 1, 3)}, ValueError, "history must be that of one experiment"),
        ({"history": torch.ones(1, 7)}, ValueError, "history must have 3 values"),
        ({"policy": 3}, TypeError, "policy must be a callable"),
        ({"prior": "normal"}, TypeError, "prior must be a distribution, draws"),
        ({"prior": torch.zeros(0, 1)}, ValueError, r"draws of theta must have shape \(N, P\)"),
        ({"prior": torch.zeros(9, 2)}, ValueError, r"theta must have shape \(..., 1\)"),
        ({"max_gap": -1.0}, ValueError, "max_gap must be positive"),
        ({"max_gap": float("nan")}, ValueError, "max_gap must be positive"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    simulator = LinearGaussian()
    arguments = {
        "simulator": simulator,
        "policy": RandomPolicy(simulator),
        "horizon": 2,
        "num_rollouts": 4,
        "num_contrastive": 4,
    }
    with pytest.raises(error, match=message):
        expected_information_gain(**{**arguments, **changes})


def test_number_of_blocks_is_large_enough_for_a_standard_error():
    assert module.NUM_BLOCKS >= 50


@pytest.mark.parametrize("proposal", [None, "posterior"])
@pytest.mark.parametrize(
    ("bad_outcome", "bad_density", "message"),
    [
        (math.nan, 0.0, "the simulator's outcome is nan in rollout 3, trial 1"),
        (math.inf, 0.0, "the simulator's outcome is inf in rollout 3, trial 1"),
        (0.0, math.nan, "log_likelihood is nan in rollout 3, trial 1"),
        (0.0, -math.inf, "log_likelihood is -inf in rollout 3, trial 1"),
    ],
)
def test_what_is_not_finite_is_named_at_once(bad_outcome, bad_density, message, proposal):
    calls = []

    def simulate(theta, design):
        calls.append(len(theta))
        outcome = theta * design + torch.randn_like(theta * design)
        if len(calls) == 2:
            outcome[3] += bad_outcome
        return outcome

    def log_likelihood(theta, design, outcome):
        value = Normal(theta * design, 1.0).log_prob(outcome).sum(-1)
        if value.ndim == 2 and value.shape[-1] == 2 and bad_density:
            value[3, 1] += bad_density
        return value

    simulator = DesignSimulator(
        gaussian_prior(1), simulate, constraints.interval(-torch.ones(1), torch.ones(1)), log_likelihood
    )
    with pytest.raises(ValueError, match=message):
        expected_information_gain(
            simulator, lambda h: torch.ones(1), 2, 10, 100, seed=0, proposal=proposal, num_particles=100, max_gap=1e-3
        )


def test_a_density_that_is_nan_at_other_theta_is_named():
    simulator = DesignSimulator(
        gaussian_prior(1),
        lambda theta, design: theta * design + torch.randn_like(theta * design),
        constraints.interval(-torch.ones(1), torch.ones(1)),
        lambda theta, design, y: torch.where(
            (y - theta * design).squeeze(-1).abs() > 4.5, torch.nan, Normal(theta * design, 1.0).log_prob(y).sum(-1)
        ),
    )
    with pytest.raises(ValueError, match="is NaN or infinite at some contrastive theta"):
        expected_information_gain(simulator, lambda h: torch.ones(1), 2, 64, 2000, seed=0, max_gap=1e-3)
