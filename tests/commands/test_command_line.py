"""The command line: what it prints, what it leaves on the disk, how it refuses and how it resumes."""

import csv
import errno
import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from sbi_bed import __version__
from sbi_bed.__main__ import main
from sbi_bed.commands.options import parse
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
    assert (output / "discounting_participant_3.png").stat().st_size > 10_000
    assert main(options) == 0
    assert capsys.readouterr().out == text


def test_an_interview_is_interrupted_and_resumed(tmp_path, capsys, monkeypatch):
    options = ["discounting", "--interactive", "--questions", "4", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\nmaybe\nl\n"))
    assert main(options) == 130
    first = capsys.readouterr()
    assert "after 2 of 4 questions" in first.err and "Please answer" in first.out
    monkeypatch.setattr(sys, "stdin", io.StringIO("later\nnow\n"))
    assert main(options) == 0
    second = capsys.readouterr().out
    assert "Going on after 2 of 4" in second
    asked = [re.search(r"\[3/4\] (.+?)\?", text).group(1) for text in (first.out, second)]
    assert asked[0] == asked[1]


def test_each_participant_keeps_a_figure_and_a_posterior(tmp_path, capsys, monkeypatch):
    names = ("ann", "../b", "x" * 300, "x" * 301)
    for answers, name in zip(("n\nn\n", "l\nl\n", "n\nl\n", "l\nn\n"), names, strict=True):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answers))
        options = ["discounting", "--interactive", "--questions", "2", "--output", str(tmp_path)]
        assert main([*options, "--participant", name]) == 0
    text = capsys.readouterr().out
    medians = [float(median) for median in re.findall(r"discount rate k, per day\s+(\S+)", text)]
    tables = sorted(tmp_path.glob("*.csv"), key=lambda path: path.stat().st_mtime_ns)
    for path, median, answers in zip(tables, medians, ([0, 0], [1, 1], [0, 1], [1, 0]), strict=True):
        draws = np.genfromtxt(path, delimiter=",", names=True)
        assert np.median(draws["k_per_day"]) == pytest.approx(median, rel=0.01)
        with np.load(path.with_name(path.stem + ".npz")) as saved:
            np.testing.assert_allclose(saved["choice_noise_amount"], draws["choice_noise_amount"], rtol=1e-6)
            assert saved["outcomes"].flatten().tolist() == answers and saved["designs"].shape == (2, 3)
        assert path.with_name(path.stem + ".png").exists() and path.with_name(path.stem + ".jsonl").exists()
    assert len(list(tmp_path.iterdir())) == 4 * len(names) == len(set(tmp_path.iterdir()))


