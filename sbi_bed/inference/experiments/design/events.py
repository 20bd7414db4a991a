"""What the events of an experiment make of it.

The entries of a journal are the one truth: `standing` leaves out what was taken back, and `ExperimentState` takes up the
others one by one. A call on a live experiment and an entry of a file go the same way, so both lead to the same state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ....utils.checks import check_count
from ..journal import plain_to_tensor
from .trials import Trials

__all__ = ["ExperimentState", "SetAside", "standing"]

_SAID = ("trial", "skip", "invalid")  # what `undo` takes back
_FOLLOWED = ("policy", "stop")  # what the experiment did by itself, from the trials before


class SetAside(NamedTuple):
    """A design that was skipped, or a trial that was marked invalid.

    Attributes:
        handle: Its number.
        design: Design (*batch, D).
        outcome: Outcome (*batch, O); None if it was skipped.
        reason: Why, in the user's words.
    """

    handle: int
    design: Tensor
    outcome: Tensor | None
    reason: str


def standing(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries that still hold, in order.

    An "undo" takes back the last trial, skip or mark of an invalid trial. What the experiment did by itself after a trial
    that is taken back or invalid (a refined policy, a stop) falls with it: it was found from that trial.

    Raises:
        ValueError: If there is nothing to take back.

    Example:
        >>> events = standing([{"event": "trial"}, {"event": "trial"}, {"event": "stop"}, {"event": "undo"}])
        >>> events
        [{'handle': 0, 'event': 'trial'}]
    """
    kept: list[dict[str, Any]] = []
    num_trials = 0  # files of earlier versions have only trials, without handles
    for entry in entries:
        if entry["event"] == "undo":
            said = [i for i, e in enumerate(kept) if e["event"] in _SAID]
            if not said:
                raise ValueError("there is nothing to undo.")
            later = [e for e in kept[said[-1] + 1 :] if e["event"] not in _FOLLOWED]
            kept = [*kept[: said[-1]], *later]
        elif entry["event"] == "trial":
            kept.append({"handle": num_trials, **entry})
            num_trials += 1
        else:
            kept.append(entry)
    place = {e["handle"]: i for i, e in enumerate(kept) if e["event"] == "trial"}
    fallen = set()
    for i, entry in enumerate(kept):
        if entry["event"] == "invalid":
            between = range(place.get(entry["handle"], i), i)
            fallen |= {j for j in between if kept[j]["event"] in _FOLLOWED}
    return [entry for i, entry in enumerate(kept) if i not in fallen]


