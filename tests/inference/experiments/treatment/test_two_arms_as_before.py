"""Files of two-arm experiments, written before there were experiments with more arms, give the same numbers."""

import json
import os
from pathlib import Path

import pytest
import torch

from sbi_bed.inference import TreatmentExperiment

RECORDED = Path(__file__).parent / "recorded"
EXPECTED = json.loads((RECORDED / "expected.json").read_text())


@pytest.mark.skipif("SEED_OFFSET" in os.environ, reason="the recorded arms were drawn with the recorded seed")
@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.filterwarnings("ignore:outcomes hardly vary")
def test_recorded_experiments(name):
    expected = EXPECTED[name]
    experiment = TreatmentExperiment.load(RECORDED / f"{name}.jsonl", journal=False)
    found = experiment.estimate()
    numbers = [found.ate, found.stderr, *found.interval, *found.confidence_sequence]
    assert numbers == pytest.approx(expected["estimate"], rel=1e-12) and found.num_units == expected["num_units"]
    assert found.joint_interval == found.interval
    again = TreatmentExperiment(experiment.policy, seed=experiment.seed, outcome_space=experiment.outcome_space)
    for entry in experiment._entries:  # run anew: the same arms and propensities
        if entry["event"] == "assign":
            arm, propensity = again.assign(torch.tensor(entry["covariates"], dtype=torch.float64), entry["units"])
            assert arm.tolist() == entry["arm"]
            assert propensity.tolist() == pytest.approx(entry["propensity"], rel=1e-12)
        elif entry["event"] == "outcome":
            again.update(entry["outcome"], entry["units"])
        else:
            again.withdraw(entry["units"])
    for run in (experiment, again):
        arm, propensity = run.assign([[0.2], [0.7]])
        assert arm.tolist() == expected["next_arm"]
        assert propensity.tolist() == pytest.approx(expected["next_propensity"], rel=1e-12)
        for row, before in zip(run.log.predicted[-2:].tolist(), expected["predicted"], strict=True):
            assert row == pytest.approx(before, rel=1e-12)
        assert run.running().stderr[-5:].tolist() == pytest.approx(expected["running"], rel=1e-12)
