"""Nets and mixtures that assign treatments: what they may know, and that it is the same live and all at once."""

import math

import pytest
import torch

from sbi_bed.policies import (
    CoinFlip,
    ExperimenterTransformer,
    GradientExperimenter,
    MixtureOfExperimenters,
    NeymanTeacher,
    NonContextualNeyman,
    StaticPolicy,
    TreatmentPolicy,
    load_policy,
)
from sbi_bed.policies.treatment.mixture_of_experimenters import log_score
from sbi_bed.simulators import LocationFinding, TreatmentStream, assign_stream

KINDS = {
    "transformer": lambda d: ExperimenterTransformer(d, hidden_dim=16, num_layers=2, num_heads=2),
    "gradient": GradientExperimenter,
    "teacher": lambda d: NeymanTeacher(d, burn_in=3, refit_every=1),
    "mixture of nets": lambda d: MixtureOfExperimenters(
        [GradientExperimenter(d, 0.5), ExperimenterTransformer(d, hidden_dim=16, num_layers=1, num_heads=2)]
    ),
    "mixture of teachers": lambda d: MixtureOfExperimenters(
        [NeymanTeacher(d, alpha, burn_in=3, refit_every=1) for alpha in (0.5, 4.0)]
    ),
}


class Tiny(TreatmentPolicy):
    """A policy with three methods of its own, that knows how many treated units there were."""

    has_predictions = False

    def initial_state(self, batch_shape=()):
        return torch.zeros(tuple(batch_shape))

    def update(self, state, covariates, arm, outcome):
        return state + arm

    def propensity(self, state, covariates):
        return (0.3 + 0.1 * state).clamp(0.1, 0.9).expand(covariates.shape[:-1])


def close(first, second):
    """Equal up to rounding in single precision."""
    torch.testing.assert_close(first.double(), second.double(), rtol=1e-4, atol=2e-5)


def some_units(num=14, covariate_dim=1, batch=(3,)):
    x, arm = torch.rand(*batch, num, covariate_dim), torch.bernoulli(torch.full((*batch, num, 1), 0.5))
    return torch.cat([x, arm, arm + torch.randn(*batch, num, 1), torch.ones(*batch, num, 1)], -1)


@pytest.mark.parametrize("covariate_dim", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_step_by_step_is_all_at_once(kind, covariate_dim):
    policy, history = KINDS[kind](covariate_dim), some_units(10, covariate_dim)
    along, state = policy.along(history), policy.initial_state((3,))
    places = torch.tensor([7, 2, 9])
    at_places = policy.along(history, places)
    close(at_places.propensity, along.propensity[:, places])
    close(at_places.log_variance, along.log_variance[:, places])
    for t, unit in enumerate(history.unbind(1)):
        x = unit[:, :-3]
        close(policy.propensity(state, x), along.propensity[:, t])
        mean, log_variance = policy.predict(state, x)
        close(mean, along.mean[:, t])
        close(log_variance, along.log_variance[:, t])
        close(policy(history[:, :t], x), along.propensity[:, t])
        state = policy.update(state, x, unit[:, -3], unit[:, -2])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_nothing_at_or_after_a_unit_reaches_it(kind):
    """To the bit: only the unit's own covariates may be known."""
    policy, history, t = KINDS[kind](1), some_units(), 8
    other = history.clone()
    other[:, t, 1:3] = torch.tensor([1.0, -77.0])
    other[:, t + 1 :, :3] = torch.tensor([0.9, 1.0, 55.0])
    first, second = policy.along(history), policy.along(other)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one[:, : t + 1], two[:, : t + 1])
    assert not torch.equal(first.propensity[:, t + 1], second.propensity[:, t + 1])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_was_not_observed_and_the_batch_change_nothing(kind):
    policy, history, x = KINDS[kind](1), some_units(), torch.rand(3, 1)
    history[0, 9:, -1], history[1, ::3, -1] = 0, 0
    history[..., 2] += 1e3 * (1 - history[..., -1])
    found, along = policy(history, x), policy.along(history)
    for row in range(3):
        seen = history[row][history[row, :, -1] > 0]
        close(policy(seen, x[row]), found[row])
        close(policy.along(history[row]).mean, along.mean[row])
    if policy.reads_mixed_masks:
        return
    with_gaps = history[1].expand(2, -1, -1)
    close(policy.along(with_gaps).propensity[0], along.propensity[1])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_many_covariates_are_asked_of_one_state(kind):
    policy, grid = KINDS[kind](2), torch.rand(5, 3, 2)
    state = policy.read(some_units(12, 2))
    propensity = policy.propensity(state, grid)
    mean, log_variance = policy.predict(state, grid)
    for i in range(5):
        close(policy.propensity(state, grid[i]), propensity[i])
        close(policy.predict(state, grid[i])[0], mean[i])
        close(policy.predict(state, grid[i])[1], log_variance[i])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_saved_policies_say_the_same(kind, tmp_path):
    policy, history, x = KINDS[kind](1), some_units(), torch.rand(3, 1)
    for weight in policy.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert type(loaded) is type(policy) and torch.equal(loaded(history, x), policy(history, x))


