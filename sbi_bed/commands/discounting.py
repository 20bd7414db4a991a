"""Adaptive delay discounting: on a person's recorded answers, or with the person at the keyboard."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inference import AdaptiveExperiment
from ..objectives import log_likelihood_of_history
from ..policies import GreedyPolicy
from ..simulators import delay_discounting_simulator, read_participant
from ..utils.seeding import seeded
from ..utils.text_table import format_table

__all__ = ["run"]

# Amounts and delays of the questions that --interactive chooses among: a delayed 100 in whole currency units.
IMMEDIATE = (5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98)
DELAYED = 100
DELAYS = (1, 2, 4, 7, 14, 30, 60, 120, 180, 365, 730, 1460, 3650)


def run(options: argparse.Namespace) -> None:
    """Run the experiment, infer, print tables and write `discounting.png`.

    Raises:
        ValueError: If the options do not go together, or the file or its participant are not as they should be.
    """
    if options.interactive == (options.answers is not None):
        raise ValueError("give either --answers CSV --participant N, or --interactive.")
    if options.questions < 1:
        raise ValueError(f"--questions must be at least 1, got {options.questions}.")
    output = Path(options.output)
    if options.interactive:
        output.mkdir(parents=True, exist_ok=True)
        questions = torch.tensor([[now, DELAYED, days] for now in IMMEDIATE for days in DELAYS], dtype=torch.float32)
        _interview(questions, options, output)
        return
    if options.participant is None:
        raise ValueError("--answers needs --participant, whose choices to use.")
    choices = read_participant(options.answers, options.participant)
    if options.questions >= len(choices):
        raise ValueError(f"participant {options.participant} answered {len(choices)} questions: ask for fewer.")
    output.mkdir(parents=True, exist_ok=True)
    journal = output / f"discounting_participant_{choices.participant}.jsonl"
    journal.unlink(missing_ok=True)
    simulator = delay_discounting_simulator(choices.questions)
    experiment = _experiment(simulator, options, journal)

    def recorded(design: Tensor) -> float:
        return float(choices.chose_delayed[(choices.questions == design).all(-1).nonzero()[0, 0], 0])

    _ask(experiment, recorded)
    draws = _conclude(experiment, options.seed, output)
    _compare(simulator, choices, experiment, draws)


def _experiment(simulator: Any, options: argparse.Namespace, journal: Path) -> AdaptiveExperiment:
    policy = GreedyPolicy(simulator, objective="prediction", seed=options.seed)
    # Among candidates any positive distance means that no question comes twice.
    return AdaptiveExperiment(policy, simulator, options.questions, journal, seed=options.seed, min_distance=1e-6)


def _ask(experiment: AdaptiveExperiment, answer: Callable[[Tensor], float]) -> None:
    while not experiment.done:
        design = experiment.next_design()
        experiment.record([answer(design)])


def _interview(questions: Tensor, options: argparse.Namespace, output: Path) -> None:
    """Ask at the keyboard; go on with the journal where one is unfinished."""
    journal = output / "discounting_interview.jsonl"
    simulator = delay_discounting_simulator(questions)
    if journal.exists():
        experiment = AdaptiveExperiment.load(journal, simulator)
        if experiment.done:
            print(f"{journal} holds a finished interview; give another --output for a new one.")
        else:
            print(f"Going on after {experiment.num_trials} of {experiment.horizon} questions.")
    else:
        experiment = _experiment(simulator, options, journal)
    try:
        _ask(experiment, lambda design: _answer_at_keyboard(design, experiment))
    except (KeyboardInterrupt, EOFError):
        print(
            f"\nStopped after {experiment.num_trials} questions; the same command goes on from here.", file=sys.stderr
        )
        raise
    _conclude(experiment, options.seed, output)


def _answer_at_keyboard(design: Tensor, experiment: AdaptiveExperiment) -> float:
    now, later, days = (f"{value:g}" for value in design.tolist())
    question = f"[{experiment.num_trials + 1}/{experiment.horizon}] (n) {now} now, or (l) {later} in {days} days? "
    while True:
        reply = input(question).strip().lower()
        if reply in ("n", "now", "l", "later"):
            return float(reply[0] == "l")
        print("Please answer n (now) or l (later).")


def _conclude(experiment: AdaptiveExperiment, seed: int, output: Path) -> Tensor:
    """Infer, print what was asked and found, draw; returns posterior draws (N, 2)."""
    rows = [
        (str(number), f"{now:g} now or {later:g} in {days:g} days", "later" if chose else "now")
        for number, ((now, later, days), (chose,)) in enumerate(
            zip(experiment.designs.tolist(), experiment.outcomes.tolist(), strict=True), 1
        )
    ]
    print(format_table(("", "question", "answer"), rows) + "\n")
    with seeded(seed):
        posterior = experiment.posterior()
        draws = posterior.sample((4000,))
    names = ("discount rate k, per day", "choice noise, amount")
    rows = []
    for name, values in zip(names, draws.exp().T, strict=True):
        low, middle, high = values.quantile(torch.tensor([0.025, 0.5, 0.975])).tolist()
        rows.append((name, f"{middle:.3g}", f"{low:.3g}", f"{high:.3g}"))
    print(format_table(("posterior", "median", "2.5 %", "97.5 %"), rows))
    figure = output / "discounting.png"
    _draw(figure, experiment, draws)
    print(f"\nFigure: {figure}")
    return draws


def _compare(simulator: Any, choices: Any, experiment: AdaptiveExperiment, draws: Tensor) -> None:
    """How well these questions, and as many in recorded order, predict the choices that neither used."""
    num = experiment.num_trials
    asked = (choices.questions.unsqueeze(1) == experiment.designs).all(-1).any(1)
    rest = asked.logical_not()
    rest[:num] = False
    if not rest.any():
        return
    from ..inference import likelihood_posterior
    from ..utils.history import pack_history

    with seeded(0):
        ordered = likelihood_posterior(
            simulator, pack_history(choices.questions[:num], choices.chose_delayed[:num]), sample_with="smc"
        ).sample((4000,))
    scores = [
        log_likelihood_of_history(simulator, theta, choices.questions[rest], choices.chose_delayed[rest])
        .logsumexp(0)
        .sub(math.log(len(theta)))
        .mean()
        for theta in (draws, ordered)
    ]
    print(
        f"\nMean log score of the {int(rest.sum())} other choices: {scores[0]:.3f} from these {num} questions, "
        f"{scores[1]:.3f} from the first {num} in recorded order (higher is better)."
    )


def _draw(path: Path, experiment: AdaptiveExperiment, draws: Tensor) -> None:
    import matplotlib.pyplot as plt

    from ..analysis import plot_discounting

    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    plot_discounting(experiment.history, draws[:, 0], ax=axes)
    figure.savefig(path, dpi=130)
    plt.close(figure)
