"""Adaptive delay discounting: on a person's recorded answers, or with the person at the keyboard."""

from __future__ import annotations

import argparse
import math
import sys
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
from .options import DELAYED, DELAYS, IMMEDIATE
from .results import as_file_name, save_results

__all__ = ["run"]

NUM_QUESTIONS = 15
INSTRUCTION = (
    "Which of the two amounts of money would you rather have? There is no right answer. Type n (now) or l (later) and\n"
    "press Enter; u takes the last answer back. You may stop with Ctrl-C: the same command goes on from there."
)


def run(options: argparse.Namespace) -> None:
    """Run the experiment, infer, print tables, and save figure and posterior beside the journal.

    Raises:
        ValueError: If the file of answers or its participant are not as they should be.
        OSError: If the output cannot be written.
    """
    if options.interactive:
        _interview(options)
    else:
        _rehearse(options)


def _rehearse(options: argparse.Namespace) -> None:
    """Choose among the questions that a participant answered, as if the answers were not known yet."""
    choices = read_participant(options.answers, options.participant)
    num_different = len(choices.questions.unique(dim=0))
    if _num_questions(options) >= num_different:
        raise ValueError(
            f"participant {choices.participant} answered {num_different} different questions: ask for fewer, "
            "with --questions."
        )
    stem = _stem(options, f"discounting_participant_{as_file_name(choices.participant)}")
    journal = Path(f"{stem}.jsonl")
    journal.unlink(missing_ok=True)
    simulator = delay_discounting_simulator(choices.questions)
    experiment = _experiment(simulator, options, journal)
    while not experiment.done:
        design = experiment.next_design()
        experiment.record(choices.chose_delayed[(choices.questions == design).all(-1).nonzero()[0, 0]])
    draws = _conclude(experiment, stem)
    _compare(simulator, choices, experiment, draws)


def _interview(options: argparse.Namespace) -> None:
    """Ask at the keyboard; go on with the journal where one is unfinished."""
    name = "" if options.participant is None else f"_{as_file_name(options.participant.strip())}"
    stem = _stem(options, f"discounting_interview{name}")
    journal = Path(f"{stem}.jsonl")
    questions = torch.tensor([[now, DELAYED, days] for now in IMMEDIATE for days in DELAYS], dtype=torch.float32)
    simulator = delay_discounting_simulator(questions)
    if journal.exists():
        experiment = AdaptiveExperiment.load(journal, simulator)
        _compare_with_options(experiment, options)
        if experiment.done:
            print(f"{journal} holds a finished interview; give another --participant or --output for a new one.")
        else:
            print(f"Going on after {experiment.num_trials} of {experiment.horizon} questions.")
    else:
        experiment = _experiment(simulator, options, journal)
    try:
        _ask(experiment)
    except (KeyboardInterrupt, EOFError):
        experiment.close()
        done = f"{experiment.num_trials} of {experiment.horizon} questions"
        print(f"\nStopped after {done}; the same command goes on from here.", file=sys.stderr)
        raise
    _conclude(experiment, stem)


def _compare_with_options(experiment: AdaptiveExperiment, options: argparse.Namespace) -> None:
    """Say what differs from the options that an interview was begun with, and what becomes of it."""
    if options.seed not in (None, experiment.seed):
        print(f"It was begun with --seed {experiment.seed}, which stays: --seed {options.seed} is not used.")
    begun, wanted, answered = experiment.horizon, options.questions, experiment.num_trials
    if wanted in (None, begun):
        return
    if wanted < answered:
        print(f"It has {answered} answers already: --questions {wanted} is not used.")
    else:
        experiment.change_horizon(wanted, reason="--questions")
        print(f"It was begun with --questions {begun}; now it has {wanted}.")


def _num_questions(options: argparse.Namespace) -> int:
    return NUM_QUESTIONS if options.questions is None else options.questions


def _stem(options: argparse.Namespace, name: str) -> Path:
    options.output.mkdir(parents=True, exist_ok=True)
    return options.output / name


def _experiment(simulator: Any, options: argparse.Namespace, journal: Path) -> AdaptiveExperiment:
    seed = options.seed or 0
    policy = GreedyPolicy(simulator, objective="prediction", seed=seed)
    # Among candidates any positive distance means that no question comes twice.
    return AdaptiveExperiment(policy, simulator, _num_questions(options), journal, seed=seed, min_distance=1e-6)


def _ask(experiment: AdaptiveExperiment) -> None:
    """Ask until all questions are answered, and the last answer need not be corrected."""
    if not experiment.done:
        print(f"{INSTRUCTION}\n")
    while not experiment.done:
        reply = _reply(experiment.next_design(), experiment)
        if reply == "u" and experiment.num_trials == 0:
            print("There is no answer to take back.")
        elif reply == "u":
            experiment.undo()
        else:
            experiment.record([float(reply == "l")])
        if experiment.done and _is_to_be_corrected():
            experiment.undo()


def _reply(design: Tensor, experiment: AdaptiveExperiment) -> str:
    """n, l or u, as typed."""
    now, later, days = (f"{value:g}" for value in design.tolist())
    question = f"[{experiment.num_trials + 1}/{experiment.horizon}] (n) {now} now, or (l) {later} in {days} days? "
    while True:
        reply = input(question).strip().lower()
        if reply in ("n", "now", "l", "later", "u", "undo"):
            return reply[0]
        print("Please answer n (now) or l (later), or u (undo the last answer).")


def _is_to_be_corrected() -> bool:
    try:
        return input("Press Enter to finish, or type u to take the last answer back: ").strip().lower() in ("u", "undo")
    except EOFError:
        return False


def _conclude(experiment: AdaptiveExperiment, stem: Path) -> Tensor:
    """Infer, print what was asked and found, save; returns posterior draws (N, 2)."""
    rows = [
        (str(number), f"{now:g} now or {later:g} in {days:g} days", "later" if chose else "now")
        for number, ((now, later, days), (chose,)) in enumerate(
            zip(experiment.designs.tolist(), experiment.outcomes.tolist(), strict=True), 1
        )
    ]
    print(format_table(("", "question", "answer"), rows) + "\n")
    with seeded(experiment.seed):
        posterior = experiment.posterior()
        draws = posterior.sample((4000,))
    k, noise = draws.exp().T
    rows = []
    for name, values in (("discount rate k, per day", k), ("choice noise, amount", noise)):
        low, middle, high = values.quantile(torch.tensor([0.025, 0.5, 0.975])).tolist()
        rows.append((name, f"{middle:.3g}", f"{low:.3g}", f"{high:.3g}"))
    print(format_table(("posterior", "median", "2.5 %", "97.5 %"), rows))
    save_results(stem, _draw(experiment, draws), experiment, {"k_per_day": k, "choice_noise_amount": noise})
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


def _draw(experiment: AdaptiveExperiment, draws: Tensor) -> Any:
    import matplotlib.pyplot as plt

    from ..analysis import plot_discounting

    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    plot_discounting(experiment.history, draws[:, 0], ax=axes)
    return figure