def test_policies_of_designs_still_need_their_simulator(tmp_path):
    StaticPolicy(LocationFinding(), 2).save(tmp_path / "policy")
    with pytest.raises(ValueError, match="give load_policy its simulator"):
        load_policy(tmp_path / "policy")


def test_a_policy_of_ones_own(tmp_path):
    policy, history, x = Tiny(1), some_units(), torch.rand(3, 1)
    history[0, 3:, -1] = 0
    expected = (0.3 + 0.1 * (history[..., 1] * history[..., -1]).sum(1)).clamp(0.1, 0.9)
    torch.testing.assert_close(policy(history, x), expected)
    assert policy.along(history).mean is None
    with pytest.raises(NotImplementedError, match="Tiny predicts no outcomes"):
        policy.predict(policy.initial_state(), x)
    policy.save(tmp_path / "policy")
    with pytest.raises(ValueError, match="'Tiny' is not one of sbi_bed's policies"):
        load_policy(tmp_path / "policy")
    assert isinstance(load_policy(tmp_path / "policy", policy_class=Tiny), Tiny)


@pytest.mark.parametrize(("factor", "shift"), [(1000.0, 7.0), (1e-3, 0.0), (-2.5, 300.0)])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "arms' variances"])
@torch.no_grad()
def test_the_unit_of_outcomes_changes_nothing(kind, binary, factor, shift):
    """The same propensities for y and factor · y + shift, live and all at once; predictions follow the unit."""
    if factor < 0 and kind in ("transformer", "mixture of nets"):
        factor = -factor  # an untrained net need not be symmetric
    build = {**KINDS, "arms' variances": NonContextualNeyman}[kind]
    policy, history = build(1), some_units(26, 1, (2,)).double()
    if binary:
        history[..., 2] = (history[..., 2] > 0.5).double()
    other = history.clone()
    other[..., 2] = factor * history[..., 2] + shift
    first, second = policy.along(history), policy.along(other)
    torch.testing.assert_close(second.propensity.double(), first.propensity.double(), rtol=0, atol=2e-4)
    assert (first.propensity - 0.5).abs().max() > 0.01
    known = slice(12, None)  # with a unit or two there is nothing to learn a scale from
    size = abs(factor)
    torch.testing.assert_close(
        (second.mean[:, known] - shift).double() / factor, first.mean[:, known].double(), rtol=0, atol=1e-3
    )
    log_variance = second.log_variance[:, known].double() - 2 * math.log(size)
    torch.testing.assert_close(log_variance, first.log_variance[:, known].double(), rtol=0, atol=1e-3)
    state, other_state = policy.initial_state((2,)), policy.initial_state((2,))
    for unit, other_unit in zip(history.unbind(1), other.unbind(1), strict=True):
        x = unit[:, :1]
        found = policy.propensity(other_state, x)
        torch.testing.assert_close(found.double(), policy.propensity(state, x).double(), rtol=0, atol=2e-4)
        state = policy.update(state, x, unit[:, 1], unit[:, 2])
        other_state = policy.update(other_state, x, other_unit[:, 1], other_unit[:, 2])


