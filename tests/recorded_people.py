"""Experiments on recorded delay-discounting choices: some of a person's choices set aside, the rest asked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sbi_bed.policies import GreedyPolicy
from sbi_bed.simulators.design.recorded_choices import RecordedChoices, delay_discounting_simulator, read_choices

NUM_ASIDE, NUM_ASKED = 30, 15


class Split(NamedTuple):
    """One person: candidate questions with answers, in recorded order, and questions set aside for judging."""

    participant: str
    questions: Tensor  # (40, 3)
    answers: Tensor  # (40, 1)
    judged_questions: Tensor  # (30, 3)
    judged_answers: Tensor  # (30, 1)


class Run(NamedTuple):
    """Questions asked, mean log score of the set-aside choices after each (from 0 on), CPU seconds for each."""

    order: list[int]
    scores: list[float]
    seconds: list[float]


def read_people() -> list[RecordedChoices]:
    path = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "delay_discounting.csv"
    if not path.exists():
        pytest.skip(f"needs the recorded choices at {path}")
    return list(read_choices(path).values())


def split_people(people: list[RecordedChoices], seed: int) -> list[Split]:
    """Set 30 of each person's choices aside at random."""
    rng, splits = np.random.default_rng(seed), []
    for person in people:
        aside = torch.zeros(len(person), dtype=torch.bool)
        aside[torch.from_numpy(rng.permutation(len(person))[:NUM_ASIDE])] = True
        parts = (person.questions, person.chose_delayed)
        splits.append(Split(person.participant, *(p[~aside] for p in parts), *(p[aside] for p in parts)))
    return splits


class Session:
    """A greedy experiment with one recorded person, through the policy's public methods."""

    def __init__(self, split: Split, **options):
        self.split = split
        self.simulator = delay_discounting_simulator(split.questions)
        self.policy = GreedyPolicy(self.simulator, **options)
        self._predicted = None

    def adaptive(self) -> Run:
        """15 questions that the policy chooses, none twice."""
        state, allowed = self.policy.initial_state(), torch.ones(len(self.split.questions), dtype=torch.bool)
        order, scores, seconds = [], [self.log_score(state)], []
        for _ in range(NUM_ASKED):
            begin = time.process_time()
            design = self.policy.propose_among(state, allowed)
            asked = time.process_time()
            index = int((self.split.questions == design).all(-1).nonzero()[0, 0])
            allowed[index] = False
            answered = time.process_time()
            state = self.policy.update(state, design, self.split.answers[index])
            seconds.append(time.process_time() - answered + asked - begin)
            order.append(index)
            scores.append(self.log_score(state))
        return Run(order, scores, seconds)

    def ordered(self) -> Run:
        """All questions in recorded order."""
        state = self.policy.initial_state()
        scores = [self.log_score(state)]
        for question, answer in zip(self.split.questions, self.split.answers, strict=True):
            state = self.policy.update(state, question, answer)
            scores.append(self.log_score(state))
        return Run(list(range(len(scores) - 1)), scores, [])

    def log_score(self, state) -> float:
        """Mean log predictive probability of the choices set aside."""
        theta = state.belief.theta
        if self._predicted is None or self._predicted[0] is not theta:
            log_p = self.simulator.log_likelihood(
                theta, self.split.judged_questions.unsqueeze(1), self.split.judged_answers.unsqueeze(1)
            )
            self._predicted = (theta, log_p.double().exp())
        return float((self._predicted[1] @ state.belief.log_weights.exp()).log().mean())


def paired(difference: np.ndarray) -> tuple[float, float]:
    """Mean and standard error over people."""
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