def test_what_a_resumed_interview_cannot_change_is_said(tmp_path, capsys, monkeypatch):
    options = ["discounting", "--interactive", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert main([*options, "--questions", "2"]) == 130
    assert "There is no right answer" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main([*options, "--questions", "2", "--seed", "0"]) == 130
    assert "is not used" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\nl\n"))
    assert main([*options, "--questions", "3", "--seed", "1"]) == 0
    text = capsys.readouterr().out
    assert "begun with --questions 2; now it has 3" in text and "Going on after 1 of 3" in text
    assert "--seed 0, which stays: --seed 1 is not used" in text
    assert len(re.findall(r"^\d+ .* days", text, re.MULTILINE)) == 3
    assert main([*options, "--questions", "2"]) == 0
    text = capsys.readouterr().out
    assert "has 3 answers already: --questions 2 is not used" in text and "finished interview" in text


def test_the_last_answer_can_be_corrected(tmp_path, capsys, monkeypatch):
    def answers_to(replies, folder):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{reply}\n" for reply in replies)))
        options = ["discounting", "--interactive", "--questions", "3", "--output", str(folder)]
        status = main(options)
        return status, capsys.readouterr().out

    status, text = answers_to("unnulluu", tmp_path / "a")  # stops after one answer, with two corrected
    assert status == 130 and "no answer to take back" in text and "type u to take the last answer back" in text
    assert answers_to(["l", "n", ""], tmp_path / "a")[0] == 0
    with np.load(tmp_path / "a" / "discounting_interview.npz") as saved:
        assert saved["outcomes"].flatten().tolist() == [0, 1, 0]
    assert answers_to("nln", tmp_path / "b")[0] == 0  # without a line for the confirmation
    tables = [(tmp_path / folder / "discounting_interview.csv").read_text() for folder in "ab"]
    assert tables[0] == tables[1]  # the same draws from the same answers


def test_questions_that_were_asked_twice_count_once(answers, tmp_path, capsys):
    header, *rows = answers.read_text().splitlines()
    answers.write_text("\n".join([header, *rows[:3], *rows[:3]]))
    options = ["discounting", "--answers", str(answers), "--participant", "3", "--output", str(tmp_path)]
    assert main([*options, "--questions", "3"]) == 2
    assert "answered 3 different questions" in capsys.readouterr().err
    assert main([*options, "--questions", "2"]) == 0


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
        (["discounting", "--answers", "{answers}", "--participant", "3", "--output", "{answers}"], "is a file"),
        (["discounting", "--interactive", "--output", "{answers}/deep/er"], "is a file"),
        (["--output", "{answers}"], "is a file"),
        (["--seed", "-1", "location"], "--seed must be from 0"),
        (["--seed", str(2**63)], "--seed must be from 0"),
        (["discounting", "--interactive", "--questions", "170"], "at most 169"),
        (["discounting", "--interactive", "--questions", "-1"], "at least 1"),
        (["discounting", "--interactive", "--participant", " "], "--participant is empty"),
        (["discounting", "--answers", "{folder}", "--participant", "3", "--output", "{folder}"], "is a directory"),
    ],
)
def test_wrong_input_ends_in_one_line(options, message, answers, tmp_path, capsys):
    places = {"{answers}": str(answers), "{folder}": str(tmp_path)}
    for name, path in places.items():
        options = [option.replace(name, path) for option in options]
    assert main(options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("sbi-bed: ")
    assert sorted(tmp_path.iterdir()) == [answers]


def test_a_read_only_folder_ends_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # nothing is read-only for root
    assert main(["--output", str(tmp_path / "new")]) == 2
    assert f"{tmp_path} is read-only" in capsys.readouterr().err


def test_a_full_disk_ends_in_one_line_and_loses_no_answer(tmp_path, capsys, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    options = ["discounting", "--interactive", "--questions", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    with monkeypatch.context() as context:
        context.setattr("sbi_bed.commands.results.write_atomically", full)
        assert main(options) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1 and "Errno" not in error and "interview.png cannot be read or written: no space" in error
    )
    assert main(options) == 0
    assert "holds a finished interview" in capsys.readouterr().out


def test_usage_errors_do_not_wait_for_torch():
    code = """
import sys
from sbi_bed.__main__ import main
statuses = [main(arguments) for arguments in (["--seed", "-1"], ["discounting"], ["--output", sys.executable])]
for arguments in (["--help"], ["--version"], ["--foo"], ["discounting", "--questions", "nan"], ["--output", ""]):
    try:
        main(arguments)
    except SystemExit as end:
        statuses.append(end.code)
assert statuses == [2, 2, 2, 0, 0, 2, 2, 2], statuses
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"sbi-bed {__version__}\n" in done.stdout


def test_a_reader_that_goes_away_leaves_no_traceback():
    code = "import sys, sbi_bed.__main__ as m; m.parse = lambda _: print('x' * 10**6); sys.exit(m.main())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pipe:
        pipe.stdout.close()
        assert (pipe.wait(60), pipe.stderr.read()) == (1, b"")


@pytest.mark.parametrize("options", [["--help"], ["discounting", "--help"], ["location", "--help"]])
def test_help(options, capsys):
    with pytest.raises(SystemExit) as end:
        main(options)
    text = capsys.readouterr().out
    assert end.value.code == 0 and "--seed" in text and "--output" in text


def test_options_before_the_subcommand_are_kept():
    options = parse(["--seed", "7", "discounting", "--interactive"])
    assert options.seed == 7
    assert parse(["--seed", "7", "discounting", "--interactive", "--seed", "8"]).seed == 8


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_main_job(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sbi_bed", "--output", str(tmp_path)], capture_output=True, text=True, check=True
    )
    gains = {name: float(low) for name, low in re.findall(r"^(random|static|DAD|Step-DAD)\s+(\S+)", done.stdout, re.M)}
    assert gains["random"] < gains["static"] < gains["DAD"] < gains["Step-DAD"]
    assert (tmp_path / "location.png").stat().st_size > 20_000
    draws = np.genfromtxt(tmp_path / "location.csv", delimiter=",", names=True)
    mean = re.search(r"^x\s+\S+\s+(\S+)", done.stdout, re.M).group(1)
    assert draws["x"].mean() == pytest.approx(float(mean), abs=1e-3)
