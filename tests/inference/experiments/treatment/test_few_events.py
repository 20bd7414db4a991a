"""Intervals where events are few: betting against brute force and at all times, floors, stopping, warnings."""

import math
import warnings

import pytest
import torch

from sbi_bed.diagnostics import run_treatment_study
from sbi_bed.inference import TreatmentExperiment
from sbi_bed.inference.experiments.treatment.betting import _SHARES, betting_intervals, check_outcome_space
from sbi_bed.inference.experiments.treatment.effect import estimate_effect
from sbi_bed.policies import CoinFlip, NeymanTeacher, NonContextualNeyman
from sbi_bed.simulators import TreatmentProblem

INF = float("inf")


def problem_of(draw, control=None):
    """No covariates, no effect, outcomes from `draw`, or in arm 0 from another of the same mean."""

    def moments(x):
        ones = torch.ones(*x.shape[:-1], 2, dtype=torch.float64)
        return 0 * ones, ones

    def simulate(mean, _):
        both = draw(mean)
        return both if control is None else torch.stack([control(mean[..., 0]), both[..., 1]], -1)

    return TreatmentProblem(lambda num: torch.zeros(num, 0).double(), moments, torch.zeros(1, 0).double(), simulate)


def events(rate):
    return lambda like: torch.bernoulli(torch.full_like(like, rate))


def estimates(draw, policy, num_units, num, seed=0, **options):
    log = run_treatment_study(problem_of(draw), policy, num_units, num, seed=seed).log
    return log.running(**options)


def holds(ends, effect=0.0):
    return ((ends[0] <= effect) & (effect <= ends[1])).double()


def test_capital_by_brute_force():
    """At the ends of the interval the mean capital of the players is 2 / α, and beyond them it is larger."""
    generator = torch.Generator().manual_seed(0)
    scores = 0.3 + 2 * (torch.rand(30, generator=generator, dtype=torch.float64) - 0.5)
    _, (low, high) = betting_intervals(scores, torch.full((30,), -2.0), torch.full((30,), 2.5), 1.0, 0.95)
    for t in (10, 20, 30):
        for end, sign, limit in ((low, 1, -2.0), (high, -1, 2.5)):
            m, total = float(end[t - 1]), 0.0
            if abs(m) == 1:
                continue  # the limit of the effect itself
            for share in _SHARES.tolist():
                capital = 1.0
                for score in scores[:t].tolist():
                    capital *= 1 + share * sign * (score - m) / abs(m - limit)
                total += capital / len(_SHARES)
            assert total == pytest.approx(40, rel=0.05)


@pytest.mark.parametrize("rate", [0.01, 0.03, 0.4])
@pytest.mark.parametrize("policy", [CoinFlip(0), NonContextualNeyman(0)], ids=["coin", "adaptive"])
def test_intervals_of_binary_outcomes_hold_at_one_and_at_all_times(rate, policy):
    num = 200
    found = estimates(events(rate), policy, 60, num, outcome_space="binary")
    lowest = 0.95 - 3 * (0.95 * 0.05 / num) ** 0.5
    assert float(holds(found.interval)[:, [19, 39, 58]].mean(0).min()) > lowest
    assert float(holds(found.confidence_sequence).amin(-1).mean()) > lowest
    assert float((found.interval[1] - found.interval[0]).min()) > 0.1
    inside = (found.interval[0] <= found.ate) & (found.ate <= found.interval[1])
    assert inside.all() and (found.confidence_sequence[0] <= found.interval[0] + 1e-9).double().mean() > 0.9


def test_intervals_narrow_and_find_effects():
    """At 1,000 units with a fair coin the half-width is near √(2 log(2/α) σ² / n) of the best known bound."""
    generator = torch.Generator().manual_seed(0)
    arm = torch.rand(1000, generator=generator).double().round()
    outcome = torch.bernoulli(0.3 + 0.3 * arm, generator=generator)
    half, predicted = torch.full((1000,), 0.5).double(), torch.tensor([0.3, 0.6]).double().expand(1000, 2)
    seen = torch.ones(1000, dtype=torch.bool)
    found = estimate_effect(arm, outcome, half, predicted, seen, outcome_space="binary").at(-1)
    best = math.sqrt(2 * math.log(40) * 2 * (0.21 + 0.24) / 1000)
    for ends, most in ((found.interval, 1.35), (found.confidence_sequence, 1.5)):
        assert best < (ends[1] - ends[0]) / 2 < most * best
        assert 0 < ends[0] < 0.3 < ends[1]