@torch.no_grad()
def test_a_given_unit_of_outcomes_is_used():
    history, x = some_units(40, 1, ()).double(), torch.tensor([0.3]).double()
    for build in (NeymanTeacher, GradientExperimenter, ExperimenterTransformer):
        torch.manual_seed(0)
        plain = build(1, outcome_centre=0.0, outcome_scale=1.0)
        torch.manual_seed(0)
        scaled = build(1, outcome_centre=7.0, outcome_scale=1000.0)
        other = history.clone()
        other[:, 2] = 1000 * history[:, 2] + 7
        close(plain(history, x), scaled(other, x))
        assert (plain(other, x) - plain(history, x)).abs() > 1e-3


@torch.no_grad()
def test_gradient_descent_converges_to_the_ridge_solution():
    """With noise that is known to have variance 1 the mean's coefficients are those of a ridge regression."""
    history = some_units(80, 1, ())
    policy = GradientExperimenter(1, 1.5, 150, log_variance_scale=1e-4, outcome_centre=0.0, outcome_scale=1.0).double()
    solution = policy.read(history.double()).solution
    features = policy.units.features(history[:, :1].double())
    for arm in (0, 1):
        rows = history[:, 1] == arm
        phi, y = features[rows] * policy.log_sds[0].exp(), history[rows, 2].double()
        ridge = torch.linalg.solve(phi.mT @ phi + torch.eye(phi.shape[1]), phi.mT @ y)
        torch.testing.assert_close(solution.mean[arm], ridge, rtol=0, atol=1e-5)


@torch.no_grad()
def test_gradient_descent_comes_near_the_teacher():
    history, x = some_units(200, 1, (8,)), torch.rand(8, 1)
    history[..., 2] *= 1 + 2 * history[..., 1] * history[..., 0]
    teacher, policy = NeymanTeacher(1, 1.5), GradientExperimenter(1, 1.5)
    gap = (policy(history, x) - teacher(history, x)).abs()
    assert gap.max() < 0.05 and (policy(history, x) - 0.5).abs().max() > 0.1


@torch.no_grad()
def test_the_gate_is_a_posterior_over_experts():
    history = some_units(12)
    experts = [GradientExperimenter(1, alpha) for alpha in (0.5, 4.0)]
    mixture = MixtureOfExperimenters(experts, log_prior=[math.log(0.2), math.log(0.8)])
    state, total = mixture.initial_state((3,)), torch.tensor([0.2, 0.8]).double().log().expand(3, 2)
    torch.testing.assert_close(mixture.gate(state), total.exp())
    alone = [expert.along(history) for expert in experts]
    for t, unit in enumerate(history.unbind(1)):
        x, arm, y = unit[:, :1], unit[:, 1], unit[:, 2]
        weights = mixture.gate(state)
        propensity = sum(weights[:, k] * alone[k].propensity[:, t] for k in range(2))
        torch.testing.assert_close(
            mixture.propensity(state, x), propensity, rtol=1e-5, atol=1e-6
        )  # of single precision
        rows = torch.arange(3), torch.full((3,), t), arm.long()
        density = [
            torch.distributions.Normal(a.mean[rows].double(), (0.5 * a.log_variance[rows].double()).exp())
            for a in alone
        ]
        total = total + torch.stack([d.log_prob(y.double()) for d in density], -1)
        state = mixture.update(state, x, arm, y)
        torch.testing.assert_close(mixture.gate(state), total.softmax(-1), rtol=1e-5, atol=1e-5)
    assert (mixture.gate(state)[:, 0] - 0.2).abs().max() > 0.02


