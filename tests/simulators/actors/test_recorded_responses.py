"""Reading stimuli and responses, and what comes of bad files."""

import csv

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sbi_bed.neural_nets import ResponseEmbedding
from sbi_bed.simulators import (
    BayesianActor,
    NormalPerception,
    OptimalActor,
    QuadraticCost,
    pack_responses,
    read_responses,
)
from sbi_bed.utils import unpack_history

HEADER = "subject,stimulus,response,sigma,age\n"
ROWS = ["ann,1.0,1.1,0.1,30\n", "12,2.5,1.7,0.2,\n", "ann,3.0,2.6,0.2,30\n"]


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "responses.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_each_person_in_order_of_the_file(write):
    people = read_responses(write(HEADER + "".join(ROWS)))
    assert list(people) == ["ann", "12"] and len(people["ann"]) == 2
    assert torch.equal(people["ann"].stimuli, torch.tensor([[1.0], [3.0]]))
    assert torch.equal(people["12"].history, torch.tensor([[2.5, 1.7, 1.0]]))
    x = pack_responses(people, horizon=3)
    assert x.shape == (2, 3, 3) and x[..., -1].sum(-1).tolist() == [2, 1]
    designs, _ = unpack_history(x, 1)
    assert torch.equal(designs[0], people["ann"].stimuli)
    assert torch.equal(pack_responses([people["12"]]), people["12"].history.unsqueeze(0))


POSITIVE = st.floats(2**-20, 2**20, width=32)
TRIALS = st.tuples(st.text("abcé, \"'", min_size=1, max_size=3), POSITIVE, POSITIVE, POSITIVE)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TRIALS.filter(lambda row: row[0].strip()), min_size=1, max_size=12), st.integers(0, 3))
def test_any_table_comes_back_exactly(tmp_path, rows, extra):
    """From a file by Python's own writer, through reading and packing, to each person's numbers in order."""
    path = tmp_path / "responses.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("subject", "stimulus", "sigma", "response"), *rows])
    people = read_responses(path, noise="sigma")
    own = {}
    for who, *numbers in rows:
        own.setdefault(who.strip(), []).append(numbers)
    assert list(people) == list(own)
    horizon = extra + max(map(len, own.values()))
    x = pack_responses(people, horizon)
    assert x.shape == (len(own), horizon, 4) and (x[x[..., -1] == 0] == 0).all()
    for packed, numbers in zip(x, own.values(), strict=True):
        assert packed[: len(numbers)].tolist() == [[*row, 1.0] for row in numbers] and packed[len(numbers) :].sum() == 0


def test_noise_levels_are_second_designs(write):
    people = read_responses(write(HEADER + "".join(ROWS)), noise="sigma")
    assert torch.equal(people["ann"].stimuli, torch.tensor([[1.0, 0.1], [3.0, 0.2]]))
    simulator = BayesianActor(OptimalActor(QuadraticCost()), noise_range=(0.05, 0.4))
    assert simulator.log_likelihood(simulator.prior.sample(), people["ann"].stimuli, people["ann"].responses).shape == (
        2,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEADER.replace("response", "answer") + ROWS[0],
            "lacks the column 'response'; it has subject, stimulus, answer",
        ),
        ("", "lacks the column 'subject'"),
        (HEADER, "has no trials in it"),
        (HEADER + "ann,nan,1.1,0.1,30\n", "line 2: stimulus must be a finite number, got 'nan'"),
        (HEADER + "ann,1.0,much,0.1,30\n", "response must be a finite number, got 'much'"),
        (HEADER + "ann,1.0\n", "response must be a finite number, got None"),
        (HEADER + ",1.0,1.1,0.1,30\n", "line 2: subject must name the person"),
    ],
)
def test_bad_files(write, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_responses(write(text))
    assert "\n" not in str(caught.value)


def test_negative_numbers_are_read_as_normal_perception_has_them(write):
    """Read, packed, and their likelihood by hand: r | s is normal. Under log-normal perception they are refused by name."""
    text = HEADER + "ann,-1.0,0.2,0.1,30\nann,0.0,-0.4,0.1,30\nann,2.0,1.5,0.1,30\n"
    people = read_responses(write(text))
    assert torch.equal(people["ann"].history[:, :2], torch.tensor([[-1.0, 0.2], [0.0, -0.4], [2.0, 1.5]]))
    simulator = BayesianActor(OptimalActor(QuadraticCost(), NormalPerception()), fixed={"sigma": 0.5})
    theta = torch.tensor([1.0, 0.3, 0.4]).double()
    found = simulator.log_likelihood(theta, people["ann"].stimuli, people["ann"].responses)
    weight = 1 / (1 + 0.25)
    mean = weight * people["ann"].stimuli[:, 0].double() + (1 - weight) * 0.3
    sd = (weight**2 * 0.25 + 0.16) ** 0.5
    exact = torch.distributions.Normal(mean, sd).log_prob(people["ann"].responses[:, 0].double())
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)
    positive = BayesianActor(OptimalActor(QuadraticCost()))
    with (
        pytest.raises(ValueError, match="stimuli must be positive"),
        pytest.warns(RuntimeWarning, match="stimulus = -1"),
    ):
        positive.log_likelihood(positive.prior.sample(), people["ann"].stimuli, people["ann"].responses.abs())
    with pytest.raises(ValueError, match="positive where perception is log-normal"):
        ResponseEmbedding(positive)(people["ann"].history.unsqueeze(0))
    with pytest.raises(ValueError, match=r"line 2: sigma must be positive, got '-0\.1'"):
        read_responses(write(HEADER + "ann,-1.0,0.2,-0.1,30\n"), noise="sigma")


def test_other_errors(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_responses(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="must be different columns"):
        read_responses(write(HEADER + ROWS[0]), noise="stimulus")
    with pytest.raises(ValueError, match="no responses to pack"):
        pack_responses({})
    with pytest.raises(TypeError, match="people must be RecordedResponses"):
        pack_responses([1])
