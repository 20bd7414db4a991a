"""Bounds with a proposal for each history: around closed forms, for gains that prior draws cannot reach."""

import math

import pytest
import torch
from models import LinearGaussian
from torch.distributions import MultivariateNormal

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.diagnostics.design import posterior_bounds as module
from sbi_bed.policies import RandomPolicy, StaticPolicy
from sbi_bed.simulators import ConstantElasticity, HyperbolicDiscounting, LocationFinding, rollout
from sbi_bed.utils import pack_history, seeded
from sbi_bed.utils.smc import ParticleBelief

DESIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.5, 0.1], [-0.3, 0.9]])


def exact_samples(simulator, policy, horizon, num_rollouts, seed):
    """log p(h | θ_0) − log p(h) of the very rollouts that this seed gives, in closed form, float64."""
    with torch.no_grad(), seeded(seed):
        theta = simulator.prior.sample((num_rollouts,))
        designs, outcomes = (part.double() for part in rollout(simulator, policy, theta, horizon))
    noise = simulator.noise_sd**2 * torch.eye(horizon, dtype=torch.float64)
    mean = (designs @ theta.double().unsqueeze(-1)).squeeze(-1)
    own = MultivariateNormal(mean, noise).log_prob(outcomes.squeeze(-1))
    return own - MultivariateNormal(torch.zeros_like(mean), designs @ designs.mT + noise).log_prob(outcomes.squeeze(-1))


def test_a_gain_of_twelve_nats_that_prior_draws_cannot_reach():
    simulator = LinearGaussian(2, noise_sd=0.004)
    policy, arguments = StaticPolicy(simulator, 4, DESIGNS), (4, 400, 4096)
    exact = float(simulator.gain_of(DESIGNS))
    assert exact > 11.5
    brute = expected_information_gain(simulator, policy, *arguments, seed=1)
    assert brute.lower < exact - 3 and brute.upper > exact + 3
    gain = expected_information_gain(simulator, policy, *arguments, seed=1, proposal="posterior", num_particles=512)
    assert gain.lower <= gain.upper < gain.lower + 0.01
    # The chance of 400 histories, which the next comparison takes out; see "Test" in CONTRIBUTING for 4.5.
    assert gain.lower - 4.5 * gain.lower_stderr <= exact <= gain.upper + 4.5 * gain.upper_stderr
    # History by history, where only the proposal's noise is left: float32 residuals of size θ / σ.
    samples = exact_samples(simulator, policy, 4, 400, 1)
    assert (gain.lower_samples - samples).abs().max() < 0.2 and abs(float((gain.lower_samples - samples).mean())) < 0.01
    assert gain.effective_sample_sizes.median() > 2000


@pytest.mark.parametrize("num_contrastive", [1, 3, 30])
def test_a_proposal_in_the_wrong_place_loosens_both_bounds_and_breaks_neither(monkeypatch, num_contrastive):
    """With few draws, a proposal that had seen θ_0 would lift the lower bound above the gain."""
    simulator = LinearGaussian(2, noise_sd=0.3)
    exact = float(simulator.gain_of(DESIGNS))
    settings = {"seed": 2, "proposal": "posterior", "num_particles": 200}
    fitted = expected_information_gain(
        simulator, StaticPolicy(simulator, 4, DESIGNS), 4, 500, num_contrastive, **settings
    )

    def elsewhere(_, prior, __, designs, ___, num):
        return ParticleBelief.from_samples(1.0 + 0.1 * prior.sample((len(designs), num)))

    monkeypatch.setattr(module, "_posterior_particles", elsewhere)
    astray = expected_information_gain(
        simulator, StaticPolicy(simulator, 4, DESIGNS), 4, 500, num_contrastive, **settings
    )
    for gain in (fitted, astray):
        assert gain.lower <= exact + 3 * gain.lower_stderr and gain.upper >= exact - 3 * gain.upper_stderr
    assert astray.lower < fitted.lower and astray.upper > fitted.upper


