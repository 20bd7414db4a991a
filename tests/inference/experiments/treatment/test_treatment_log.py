"""The log as a history, as scores and as a table."""

import builtins
import csv

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_bed.inference.experiments.treatment.a2ipw import a2ipw_scores
from sbi_bed.inference.experiments.treatment.log import TreatmentLog


@pytest.fixture
def log():
    return TreatmentLog(
        covariates=torch.tensor([[0.1, 2.0], [0.3, 4.0], [0.5, 6.0]], dtype=torch.float64),
        arm=torch.tensor([1.0, 0.0, 1.0]),
        outcome=torch.tensor([7.5, 0.0, -1.0]),
        propensity=torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64),
        predicted=torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]),
        observed=torch.tensor([True, False, True]),
        units=["ann", "bob", 7],
    )


def test_history_has_the_mask_last(log):
    assert log.history.tolist() == [[0.1, 2.0, 1, 7.5, 1], [0.3, 4.0, 0, 0, 0], [0.5, 6.0, 1, -1, 1]]


def test_scores_are_of_observed_units(log):
    seen = log.observed
    expected = a2ipw_scores(log.arm[seen], log.outcome[seen], log.propensity[seen], log.predicted[seen])
    assert torch.equal(log.scores, expected) and log.estimate().num_units == 2
    assert log.estimate().ate == pytest.approx(float(expected.mean()))


def test_csv_reads_back(log, tmp_path):
    log.to_csv(tmp_path / "log.csv", ["age", "dose"])
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["t", "unit", "age", "dose", "arm", "outcome", "propensity", "f0", "f1"]
    assert [row["outcome"] for row in rows] == ["7.5", "", "-1.0"] and [row["unit"] for row in rows] == [
        "ann",
        "bob",
        "7",
    ]
    assert [float(row["age"]) for row in rows] == [0.1, 0.3, 0.5] and [row["arm"] for row in rows] == ["1", "0", "1"]


@given(st.integers(1, 3), st.data())
@settings(max_examples=50, deadline=None)
def test_any_log_reads_back_bit_for_bit_from_its_csv(tmp_path_factory, dim, data):
    numbers, rows = st.floats(allow_nan=False, allow_infinity=False), data.draw(st.integers(1, 4))

    def table(values, *shape):
        size = torch.Size(shape).numel()
        return torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float64).reshape(
            shape
        )

    observed = table(st.booleans(), rows).bool()
    columns = {
        "covariates": table(numbers, rows, dim),
        "arm": table(st.integers(0, 1), rows),
        "outcome": table(numbers, rows) * observed,
        "propensity": table(st.floats(0.01, 0.99), rows),
        "predicted": table(numbers, rows, 2),
    }
    log = TreatmentLog(**columns, observed=observed)
    assert torch.equal(log.history, torch.cat([log.covariates, log.history[:, dim:]], -1))
    assert torch.equal(log.history[:, -1], observed.double()) and torch.equal(log.history[:, dim], log.arm)
    path = tmp_path_factory.getbasetemp() / "log.csv"
    log.to_csv(path)
    with open(path, newline="") as file:
        read = list(csv.DictReader(file))
    for name, wanted in [
        *((f"x{i + 1}", log.covariates[:, i]) for i in range(dim)),
        ("arm", log.arm),
        ("propensity", log.propensity),
        ("f0", log.predicted[:, 0]),
        ("f1", log.predicted[:, 1]),
    ]:
        assert [float(row[name]) for row in read] == wanted.tolist()
    outcomes = [float(row["outcome"]) if row["outcome"] else None for row in read]
    assert outcomes == [y if seen else None for y, seen in zip(log.outcome.tolist(), observed.tolist(), strict=True)]


def test_pandas(log):
    pytest.importorskip("pandas")
    frame = log.to_pandas()
    assert list(frame.columns) == ["t", "unit", "x1", "x2", "arm", "outcome", "propensity", "f0", "f1"]
    assert frame["outcome"].isna().tolist() == [False, True, False]


def test_without_pandas(log, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match="to_pandas needs pandas"):
        log.to_pandas()


def test_errors(log):
    batch = TreatmentLog(*(torch.stack([part, part]) for part in list(vars(log).values())[:6]))
    with pytest.raises(ValueError, match="only a single experiment is a table"):
        batch.columns()
    with pytest.raises(ValueError, match="need every outcome"):
        _ = batch.scores
    with pytest.raises(IndexError, match="single experiment"):
        log[0]
    assert torch.equal(batch[1].scores, log.scores)
    for names in (["age"], ["age", "arm"], ["age", "age"]):
        with pytest.raises(ValueError, match="covariate_names must be 2 different names"):
            log.columns(names)
    with pytest.raises(ValueError, match="at least 2 observed outcomes, there are 1"):
        TreatmentLog(*(part[:2] for part in list(vars(log).values())[:6])).estimate()
