"""Recorded stimuli and responses of people: a table (subject, stimulus, response) as histories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.csv_rows import number_in, read_rows
from ...utils.history import pack_history

__all__ = ["RecordedResponses", "pack_responses", "read_responses"]


@dataclass(frozen=True)
class RecordedResponses:
    """One person's trials, in the order of the file.

    Attributes:
        subject: The person's id in the file.
        stimuli: What was shown, (n, 1); with noise levels (n, 2), the second column being sigma.
        responses: What the person did, in the unit of the stimuli, (n, 1).
    """

    subject: str
    stimuli: Tensor
    responses: Tensor

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def history(self) -> Tensor:
        """The trials as a history (n, D + 2) of a `BayesianActor`."""
        return pack_history(self.stimuli, self.responses)


def read_responses(
    path: str | Path,
    subject: str = "subject",
    stimulus: str = "stimulus",
    response: str = "response",
    noise: str | None = None,
) -> dict[str, RecordedResponses]:
    r"""Read every person of a CSV file with a row for each trial; other columns are ignored.

    Args:
        path: The file.
        subject: Name of the column with the person's id.
        stimulus: Name of the column of stimuli. A `BayesianActor` with `LogNormalPerception` needs them to be positive, one
            with `NormalPerception` does not.
        response: Name of the column of responses, in the unit of the stimuli. The same holds for them.
        noise: Name of a column with the perceptual noise sigma of each trial, > 0, for a `BayesianActor` with
            `noise_range`; none if None.

    Returns:
        Trials by person, people and trials in the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a row has no subject, a number is not finite, a noise not positive, or there
            are no trials.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "responses.csv"
        >>> _ = path.write_text("subject,stimulus,response\nann,1.0,1.1\nbob,2.0,1.7\nann,3.0,2.6\n")
        >>> read_responses(path)["ann"].history
        tensor([[1.0000, 1.1000, 1.0000],
                [3.0000, 2.6000, 1.0000]])
    """
    numbers = (stimulus, *([noise] if noise is not None else []), response)
    names = (subject, *numbers)
    if len(set(names)) < len(names):
        raise ValueError(f"subject, stimulus, response and noise must be different columns, got {', '.join(names)}.")
    rows: dict[str, list[list[float]]] = {}
    for row, where in read_rows(path, names):
        who = str(row[subject] or "").strip()
        if not who:
            raise ValueError(f"{where}: {subject} must name the person, but it is empty.")
        values = [number_in(row, name, where) for name in numbers]
        for name, value in zip(numbers, values, strict=True):
            if name == noise and value <= 0:
                raise ValueError(f"{where}: {name} must be positive, got {row[name]!r}.")
        rows.setdefault(who, []).append(values)
    if not rows:
        raise ValueError(f"{path} has no trials in it.")
    tables = {who: torch.tensor(values) for who, values in rows.items()}
    return {who: RecordedResponses(who, values[:, :-1], values[:, -1:]) for who, values in tables.items()}


def pack_responses(
    people: Mapping[str, RecordedResponses] | Iterable[RecordedResponses], horizon: int | None = None
) -> Tensor:
    """Histories (B, horizon, D + 2) of people with different numbers of trials, padded behind their mask.

    Args:
        people: People as `read_responses` returns them, all or some.
        horizon: Length to pad to; the longest if None.

    Raises:
        TypeError: If `people` holds something else.
        ValueError: If `people` is empty, or someone has more trials than `horizon`.

    Example:
        >>> ann = RecordedResponses("ann", torch.tensor([[1.0], [3.0]]), torch.tensor([[1.1], [2.6]]))
        >>> bob = RecordedResponses("bob", torch.tensor([[2.0]]), torch.tensor([[1.7]]))
        >>> pack_responses([ann, bob])[1]  # one trial of Bob's, and padding
        tensor([[2.0000, 1.7000, 1.0000],
                [0.0000, 0.0000, 0.0000]])
    """
    everybody: list[Any] = list(people.values() if isinstance(people, Mapping) else people)
    if not everybody:
        raise ValueError("people is empty: there are no responses to pack.")
    for one in everybody:
        if not isinstance(one, RecordedResponses):
            raise TypeError(f"people must be RecordedResponses, as read_responses returns them, got {one!r}.")
    return pack_history([one.stimuli for one in everybody], [one.responses for one in everybody], horizon)