@pytest.mark.parametrize(
    ("simulator", "num_rollouts", "tolerance"),
    [(LocationFinding(1), 100, 0.03), (LocationFinding(2), 50, 0.06), (HyperbolicDiscounting(), 100, 0.02)],
)
def test_prior_draws_agree_where_they_suffice(simulator, num_rollouts, tolerance):
    """The same seed gives the same rollouts, so that differences have no error of theirs."""
    policy = RandomPolicy(simulator)
    brute = expected_information_gain(simulator, policy, 5, num_rollouts, 100_000, seed=3)
    gain = expected_information_gain(simulator, policy, 5, num_rollouts, 4000, seed=3, proposal="posterior")
    assert abs(gain.lower - brute.lower) < tolerance and abs(gain.upper - brute.upper) < tolerance
    assert (gain.lower_samples - brute.lower_samples).abs().median() < tolerance
    assert gain.upper - gain.lower < 0.01


def test_bounded_parameters_and_long_ridges():
    simulator = ConstantElasticity()
    gain = expected_information_gain(simulator, RandomPolicy(simulator), 10, 12, 4000, seed=0, proposal="posterior")
    brute = expected_information_gain(simulator, RandomPolicy(simulator), 10, 12, 4000, seed=0)
    assert gain.upper - gain.lower < 0.1 < brute.upper - brute.lower
    assert ((gain.effective_sample_sizes >= 1) & (gain.effective_sample_sizes <= 4000.5)).all()
    assert "worth" in str(gain) and "worth" not in str(brute)


def test_a_gap_that_is_too_wide_raises_the_number_of_draws():
    simulator = LinearGaussian(2, noise_sd=0.1)
    arguments = (simulator, RandomPolicy(simulator), 2, 100, 4)
    wide = expected_information_gain(*arguments, seed=0, proposal="posterior")
    narrow = expected_information_gain(*arguments, seed=0, proposal="posterior", max_gap=0.02)
    assert wide.upper - wide.lower > 0.02 >= narrow.upper - narrow.lower
    assert math.log2(narrow.num_contrastive / 4) % 1 == 0
    assert narrow.effective_sample_sizes.min() > wide.effective_sample_sizes.max()


def test_after_some_trials_the_prior_is_the_posterior():
    simulator, designs = LinearGaussian(1, noise_sd=0.5), torch.ones(3, 1)
    history = pack_history(designs[:1], torch.tensor([[0.7]]))
    variance = 1 / (1 + 1 / 0.25)
    posterior = MultivariateNormal(torch.tensor([0.7 * variance / 0.25]), variance * torch.eye(1))
    gain = expected_information_gain(
        simulator, StaticPolicy(simulator, 3, designs), 3, 500, 1000, seed=0, prior=posterior, history=history,
        proposal="posterior", num_particles=200,
    )  # fmt: skip
    exact = float(simulator.gain_of(designs) - simulator.gain_of(designs[:1]))
    assert abs(gain.lower - exact) < 3 * gain.lower_stderr and abs(gain.upper - exact) < 3 * gain.upper_stderr


def test_seeds():
    simulator = LinearGaussian()
    before = torch.get_rng_state()
    first, second = (
        expected_information_gain(simulator, RandomPolicy(simulator), 2, 20, seed=5, proposal="posterior")
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.lower_samples, second.lower_samples) and first.num_contrastive == 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proposal": "prior"}, "proposal must be None or 'posterior'"),
        ({"prior": torch.zeros(5, 1)}, "needs a prior with a density"),
        ({"num_particles": 10}, "num_particles must be at least 100"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    simulator = LinearGaussian()
    arguments = {"proposal": "posterior", "num_rollouts": 2, **changes}
    with pytest.raises(ValueError, match=message):
        expected_information_gain(simulator, RandomPolicy(simulator), 2, **arguments)
