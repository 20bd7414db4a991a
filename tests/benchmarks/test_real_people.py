"""Adaptive questions on every recorded person, against recorded order and against ADOpy 0.4.1.

    pytest -m benchmark tests/benchmarks/test_real_people.py -s

Of 70 choices 30 are set aside at random; of the other 40, 15 are asked, and the posterior predicts the 30. Single
splits are noisy, so each person is averaged over 8 splits and tests are paired over people. SBI_BED_BENCHMARK_OUTPUT
names a folder for the table and the figure. ADOpy needs an old numpy, so it runs in an environment of its own:

    python3.9 -m venv adopy_env && adopy_env/bin/pip install adopy==0.4.1 "numpy<1.24"
    export SBI_BED_ADOPY_PYTHON=$PWD/adopy_env/bin/python

Both run in turn, person by person, each in one thread; times are CPU times (on an idle core, what a person waits).
Priors, stated beforehand, k per day and amounts in the file's unit: log k ~ N(-6, 2), lapse rate .01; for ADOpy a
logistic link and log temperature ~ N(log 20, 1); for ours a normal link, on whose scale the same prior reads
log temperature ~ N(log 20 + log 1.702, 1). ADOpy's score depends on its grids: with amounts divided by 100,
k = logspace(-5, 0, 50) and tau = linspace(0, 5, 11), uniform, it came as close to ours as -.3779 against -.3754.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recorded_people import NUM_ASKED, Session, paired, read_people, split_people

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

NUM_SPLITS = 8
ADOPY = os.environ.get("SBI_BED_ADOPY_PYTHON")
needs_adopy = pytest.mark.skipif(
    not ADOPY,
    reason='python3.9 -m venv adopy_env && adopy_env/bin/pip install adopy==0.4.1 "numpy<1.24", then '
    "SBI_BED_ADOPY_PYTHON=adopy_env/bin/python",
)


class AdopyPeer:
    """ADOpy in its own process, one person a line."""

    def __init__(self, python: str):
        script = Path(__file__).with_name("adopy_peer.py")
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | threads
        self.process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, split) -> dict:
        job = {
            "questions": split.questions.tolist(),
            "answers": split.answers[:, 0].int().tolist(),
            "predict": split.judged_questions.tolist(),
            "steps": NUM_ASKED,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ADOpy ended with exit status {self.process.wait()}.")
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


def log_scores(probability_delayed, split) -> np.ndarray:
    probability, answers = np.asarray(probability_delayed), split.judged_answers[:, 0].numpy()
    return np.log(np.where(answers == 1, probability, 1 - probability)).mean(-1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Mean log scores by number of questions, (splits, people, questions), and seconds for each question."""
    people = read_people()
    peer = AdopyPeer(ADOPY) if ADOPY else None
    scores: dict[str, list] = {"adaptive": [], "information": [], "ordered": []} | (
        {"adopy": [], "adopy all": []} if peer else {}
    )
    seconds: dict[str, list] = {"adaptive": [], "information": []} | ({"adopy": []} if peer else {})
    for seed in range(NUM_SPLITS):
        rows: dict[str, list] = {name: [] for name in scores}
        for split in split_people(people, seed):
            session = Session(split, objective="prediction")
            runs = {"adaptive": session.adaptive(), "information": Session(split).adaptive()}
            rows["ordered"].append(session.ordered().scores)
            for name, run in runs.items():
                rows[name].append(run.scores)
                seconds[name] += run.seconds
            if peer:
                answer = peer.ask(split)
                rows["adopy"].append(log_scores(answer["probability_delayed"]["adaptive"], split))
                rows["adopy all"].append([log_scores(answer["probability_delayed"]["all"], split)])
                seconds["adopy"] += answer["seconds"]
        for name, values in rows.items():
            scores[name].append(values)
    if peer:
        peer.close()
    result = {name: np.asarray(values) for name, values in scores.items()}, seconds
    folder = Path(os.environ.get("SBI_BED_BENCHMARK_OUTPUT") or tmp_path_factory.mktemp("real_people"))
    folder.mkdir(parents=True, exist_ok=True)
    table = results_table(*result)
    (folder / "real_people.md").write_text(table)
    draw(result[0], folder / "real_people.png")
    print(f"\n{table}\nwritten to {folder}", file=sys.stderr)
    return result