@pytest.mark.parametrize("space", ["real", "binary", (0, 5), (-3.0, 0.0)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_events_are_no_certainty(space):
    experiment = TreatmentExperiment(CoinFlip(0), outcome_space=space, seed=0)
    for _ in range(40):
        experiment.assign()
        experiment.update(0.0)
    found = experiment.estimate()
    assert found.ate == 0 and found.stderr > 0.05
    for low, high in (found.interval, found.confidence_sequence):
        assert low < -0.1 and high > 0.1
    if space == "real":  # nothing says on which scale outcomes vary
        assert found.stderr == INF and found.interval == (-INF, INF)
    else:
        width = 1 if space == "binary" else space[1] - space[0]
        assert found.interval[1] < 0.5 * width


@pytest.mark.parametrize(
    "draw",
    [
        events(0.05),
        lambda like: events(0.2)(like) * torch.randn_like(like).exp(),
        lambda like: torch.randn_like(like).exp(),
        torch.randn_like,
    ],
    ids=["binary", "zero-inflated", "skewed", "normal"],
)
@pytest.mark.parametrize("policy", [NonContextualNeyman(0), NeymanTeacher(0, refit_every=20)], ids=["arms", "teacher"])
def test_stopping_at_the_first_interval_without_zero(draw, policy):
    num = 1000 if isinstance(policy, NonContextualNeyman) else 300
    found = estimates(draw, policy, 400, num, seed=1)
    wrong = 1 - float(holds(found.confidence_sequence).amin(-1).mean())
    assert wrong < 0.05 + 2 * (0.05 * 0.95 / num) ** 0.5
    assert found.confidence_sequence[1][:, -1].isfinite().double().mean() > 0.5


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda like: torch.randn_like(like).exp(), math.exp(0.5)),
        (lambda like: -torch.randn_like(like).exp(), -math.exp(0.5)),
        (lambda like: events(0.1)(like) * torch.randn_like(like).exp(), 0.1 * math.exp(0.5)),
        (events(0.05), 0.05),
    ],
    ids=["skewed", "skewed down", "zero-inflated", "binary"],
)
@pytest.mark.parametrize("policy", [CoinFlip(0), NonContextualNeyman(0)], ids=["coin", "arms"])
def test_one_arm_alone_is_skewed_or_has_rare_events(draw, mean, policy):
    """Then scores are skewed, and while no event has come in that arm its outcomes look certain."""
    num = 1000
    problem = problem_of(draw, control=lambda like: mean + 0.05 * torch.randn_like(like))
    found = run_treatment_study(problem, policy, 200, num, seed=2).log.running()
    wrong = 1 - float(holds(found.confidence_sequence).amin(-1).mean())
    assert wrong < 0.05 + 2 * (0.05 * 0.95 / num) ** 0.5


def test_regular_outcomes_have_the_plain_interval():
    found = estimates(lambda like: 2 * torch.rand_like(like) - 1, CoinFlip(0), 200, 20)
    log = run_treatment_study(problem_of(lambda like: 2 * torch.rand_like(like) - 1), CoinFlip(0), 200, 20, seed=0).log
    stderr = log.scores.std(-1) / 199**0.5  # the first unit, about which nothing was known, does not enter
    torch.testing.assert_close(found.stderr[:, -1], stderr)
    half = (found.interval[1] - found.interval[0])[:, -1] / 2
    assert (half >= 1.9599 * stderr).all() and (half < 1.98 * stderr).all()


def test_the_space_of_outcomes():
    assert check_outcome_space("real") == "real" and check_outcome_space([-1, 2]) == (-1.0, 2.0)
    for wrong in ("counts", (1, 0), (0, math.inf), 3, (0, 1, 2), None):
        with pytest.raises(ValueError, match="outcome_space"):
            TreatmentExperiment(CoinFlip(0), outcome_space=wrong)
    for space, value, message in (("binary", 0.5, "must be 0 or 1"), ((0, 5), 6.0, "must be between 0 and 5")):
        experiment = TreatmentExperiment(CoinFlip(0), outcome_space=space)
        experiment.assign()
        with pytest.raises(ValueError, match=message):
            experiment.update(value)
        assert experiment.pending == [0]


def test_the_space_is_kept_in_files(tmp_path):
    for space in ("binary", (-1, 4)):
        path = tmp_path / str(space)
        experiment = TreatmentExperiment(NonContextualNeyman(0), outcome_space=space, seed=0, journal=path)
        for t in range(30):
            experiment.assign()
            experiment.update(float(t % 7 == 0))
        experiment.close()
        loaded = TreatmentExperiment.load(path)
        assert loaded.outcome_space == experiment.outcome_space and loaded.estimate() == experiment.estimate()


def test_warnings_of_few_events():
    experiment = TreatmentExperiment(CoinFlip(0), seed=0)
    arms = []
    for t in range(30):
        arms.append(int(experiment.assign()[0]))
        experiment.update(float(t == 3))
    events = [float(arms[3] == arm) for arm in (0, 1)]  # propensities are 1/2
    with pytest.warns(UserWarning) as caught:
        experiment.estimate()
    texts = [str(each.message) for each in caught]
    assert any(f"arm 0 has {events[0]} and arm 1 has {events[1]} effective events" in text for text in texts)
    assert any("all 30 outcomes are 0 or 1" in text for text in texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment.estimate()