class ExperimentState:
    """What the entries so far have made of an experiment.

    Each design that was in flight, run or skipped has a number, its handle, counted from 0 on.

    Args:
        trials: No trials yet, of the right shape.
        horizon: Largest number of trials.

    Attributes:
        trials: Valid trials, in the order in which they were recorded.
        handles: Their handles.
        in_flight: Handle -> design of those whose outcome is awaited.
        skipped: Designs that were not run.
        invalid: Trials that do not count.
        avoided: Skipped designs that the next proposal must not be.
        changes: Changes of policy, simulator and horizon.
        next_handle: Handle of the next design.

    Example:
        >>> import torch
        >>> from sbi_bed.inference.experiments.journal import tensor_to_plain
        >>> state = ExperimentState(Trials((), 1, 1), horizon=5)
        >>> number = tensor_to_plain(torch.ones(1))
        >>> state.take_up({"event": "ask", "handles": [0, 1], "designs": [number, number]})
        >>> state.take_up({"event": "trial", "handle": 1, "design": number, "outcome": number})
        >>> state.handles, list(state.in_flight), state.room
        ([1], [0], 3)
    """

    def __init__(self, trials: Trials, horizon: int):
        self.trials, self.horizon = trials, horizon
        self.handles: list[int] = []
        self.in_flight: dict[int, Tensor] = {}
        self.skipped: list[SetAside] = []
        self.invalid: list[SetAside] = []
        self.avoided: list[Tensor] = []
        self.changes: list[dict[str, Any]] = []
        self.next_handle = 0
        self._num_avoided_for_good = 0
        self._lost_costs: list[float] = []
        self._stop: str | None = None

    @property
    def room(self) -> int:
        """How many more designs may be proposed within the horizon."""
        return self.horizon - len(self.trials) - len(self.in_flight)

    @property
    def spent(self) -> float:
        """Total cost, invalid trials included."""
        return math.fsum([self.trials.spent, *self._lost_costs])

    @property
    def stopped_because(self) -> str | None:
        """Why nothing more is proposed, or None."""
        return "horizon" if len(self.trials) >= self.horizon else self._stop

    def take_up(self, entry: dict[str, Any]) -> None:
        """Take up one standing entry.

        Raises:
            ValueError: If its event is unknown, or does not fit what was before.
        """
        events = {
            "trial": self._trial,
            "ask": self._ask,
            "skip": self._skip,
            "invalid": self._invalid,
            "horizon": self._horizon,
            "replace": self._replace,
            "policy": self._policy,
            "stop": lambda entry: self.stop(entry["reason"]),
        }
        if entry["event"] not in events:
            raise ValueError(f"it holds an event '{entry['event']}' that this version does not know.")
        events[entry["event"]](entry)

    def check_room(self) -> None:
        """Refuse, by a `ValueError`, what the horizon has no room for."""
        if self.room < 0:
            flying = f" and {len(self.in_flight)} designs in flight" if self.in_flight else ""
            raise ValueError(
                f"it would hold more trials than its horizon, {self.horizon}: there are {len(self.trials)}{flying}. "
                "Lengthen the horizon first (change_horizon), or skip what is in flight."
            )

    def stop(self, reason: str) -> None:
        """Nothing more is proposed."""
        self._stop = reason

    def _trial(self, entry: dict[str, Any]) -> None:
        handle = entry["handle"]
        self.in_flight.pop(handle, None)
        self.trials.add(plain_to_tensor(entry["design"]), plain_to_tensor(entry["outcome"]), entry.get("cost"))
        self.handles.append(handle)
        self.next_handle = max(self.next_handle, handle + 1)
        self.avoided = self.avoided[: self._num_avoided_for_good]

    def _ask(self, entry: dict[str, Any]) -> None:
        for handle, design in zip(entry["handles"], entry["designs"], strict=True):
            self.in_flight[handle] = plain_to_tensor(design)
            self.next_handle = max(self.next_handle, handle + 1)

    def _skip(self, entry: dict[str, Any]) -> None:
        handle, design = entry["handle"], plain_to_tensor(entry["design"])
        self.in_flight.pop(handle, None)
        self.skipped.append(SetAside(handle, design, None, entry["reason"]))
        place = self._num_avoided_for_good if entry["for_good"] else len(self.avoided)
        self.avoided.insert(place, design)
        self._num_avoided_for_good += entry["for_good"]
        self.next_handle = max(self.next_handle, handle + 1)

    def _invalid(self, entry: dict[str, Any]) -> None:
        number = self.number_of(entry["handle"])
        self.invalid.append(SetAside(entry["handle"], *self.trials[number], entry["reason"]))
        self.trials, cost = self.trials.without(number)
        self._lost_costs += [] if cost is None else [cost]
        del self.handles[number]

    def number_of(self, handle: int) -> int:
        """Which of the valid trials a handle belongs to, from 0 on; a `ValueError` if none."""
        if handle not in self.handles:
            raise ValueError(f"there is no valid trial with handle {handle}; the handles are {self.handles}.")
        return self.handles.index(handle)

    def _horizon(self, entry: dict[str, Any]) -> None:
        self.horizon = check_count(entry["horizon"], "horizon")
        self._note("horizon", horizon=self.horizon, reason=entry["reason"])

    def _replace(self, entry: dict[str, Any]) -> None:
        self._stop = None  # it was found with what is replaced
        replaced = [name for name in ("policy", "simulator") if entry[name] is not None]
        self._note(" and ".join(replaced), reason=entry["reason"])

    def _policy(self, entry: dict[str, Any]) -> None:
        self._note("policy", **entry["details"])

    def _note(self, changed: str, **details: Any) -> None:
        self.changes.append({"num_trials": len(self.trials), "changed": changed, **details})