def results_table(scores, seconds) -> str:
    rows = {
        "greedy, predictive information": ("adaptive", NUM_ASKED),
        "greedy, information about θ": ("information", NUM_ASKED),
        "ADOpy 0.4.1": ("adopy", NUM_ASKED),
        "first 15 in recorded order": ("ordered", NUM_ASKED),
        "all 40 (ceiling)": ("ordered", -1),
        "all 40, ADOpy": ("adopy all", -1),
    }
    ordered = scores["ordered"][:, :, NUM_ASKED]
    lines = [
        "| 15 questions of 40 | mean log score | − recorded order | − ADOpy | CPU ms a question, median (mean) |",
        "|---|---|---|---|---|",
    ]
    for title, (name, place) in rows.items():
        if name not in scores:
            continue
        score = scores[name][:, :, place]
        cells = [f"{score.mean():.4f}", "{:+.4f} ± {:.4f}".format(*paired((score - ordered).mean(0)))]
        other = scores["adopy"][:, :, NUM_ASKED] if "adopy" in scores else None
        cells.append("" if other is None else "{:+.4f} ± {:.4f}".format(*paired((score - other).mean(0))))
        timed = seconds.get(name) if place == NUM_ASKED else None
        cells.append(f"{1e3 * np.median(timed):.2f} ({1e3 * np.mean(timed):.2f})" if timed else "")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + split_table(scores)


def split_table(scores) -> str:
    """Each split by itself: score, and paired differences in standard errors."""
    lines = [
        "| split | adaptive | ordered | all 40 | adaptive − ordered | adaptive − ADOpy |",
        "|---|---|---|---|---|---|",
    ]
    for seed in range(len(scores["adaptive"])):
        adaptive, ordered = (scores[name][seed][:, NUM_ASKED] for name in ("adaptive", "ordered"))
        cells = [f"{value.mean():.4f}" for value in (adaptive, ordered, scores["ordered"][seed][:, -1])]
        cells.append("{:+.4f} ± {:.4f}".format(*paired(adaptive - ordered)))
        other = scores["adopy"][seed][:, NUM_ASKED] if "adopy" in scores else None
        cells.append("" if other is None else "{:+.4f} ± {:.4f}".format(*paired(adaptive - other)))
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(scores, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    questions = np.arange(NUM_ASKED + 1)
    styles = {
        "adaptive": ("C0", "adaptive (sbi_bed)"),
        "adopy": ("C1", "adaptive (ADOpy 0.4.1)"),
        "ordered": ("C7", "recorded order"),
    }
    for name, (color, label) in styles.items():
        if name in scores:
            curve = scores[name][:, :, : NUM_ASKED + 1].mean(0)
            mean, error = curve.mean(0), curve.std(0, ddof=1) / np.sqrt(len(curve))
            axes.plot(questions, mean, color=color, marker="o", markersize=3.5, label=label)
            axes.fill_between(questions, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
    mean, error = paired(scores["ordered"][:, :, -1].mean(0))
    axes.axhline(mean, color="black", linestyle="--", linewidth=1, label="all 40 questions")
    axes.axhspan(mean - error, mean + error, color="black", alpha=0.1, linewidth=0)
    axes.set(xlabel="questions asked", ylabel="mean log score of 30 choices set aside", xlim=(0, NUM_ASKED))
    axes.set_title(
        f"{scores['ordered'].shape[1]} people, mean over {len(scores['ordered'])} splits (band: ± 1 s.e.)", fontsize=10
    )
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def test_adaptive_questions_predict_better_than_recorded_order(study):
    scores, _ = study
    adaptive, ordered, ceiling = (
        scores["adaptive"][:, :, NUM_ASKED],
        scores["ordered"][:, :, NUM_ASKED],
        scores["ordered"][:, :, -1],
    )
    mean, error = paired((adaptive - ordered).mean(0))
    assert mean >= 2.5 * error
    assert ordered.mean() < adaptive.mean() < ceiling.mean()


def test_every_split_by_itself(study):
    scores, _ = study
    for adaptive, ordered in zip(scores["adaptive"], scores["ordered"], strict=True):
        mean, error = paired(adaptive[:, NUM_ASKED] - ordered[:, NUM_ASKED])
        assert mean >= 2.5 * error


@needs_adopy
def test_no_worse_than_adopy(study):
    scores, _ = study
    mean, _ = paired((scores["adaptive"] - scores["adopy"])[:, :, NUM_ASKED].mean(0))
    assert mean >= 0


@needs_adopy
def test_a_third_of_adopys_time(study):
    _, seconds = study
    assert np.median(seconds["adaptive"]) <= np.median(seconds["adopy"]) / 3
