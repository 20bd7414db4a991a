"""The command line: what it prints, what it leaves on the disk, how it refuses and how it resumes."""

import csv
import io
import re
import subprocess
import sys

import pytest
import torch

from sbi_bed.__main__ import main
from sbi_bed.simulators import delay_discounting_simulator


@pytest.fixture
def answers(tmp_path):
    """Forty simulated choices of one person with k = 0.01 per day and a choice noise of 5."""
    torch.manual_seed(1)
    amounts = torch.randint(10, 100, (40,)).float()
    questions = torch.stack([amounts, torch.full((40,), 100.0), torch.randint(1, 365, (40,)).float()], -1)
    chosen = delay_discounting_simulator(questions)(torch.tensor([0.01, 5.0]).log(), questions)
    path = tmp_path / "choices.csv"
    columns = ["participant", "trial", "amount_immediate", "amount_delayed", "delay_days", "chose_immediate"]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for trial, (question, later) in enumerate(zip(questions.tolist(), chosen[:, 0].tolist(), strict=True)):
            writer.writerow([3, trial, *question, int(1 - later)])
    return path


def test_discounting_on_recorded_answers(answers, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["discounting", "--answers", str(answers), "--participant", "3", "--output", str(output), "--seed", "2"]
    assert main(options) == 0
    text = capsys.readouterr().out
    low, high = map(float, re.search(r"discount rate k, per day\s+\S+\s+(\S+)\s+(\S+)", text).groups())
    assert low < 0.01 < high and high / low < 30  # the prior's own interval spans a factor of exp(4 · 2) = 2,500
    questions = re.findall(r"^\d+\s+(.+? days)", text, re.MULTILINE)
    assert len(questions) == 15 and len(set(questions)) == 15
    assert (output / "discounting.png").stat().st_size > 10_000
    assert main(options) == 0
    assert capsys.readouterr().out == text


def test_an_interview_is_interrupted_and_resumed(tmp_path, capsys, monkeypatch):
    options = ["discounting", "--interactive", "--questions", "4", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\nmaybe\nl\n"))
    assert main(options) == 130
    first = capsys.readouterr()
    assert "after 2 questions" in first.err and "Please answer" in first.out
    monkeypatch.setattr(sys, "stdin", io.StringIO("later\nnow\n"))
    assert main(options) == 0
    second = capsys.readouterr().out
    assert "Going on after 2 of 4" in second
    asked = [re.search(r"\[3/4\] (.+?)\?", text).group(1) for text in (first.out, second)]
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["discounting"], "give either --answers"),
        (["discounting", "--interactive", "--answers", "x.csv"], "give either --answers"),
        (["discounting", "--answers", "{answers}"], "--participant"),
        (["discounting", "--answers", "{answers}", "--participant", "9"], "no participant 9"),
        (["discounting", "--answers", "nowhere.csv", "--participant", "3"], "no file nowhere.csv"),
        (["discounting", "--answers", "{answers}", "--participant", "3", "--questions", "40"], "ask for fewer"),
        (["discounting", "--answers", "{answers}", "--participant", "3", "--questions", "0"], "at least 1"),
        (["discounting", "--answers", "{answers}", "--participant", "3", "--output", "{answers}"], "exists"),
    ],
)
def test_wrong_input_ends_in_one_line(options, message, answers, capsys):
    assert main([option.replace("{answers}", str(answers)) for option in options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("sbi-bed: ")


@pytest.mark.parametrize("options", [["--help"], ["discounting", "--help"], ["location", "--help"]])
def test_help(options, capsys):
    with pytest.raises(SystemExit) as end:
        main(options)
    text = capsys.readouterr().out
    assert end.value.code == 0 and "--seed" in text and "--output" in text


def test_options_before_the_subcommand_are_kept():
    from sbi_bed.__main__ import _parser

    options = _parser().parse_args(["--seed", "7", "discounting", "--interactive"])
    assert options.seed == 7


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_main_job(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sbi_bed", "--output", str(tmp_path)], capture_output=True, text=True, check=True
    )
    gains = {name: float(low) for name, low in re.findall(r"^(random|static|DAD|Step-DAD)\s+(\S+)", done.stdout, re.M)}
    assert gains["random"] < gains["static"] < gains["DAD"] < gains["Step-DAD"]
    assert (tmp_path / "location.png").stat().st_size > 20_000
