"""Files of recorded trials: read exactly, or refused with the line that is wrong."""

import math
from pathlib import Path

import pytest
import torch

from sbi_bed.simulators import read_trial

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"


def write(tmp_path, text):
    path = tmp_path / "trial.csv"
    path.write_text(text)
    return path


def test_reads_columns_by_name(tmp_path):
    path = write(tmp_path, "id,earned,treated,age\na,5,1,30\nb,2,0,41\nc,4,1,22\nd,4,0,35\ne,0,0,50\n")
    trial = read_trial(path, "treated", "earned", ["age"])
    assert trial.covariates.tolist() == [[30], [41], [22], [35], [50]] and trial.covariate_names == ("age",)
    assert trial.arm.tolist() == [1, 0, 1, 0, 0] and trial.propensity == pytest.approx(0.4) and len(trial) == 5
    assert trial.effect == pytest.approx(4.5 - 2)
    assert trial.effect_stderr == pytest.approx(math.sqrt(0.5 / 2 + 4 / 3))
    assert read_trial(path, "treated", "earned").covariates.shape == (5, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treated,wage\n1,2\n", r"lacks the column 'earned'; it has treated, wage"),
        ("treated,earned\n1,2\n0,\n", "line 3: earned must be a finite number, got ''"),
        ("treated,earned\n1,inf\n", "line 2: earned must be a finite number, got 'inf'"),
        ("treated,earned\n2,1\n", "line 2: treated must be 0 or 1, got '2'"),
        ("treated,earned\n1,1\n0,1\n0,2\n", "at least two units in each arm, it has 2 and 1"),
        ("", "lacks the column 'treated'"),
    ],
)
def test_refuses(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_trial(write(tmp_path, text), "treated", "earned")


def test_refuses_a_column_twice_and_no_file(tmp_path):
    with pytest.raises(ValueError, match="must be different columns"):
        read_trial(tmp_path / "none.csv", "a", "a")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_trial(tmp_path / "none.csv", "a", "b")


@pytest.mark.skipif(not DATA.exists(), reason="the folder of recorded data is not here")
def test_real_trials():
    training = read_trial(DATA / "nsw_job_training.csv", "treat", "re78")
    assert len(training) == 445 and training.effect == pytest.approx(1794.34, abs=0.01)  # Dehejia & Wahba 1999, table 3
    incentives = read_trial(DATA / "hiv_results_incentives.csv", "any", "got", ["distvct", "age"])
    assert incentives.effect == pytest.approx(0.45, abs=0.001) and torch.isfinite(incentives.covariates).all()