@torch.no_grad()
def test_mixture_moments_are_those_of_its_draws():
    mixture = MixtureOfExperimenters([GradientExperimenter(1, a) for a in (0.5, 4.0)])
    state, x = mixture.read(some_units(20, 1, ())), torch.tensor([0.7])
    mean, log_variance = mixture.predict(state, x)
    parts = [expert.predict(s, x) for expert, s in zip(mixture.experts, state.experts, strict=True)]
    weight = mixture.gate(state)[:, None]
    means, variances = torch.stack([p[0] for p in parts]), torch.stack([p[1].exp() for p in parts])
    torch.testing.assert_close(mean, (weight * means).sum(0))
    second = (weight * (variances + means.double().square())).sum(0) - mean.square()
    torch.testing.assert_close(log_variance.exp(), second)


def test_log_score_is_a_normal_density():
    mean, log_variance, y = torch.randn(4, 2), torch.randn(4, 2), torch.randn(4)
    arm = torch.tensor([0.0, 1.0, 1.0, 0.0])
    chosen = torch.arange(4), arm.long()
    normal = torch.distributions.Normal(mean[chosen].double(), (0.5 * log_variance[chosen].double()).exp())
    torch.testing.assert_close(log_score(mean, log_variance, arm, y), normal.log_prob(y.double()))


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="at least one expert"):
        MixtureOfExperimenters([])
    with pytest.raises(TypeError, match="predict outcomes"):
        MixtureOfExperimenters([Tiny(1)])
    with pytest.raises(ValueError, match=r"same covariates, got \[1, 2\]"):
        MixtureOfExperimenters([NeymanTeacher(1), NeymanTeacher(2)])
    with pytest.raises(ValueError, match="log_prior must have 1 values"):
        MixtureOfExperimenters([NeymanTeacher(1)], log_prior=[0.0, 0.0])
    with pytest.raises(ValueError, match="without predictions"):
        log_score(None, None, torch.zeros(1), torch.zeros(1))
    with pytest.raises(ValueError, match="num_layers must be at least 1"):
        GradientExperimenter(1, num_layers=0)
    with pytest.raises(ValueError, match="mean_scale must be positive"):
        GradientExperimenter(1, mean_scale=0.0)
    with pytest.raises(ValueError, match="must be a multiple of num_heads"):
        ExperimenterTransformer(1, hidden_dim=10, num_heads=4)
    with pytest.raises(ValueError, match="clip must lie"):
        CoinFlip(1, clip=0.7)


@pytest.mark.parametrize("policy", [GradientExperimenter(1), ExperimenterTransformer(1, hidden_dim=8, num_heads=2)])
@torch.no_grad()
def test_the_variance_of_two_valued_outcomes_follows_from_their_mean(policy):
    """One unit after the other, and side by side; in other units the same; with a third value no more."""
    seen = assign_stream(TreatmentStream(1.5, outcome="binary").sample(3, seed=0), CoinFlip(1), 40, seed=1).history
    low, high = -2.0, 3.0
    history = seen.clone()
    history[..., -2] = low + (high - low) * seen[..., -2]
    for said in (policy.along(history), policy.assess(policy.read(history[:, :39]), history[:, 39, :1])):
        mean, variance = (part if part.ndim == 2 else part[:, 39] for part in (said.mean, said.log_variance.exp()))
        torch.testing.assert_close(variance, (mean - low) * (high - mean), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(policy.along(seen).propensity, policy.along(history).propensity, rtol=0, atol=1e-5)
    history[..., 3, -2] = 0.5
    said = policy.along(history)
    gap = said.log_variance.exp() - (said.mean - low) * (high - said.mean)
    assert gap[:, 39].abs().min() > 1e-6


@torch.no_grad()
def test_gradient_descent_is_no_worse_than_a_coin_where_outcomes_are_binary():
    problems = TreatmentStream(1.5, outcome="binary").sample(60, seed=1)
    regret = [
        assign_stream(problems, policy, 150, seed=2).regret[:, 50:].mean(1) / problems.bound
        for policy in (GradientExperimenter(1, 1.5), CoinFlip(1))
    ]
    gain = regret[1] - regret[0]
    assert gain.mean() > -2 * gain.std() / 60**0.5 and regret[0].mean() < 1.5 * regret[1].mean()
