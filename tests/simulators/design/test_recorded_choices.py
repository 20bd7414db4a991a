"""Reading recorded choices, and the experiment built from them."""

from __future__ import annotations

import math

import pytest
import torch
from recorded_people import NUM_ASKED, Session, paired, read_people, split_people

from sbi_bed.policies import GreedyPolicy
from sbi_bed.simulators.design.recorded_choices import delay_discounting_simulator, read_choices, read_participant

HEADER = "participant,trial,amount_immediate,amount_delayed,delay_days,chose_immediate,response_time_s\n"
ROWS = [
    "3,1,41,204,7.0,0,2.5\n",
    "3,0,137,187,7.0,1,3.9\n",
    "12,0,20,50.5,30,0,1.0\n",
    "3,2,10,20,365,1,\n",
]


@pytest.fixture
def write(tmp_path):
    def write(text: str, encoding: str = "utf-8"):
        path = tmp_path / "choices.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_reads_each_person_in_order_of_trials(write, encoding):
    people = read_choices(write(HEADER + "".join(ROWS), encoding))
    assert list(people) == ["3", "12"]
    three = people["3"]
    assert len(three) == 3
    assert three.questions.tolist() == [[137.0, 187.0, 7.0], [41.0, 204.0, 7.0], [10.0, 20.0, 365.0]]
    assert three.chose_delayed.tolist() == [[0.0], [1.0], [0.0]]
    assert torch.equal(read_participant(write(HEADER + "".join(ROWS)), 12).questions, people["12"].questions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("delay_days", "delay") + ROWS[0], "lacks the column 'delay_days'"),
        ("", "lacks the column 'participant'"),
        (HEADER, "has no choices"),
        (HEADER + ROWS[0] + "3,1,nan,204,7.0,0,1\n", r"line 3: amount_immediate must be a finite number, got 'nan'"),
        (HEADER + "3,1,41,inf,7.0,0,1\n", "line 2: amount_delayed must be a finite number"),
        (HEADER + "3,1,41,much,7.0,0,1\n", "got 'much'"),
        (HEADER + "3,1,41\n", "amount_delayed must be a finite number, got None"),
        (HEADER + "3,1,41,204,7.0,2,1\n", "chose_immediate must be 0 or 1, got '2'"),
        (HEADER + "3,1,41,204,-7.0,0,1\n", "delay_days must not be negative"),
        (HEADER + "3,1,-41,204,7.0,0,1\n", "line 2: amount_immediate must not be negative, got '-41'"),
        (HEADER + "3,1,41,-204,7.0,0,1\n", "amount_delayed must be positive, got '-204'"),
        (HEADER + "3,1,41,0,7.0,0,1\n", "amount_delayed must be positive"),
        (HEADER + " ,1,41,204,7.0,0,1\n", "line 2: participant is empty"),
    ],
)
def test_bad_files(write, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_choices(write(text))
    assert "\n" not in str(caught.value)


def test_missing_file_and_unknown_participant(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_choices(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="no participant 4; it has 2: 3, 12"):
        read_participant(write(HEADER + "".join(ROWS)), 4)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="not a CSV file"):
        read_choices(tmp_path / "binary.csv")


def test_simulator_by_hand():
    simulator = delay_discounting_simulator([[20.0, 50.0, 30.0], [45.0, 50.0, 30.0]])
    theta = torch.tensor([math.log(0.01), math.log(10.0)])
    value = (50 / 1.3 - 20) / 10
    delayed = 0.01 + 0.98 * 0.5 * math.erfc(-value / math.sqrt(2))
    log_p = simulator.log_likelihood(theta, simulator.design_space.candidates[0], torch.tensor([[1.0], [0.0]]))
    torch.testing.assert_close(log_p.exp(), torch.tensor([delayed, 1 - delayed]))
    outcomes = simulator(theta.expand(20_000, 2), simulator.design_space.candidates[0])
    assert abs(outcomes.mean() - delayed) < 4 * math.sqrt(delayed * (1 - delayed) / 20_000)
    # However large the delay or small the temperature, the lapse bounds every surprise.
    extreme = simulator.log_likelihood(torch.tensor([5.0, -20.0]), torch.tensor([20.0, 50.0, 1e5]), torch.ones(1))
    torch.testing.assert_close(extreme.exp(), torch.tensor(0.01))


def test_question_tables_are_probabilities():
    simulator = delay_discounting_simulator(torch.rand(40, 3) * 100)
    policy = GreedyPolicy(simulator)
    policy(torch.zeros(0, 5))
    torch.testing.assert_close(policy._table.probability.sum(0), torch.ones(40, 2048))


def test_adaptive_questions_predict_real_people_better():
    """40 people, one split; tests/benchmarks/test_real_people.py has all, eight splits, and ADOpy."""
    runs = []
    for split in split_people(read_people()[::5][:40], seed=0):
        session = Session(split, objective="prediction", num_particles=1024)
        adaptive = session.adaptive()
        assert len(set(adaptive.order)) == NUM_ASKED
        ordered = session.ordered()
        runs.append((adaptive.scores[-1], ordered.scores[NUM_ASKED], ordered.scores[-1]))
    adaptive, ordered, ceiling = torch.tensor(runs, dtype=torch.float64).numpy().T
    mean, error = paired(adaptive - ordered)
    assert mean > error
    assert ordered.mean() < adaptive.mean() < ceiling.mean()
