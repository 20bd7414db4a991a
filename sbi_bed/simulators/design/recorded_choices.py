r"""Choices between an immediate and a delayed amount that people really made, and a simulator of such choices.

An experiment can be rehearsed on recorded answers: at each step it chooses among the questions that the person was
asked, and is told what the person answered. The model is hyperbolic discounting (Mazur 1987) with a probit link and
lapses; with discount rate k per day and temperature τ in the unit of the amounts,

    p(delayed) = ε + (1 − 2ε) Φ((A_delayed / (1 + k D) − A_immediate) / τ),   ε = 0.01,
    log k ~ N(−6, 2²),   log τ ~ N(log(20 · 1.702), 1).

1.702 is the factor between a logistic and a normal link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, constraints

from ...utils.csv_rows import number_in, read_rows
from ..base import DesignSimulator
from ..design_space import DesignSpace

__all__ = ["RecordedChoices", "delay_discounting_simulator", "read_choices", "read_participant"]

QUESTION_COLUMNS = ("amount_immediate", "amount_delayed", "delay_days")
_COLUMNS = ("participant", "trial", *QUESTION_COLUMNS, "chose_immediate")
_LAPSE = 0.01


@dataclass(frozen=True)
class RecordedChoices:
    """One person's choices, in the order in which they were made.

    Attributes:
        participant: The person's id in the file.
        questions: Immediate amount, delayed amount, delay in days, shape (n, 3).
        chose_delayed: 1 where the delayed amount was chosen, else 0, shape (n, 1).
    """

    participant: str
    questions: Tensor
    chose_delayed: Tensor

    def __len__(self) -> int:
        return len(self.questions)


def read_choices(path: str | Path) -> dict[str, RecordedChoices]:
    """Read every participant of a CSV file with the columns participant, trial, amount_immediate, amount_delayed,
    delay_days and chose_immediate (1 or 0); other columns are ignored.

    Returns:
        Choices by participant id, participants in the order of the file, choices in the order of their trial number.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, or a value is not a finite number, a choice not 0 or 1, an amount or a delay
            negative, a delayed amount 0, or a participant's name empty.

    Example:
        >>> import tempfile
        >>> header = "participant,trial,amount_immediate,amount_delayed,delay_days,chose_immediate"
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     _ = file.write(f"{header}\\n7,1,20,100,30,0\\n7,2,80,100,30,1\\n")
        ...     file.flush()
        ...     people = read_choices(file.name)
        >>> people["7"].chose_delayed.flatten()
        tensor([1., 0.])
    """
    rows: dict[str, list[tuple[float, ...]]] = {}
    for row, where in read_rows(path, _COLUMNS):
        name = (row["participant"] or "").strip()
        if not name:
            raise ValueError(f"{where}: participant is empty.")
        rows.setdefault(name, []).append(_numbers(row, where))
    if not rows:
        raise ValueError(f"{path} has no choices in it.")
    return {name: _choices(name, sorted(values, key=lambda row: row[0])) for name, values in rows.items()}


def read_participant(path: str | Path, participant: int | str) -> RecordedChoices:
    """Read one participant's choices; file and errors as for `read_choices`.

    Raises:
        ValueError: Besides, if the file has no such participant.

    Example:
        >>> import tempfile
        >>> header = "participant,trial,amount_immediate,amount_delayed,delay_days,chose_immediate"
        >>> with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        ...     _ = file.write(f"{header}\\n7,1,20,100,30,0\\n")
        ...     file.flush()
        ...     person = read_participant(file.name, 7)
        >>> person.questions
        tensor([[ 20., 100.,  30.]])
    """
    people = read_choices(path)
    name = str(participant).strip()
    if name not in people:
        some = ", ".join(list(people)[:5])
        raise ValueError(
            f"{path} has no participant {name}; it has {len(people)}: {some}{', …' if len(people) > 5 else ''}."
        )
    return people[name]


def delay_discounting_simulator(questions: Any, prior: Distribution | None = None) -> DesignSimulator:
    """The experiment of choosing among `questions`, composed from plain callables.

    Theta is (log k, log τ); a design is a question; an outcome is 1 where the delayed amount is preferred, else 0.

    Args:
        questions: The candidate designs (immediate amount, delayed amount, delay in days), shape (n, 3).
        prior: Distribution of theta; the one of this module's docstring if None.

    Raises:
        ValueError: If the questions are not finite or not (n, 3).

    Example:
        >>> simulator = delay_discounting_simulator([[20.0, 50.0, 30.0], [40.0, 50.0, 30.0]])
        >>> simulator(simulator.prior.sample((5,)), torch.tensor([20.0, 50.0, 30.0])).shape
        torch.Size([5, 1])
    """
    space = DesignSpace(candidates=questions, names=QUESTION_COLUMNS)
    return DesignSimulator(
        _default_prior() if prior is None else prior,
        _simulate,
        space,
        log_likelihood=_log_probability,
        outcome_space=constraints.boolean,
    )


def _default_prior() -> Distribution:
    loc, scale = torch.tensor([-6.0, math.log(20 * 1.702)]), torch.tensor([2.0, 1.0])
    return Independent(Normal(loc, scale), 1)


def _scaled_preference(theta: Tensor, design: Tensor) -> Tensor:
    """(value of the delayed amount − immediate amount) / τ, shape (...), for theta (..., 2) and design (..., 3)."""
    (log_k, log_temperature), (immediate, delayed, delay) = theta.unbind(-1), design.unbind(-1)
    return (delayed / (1 + log_k.exp() * delay) - immediate) * torch.exp(-log_temperature)


def _simulate(theta: Tensor, design: Tensor) -> Tensor:
    delayed = _LAPSE + (1 - 2 * _LAPSE) * torch.special.ndtr(_scaled_preference(theta, design))
    return torch.bernoulli(delayed).unsqueeze(-1)


def _log_probability(theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
    sign = 2 * outcome.squeeze(-1) - 1
    return torch.log(_LAPSE + (1 - 2 * _LAPSE) * torch.special.ndtr(sign * _scaled_preference(theta, design)))


def _numbers(row: dict[str, Any], where: str) -> tuple[float, ...]:
    """Trial, question and choice of one row."""
    values = [number_in(row, name, where) for name in _COLUMNS[1:]]
    if values[-1] not in (0.0, 1.0):
        raise ValueError(f"{where}: chose_immediate must be 0 or 1, got {row['chose_immediate']!r}.")
    for name in ("amount_immediate", "delay_days"):
        if values[_COLUMNS.index(name) - 1] < 0:
            raise ValueError(f"{where}: {name} must not be negative, got {row[name]!r}.")
    if values[2] <= 0:
        raise ValueError(f"{where}: amount_delayed must be positive, got {row['amount_delayed']!r}.")
    return tuple(values)


def _choices(name: str, rows: list[tuple[float, ...]]) -> RecordedChoices:
    values = torch.tensor(rows)
    return RecordedChoices(name, values[:, 1:4].contiguous(), 1 - values[:, 4:])
