"""Saving and loading of experiments, with or without a journal; policies as plain data."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...policies.base import facts_of, restore_policy
from ...simulators.base import DesignSimulator
from ...utils.files import rebuilding, write_atomically
from ...utils.seeding import seeded
from .journal import Journal, journal_bytes, plain_to_weights, read_journal, weights_to_plain

__all__ = ["SavedExperiment", "plain_to_policy", "policy_to_plain"]


class SavedExperiment:
    """An experiment that is a header and a list of entries, in memory and, with a journal, on the disk.

    A subclass sets `_header`, `_entries` and `_journal`, writes by `_write`, and gives `_restore`.
    """

    _header: dict[str, Any]
    _entries: list[dict[str, Any]]
    _journal: Journal | None

    @classmethod
    def _restore(
        cls, header: dict[str, Any], entries: list[dict[str, Any]], simulator: Any, policy: Any, options: dict[str, Any]
    ) -> Any:
        """Build the experiment from a file's header and entries."""
        raise NotImplementedError

    def _resume(self) -> None:
        """Called by `load` when the journal is in place."""

    def _write(self, entry: dict[str, Any]) -> None:
        if self._journal is not None:
            self._journal.append(entry)
        self._entries.append(entry)

    def save(self, path: str | Path) -> None:
        """Write the whole experiment to `path`, in the journal's format: `load` reads either.

        Raises:
            ValueError: If `path` is the journal itself.
        """
        path = Path(path)
        if self._journal is not None and path.resolve() == self._journal.path.resolve():
            raise ValueError(f"{path} is the journal of this experiment, which is on the disk already.")
        write_atomically(path, journal_bytes(self._header, self._entries))

    def close(self) -> None:
        """Close the journal, so that it can be loaded again. What is recorded later raises a `ValueError`."""
        if self._journal is not None:
            self._journal.close()

    @classmethod
    def load(
        cls, path: str | Path, simulator: DesignSimulator, policy: Any = None, *, journal: bool = True, **options: Any
    ) -> Any:
        """Load an experiment and go on with it: the same history, the same next design.

        No code in the file is run. A trial that was being written when the process was killed, and was never
        acknowledged, may be missing.

        Args:
            path: A journal, or what `save` wrote; the two are alike.
            simulator: The experiment.
            policy: Policy whose weights the file's replace (in a copy); needed for one that is not of this package.
            journal: Go on journalling into the file. With False the file is only read, neither locked nor changed, and
                what is recorded later is kept in memory.
            **options: What a file cannot hold: `design_cost`, a user's own `stop_when`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, damaged, foreign, in use, or of another experiment; or if a policy, a
                cost or a rule must be given again.
        """
        return cls._load(
            path, journal, lambda header, entries: cls._restore(header, entries, simulator, policy, options)
        )

    @classmethod
    def _load(
        cls, path: str | Path, journal: bool, restore: Callable[[dict[str, Any], list[dict[str, Any]]], Any]
    ) -> Any:
        """Open a file, build the experiment from its header and entries, and go on journalling into it if asked."""
        opened = Journal.open(path) if journal else None
        try:
            header, entries = read_journal(path) if opened is None else (opened.header, opened.entries)
            with rebuilding(path):
                experiment = restore(header, entries)
            experiment._journal = opened
            experiment._resume()
        except BaseException:
            if opened is not None:
                opened.close()
            raise
        return experiment


def policy_to_plain(policy: Any) -> dict[str, Any]:
    """A policy as plain data: class, arguments (None unless `load` can build it from them) and weights as text."""
    import sbi_bed.policies as room

    name = type(policy).__name__
    config = policy.config if name in room.__all__ and getattr(room, name) is type(policy) else None
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError):
        config = None
    weights = weights_to_plain(policy.state_dict()) if isinstance(policy, nn.Module) else None
    return {"policy": name, "config": config, "weights": weights, **facts_of(policy)}


def plain_to_policy(plain: dict[str, Any], simulator: DesignSimulator | None, given: Any = None) -> Any:
    """Undo `policy_to_plain`, with a copy of the policy `given`, if any, to hold the weights.

    Raises:
        ValueError: If a policy must be given, or does not fit the weights or the simulator.
    """
    name, weights = plain["policy"], None if plain["weights"] is None else plain_to_weights(plain["weights"])
    if given is None:
        if plain["config"] is None:
            raise ValueError(f"its policy, '{name}', cannot be built from the file; give policy=, one like it.")
        with seeded(0):
            return restore_policy({**plain, "weights": weights}, simulator).eval()
    if type(given).__name__ != name:
        raise ValueError(f"it was run under a policy '{name}', got '{type(given).__name__}'.")
    if weights is None or _same(weights, given.state_dict()):
        return given
    given = copy.deepcopy(given, {id(simulator): simulator})
    try:
        given.load_state_dict(weights)
    except RuntimeError as err:
        raise ValueError(f"the policy does not fit the weights in the file: {err}") from err
    return given


def _same(weights: dict[str, Any], others: dict[str, Any]) -> bool:
    return weights.keys() == others.keys() and all(
        torch.equal(w, others[name].cpu()) if isinstance(w, torch.Tensor) else w == others[name]
        for name, w in weights.items()
    )
