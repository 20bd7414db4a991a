"""The first units, about which nothing is known: no estimate depends on the unit of outcomes, and none is biased."""

import pytest
import torch
from sklearn.linear_model import LinearRegression

from sbi_bed.diagnostics import run_treatment_study
from sbi_bed.inference import TreatmentExperiment
from sbi_bed.inference.experiments.treatment.log import TreatmentLog
from sbi_bed.policies import (
    CoinFlip,
    ExperimenterTransformer,
    GradientExperimenter,
    MixtureOfExperimenters,
    NeymanTeacher,
    NonContextualNeyman,
    OracleNeyman,
)
from sbi_bed.simulators import two_arm_benchmark

UNITS = [(1000.0, 7.0), (0.001, 0.0), (1.0, 1e7), (-2.0, 3.0)]  # new outcome = scale · outcome + shift
MAKERS = {
    "coin": lambda: CoinFlip(1),
    "arms": lambda: NonContextualNeyman(1),
    "teacher": lambda: NeymanTeacher(1),
    "gradient": lambda: GradientExperimenter(1),
    "transformer": lambda: ExperimenterTransformer(1, hidden_dim=16, num_layers=1, num_heads=2),
    "mixture": lambda: MixtureOfExperimenters([NeymanTeacher(1, 0.5), GradientExperimenter(1, 4.0)]),
    "callable": lambda: lambda history, x: 0.4,
}


def trial(policy, scale=1.0, shift=0.0, batch=1, late=0, num=30, binary=False, **options):
    """A trial of 30 units, assigned in batches, with outcomes in other units, of arm 1 some units late."""
    generator = torch.Generator().manual_seed(3)
    x, noise, chance = (torch.rand(num, 1, generator=generator, dtype=torch.float64) for _ in range(3))
    experiment, arms = TreatmentExperiment(policy, 1, seed=5, **options), []

    def tell(t):
        plain = 1 + x[t] + 2 * arms[t] + (1 + arms[t]) * (noise[t] - 0.5)
        plain = (chance[t] < 0.3 + 0.4 * arms[t]).double() if binary else plain
        experiment.update(float(scale * plain + shift), unit=t)

    for first in range(0, num, batch):
        arm, _ = experiment.assign(x[first : first + batch])
        arms += arm.tolist()
        for t in range(first + batch):
            if t in experiment.pending and t + late * arms[t] < first + batch:
                tell(t)
    return experiment


CASES = [(name, {}, binary) for name in MAKERS for binary in (False, True)]
CASES += [(name, {"batch": 15}, False) for name in MAKERS]
CASES += [
    (name, how, False) for name in ("coin", "callable") for how in ({"late": 6}, {"nuisance": LinearRegression()})
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "how", "binary"), CASES, ids=str)
def test_other_units_change_nothing(name, how, binary):
    policy = MAKERS[name]()
    plain = trial(policy, binary=binary, **how)
    found = plain.estimate()
    for scale, shift in UNITS[: 3 if name == "transformer" else 4]:  # a net need not be the same for −y
        other = trial(policy, scale, shift, binary=binary, **how)
        again, precision = other.estimate(), 1e-9 if shift < 1e6 else 1e-6
        torch.testing.assert_close(other.log.propensity, plain.log.propensity, rtol=0, atol=1e-5)
        # Nets compute in float32: there propensities differ in the last digit, and so does what follows from them.
        tolerance = 1e-4 if name in ("transformer", "gradient", "mixture") else precision
        assert again.ate / scale == pytest.approx(found.ate, abs=tolerance)
        assert again.stderr / abs(scale) == pytest.approx(found.stderr, rel=10 * tolerance)
        ends = sorted(end / scale for end in again.confidence_sequence)
        assert ends == pytest.approx(found.confidence_sequence, abs=20 * tolerance)


def test_what_is_known_from_the_start_is_used():
    for policy in (NeymanTeacher(0, outcome_centre=0.0, outcome_scale=2.0), OracleNeyman(two_arm_benchmark())):
        log = run_treatment_study(two_arm_benchmark(), policy, 20, 3, seed=0).log
        assert log.scores.shape == (3, 20)
    log = run_treatment_study(two_arm_benchmark(), NonContextualNeyman(0), 20, 3, seed=0).log
    assert log.scores.shape == (3, 19) and log[0].scores.shape == (19,)


@pytest.mark.parametrize("num_blind", [1, 10, 30])
def test_units_that_come_together_have_no_bias(num_blind):
    """Outcomes about 50, effect ½: errors have mean 0 and the variance that is claimed."""
    num, generator = 1000, torch.Generator().manual_seed(0)
    noise, chance = (torch.rand(2, num, 30, generator=generator, dtype=torch.float64) - 0.5).unbind(0)
    arm = (chance > 0).double()
    outcome, half = 50 + 0.5 * arm + 6 * (1 + arm) * noise, torch.full_like(arm, 0.5)
    predicted = torch.stack([torch.full_like(arm, 50.0), torch.full_like(arm, 50.5)], -1)
    predicted[:, :num_blind] = 0.0
    seen = torch.ones(num, 30, dtype=torch.bool)
    log = TreatmentLog(arm.unsqueeze(-1), arm, outcome, half, predicted, seen, num_blind=num_blind)
    found = log.estimate()
    error = found.ate - 0.5
    assert found.num_units.eq(29).all() and abs(float(error.mean())) < 3 * float(error.std()) / num**0.5
    ratio = float(error.var() / found.stderr.square().mean())
    assert abs(ratio - 1) < 4 * (2 / num) ** 0.5
    assert float(found.stderr.median()) < 1.5  # about 18 with predictions of 0
    live = torch.stack([log[i].scores.mean() for i in range(5)])
    torch.testing.assert_close(live, found.ate[:5])


def test_without_an_outcome_before_there_is_no_estimate():
    experiment = TreatmentExperiment(CoinFlip(0), seed=0)
    experiment.assign()
    experiment.update(3.0)
    with pytest.raises(ValueError, match="an estimate needs a unit with an outcome before it"):
        experiment.running()
