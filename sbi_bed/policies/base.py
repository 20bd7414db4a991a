"""A policy maps a history to the next design. It keeps a state that each trial updates.

Trials come one by one, in simulation and in life. The state (a running sum, a cache, a cloud of particles) is updated by
one trial at a cost that does not grow with the number of trials before. `policy(history)` is the same computation from
the start.

In a design space that depends on the history `propose` is also told where the next design lives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..simulators.base import DesignSimulator
from ..simulators.design_space import DesignSpace
from ..utils.checks import check_count
from ..utils.files import load_file, rebuilding, save_file
from ..utils.history import check_history
from ..utils.renamed import current_arguments

__all__ = [
    "Policy",
    "SavedPolicy",
    "describe_policy",
    "facts_of",
    "load_policy",
    "policy_class_called",
    "restore_policy",
]


class SavedPolicy(nn.Module):
    """Common base of all policies: built from plain data, which is kept as `config`, and saved in one file.

    Args:
        **config: Arguments the policy was built with, from which `load_policy` builds it again.
    """

    def __init__(self, **config: Any):
        super().__init__()
        # Numbers of numpy or torch, as sweeps give them, are not plain data.
        self.config = {name: value.item() if hasattr(value, "item") else value for name, value in config.items()}

    @classmethod
    def rebuild(cls, config: dict[str, Any], simulator: DesignSimulator | None) -> SavedPolicy:
        """A policy with new weights from the `config` of another, for an experiment if it needs one."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Save weights and description in one file, for `load_policy`."""
        save_file(path, "policy", describe_policy(self))


class Policy(SavedPolicy):
    """Base of all policies: subclasses give `initial_state`, `update` and `propose`.

    Args:
        simulator: The experiment to design.
        **config: The other arguments the policy was built with, plain data, from which `load_policy` builds it again.

    Attributes:
        config: These arguments.
        trained_horizon: Largest number of trials that `DAD` trained it for, or None.
        learning_rate: First learning rate that suits its weights.
        design_space: The experiment's design space.
        design_dim: Number D of design values.
        outcome_dim: Number O of values of an outcome.

    Example:
        A subclass needs three methods; in a space that depends on the history the last one is
        `propose(self, state, space)`, with `space` the one of the next design.

        >>> class Alternate(Policy):
        ...     def initial_state(self, batch_shape=()):
        ...         return torch.zeros(*batch_shape, self.design_dim)
        ...
        ...     def update(self, state, design, outcome):
        ...         return 1 - state
        ...
        ...     def propose(self, state):
        ...         return state
        >>> from sbi_bed.simulators import LocationFinding
        >>> Alternate(LocationFinding())(torch.tensor([[0.0, 0.0, 0.7, 1.0]]))  # after one trial: design, outcome, mask
        tensor([1., 1.])
    """

    learning_rate: float = 2e-3

    def __init__(self, simulator: DesignSimulator, **config: Any):
        super().__init__(**config)
        if not isinstance(simulator, DesignSimulator):
            raise TypeError(f"a policy is built for a DesignSimulator, got {simulator!r}.")
        self.trained_horizon: int | None = None
        self.design_space = simulator.design_space
        self.design_dim, self.outcome_dim = simulator.design_dim, simulator.outcome_dim

    @classmethod
    def rebuild(cls, config: dict[str, Any], simulator: DesignSimulator | None) -> Policy:
        """A policy with new weights, for `simulator`."""
        if simulator is None:
            raise ValueError(f"a {cls.__name__} is loaded for an experiment: give load_policy its simulator.")
        return cls(simulator, **config)

    def initial_state(self, batch_shape: Sequence[int] = ()) -> Any:
        """State before the first trial, for a batch of experiments."""
        raise NotImplementedError

    def update(self, state: Any, design: Tensor, outcome: Tensor) -> Any:
        """State after one more trial with design (*batch, D) and outcome (*batch, O); `state` itself is not changed."""
        raise NotImplementedError

    def propose(self, state: Any, space: DesignSpace | None = None) -> Tensor:
        """Next design (*batch, D), in `space`, or in the policy's own design space if None."""
        raise NotImplementedError

    def read(self, history: Tensor) -> Any:
        """State after a history (*batch, n, D + O + 1) in which all experiments have had the same number of trials."""
        state = self.initial_state(history.shape[:-2])
        num_trials = int(history[..., -1].sum(-1).max()) if history.numel() else 0
        for trial in history[..., :num_trials, :].unbind(-2):
            state = self.update(state, trial[..., : self.design_dim], trial[..., self.design_dim : -1])
        return state

    def forward(self, history: Tensor) -> Tensor:
        """Next design (*batch, D) for a history (*batch, n, D + O + 1), padded or not, lengths free within the batch.

        Raises:
            ValueError: If the history has another width, is not finite, or has padding before trials.
        """
        history = check_history(history, self.design_dim, self.outcome_dim)
        weight = next(self.parameters(), None)
        history = history if weight is None else history.to(weight)
        lengths = history[..., -1].sum(-1)
        if lengths.numel() == 0 or (lengths == lengths.flatten()[0]).all():
            return self._propose_after(history, int(lengths.max()) if lengths.numel() else 0)
        flat, flat_lengths = history.flatten(0, -3), lengths.flatten()
        groups = {int(n): (flat_lengths == n).nonzero().squeeze(-1) for n in flat_lengths.unique()}
        design = torch.cat([self._propose_after(flat[group], n) for n, group in groups.items()])
        return design[torch.cat(list(groups.values())).argsort()].reshape(*history.shape[:-2], self.design_dim)

    def _propose_after(self, history: Tensor, num_trials: int) -> Tensor:
        """Next design (*batch, D) for a history in which all experiments have had `num_trials` trials."""
        state = self.read(history)
        if not self.design_space.depends_on_history:  # a user's policy need not take a space
            return self.propose(state)
        return self.propose(state, self.design_space.given(history[..., :num_trials, :]))


def describe_policy(policy: SavedPolicy) -> dict[str, Any]:
    """A policy as plain data and tensors."""
    description = {"policy": type(policy).__name__, "config": policy.config, "weights": policy.state_dict()}
    return {**description, **facts_of(policy)}


def facts_of(policy: Any) -> dict[str, Any]:
    """What a file has to say of a policy beside its arguments and weights."""
    trained = getattr(policy, "trained_horizon", None)
    facts: dict[str, Any] = {} if trained is None else {"trained_horizon": trained}
    # By neighbours; in 0.1 each candidate had a score of its own.
    return {**facts, "scores": "shared"} if _scores_choices(policy) else facts


def _scores_choices(policy: Any) -> bool:
    """Whether learned weights give scores of what is to be chosen."""
    if not isinstance(policy, Policy) or next(policy.parameters(), None) is None:
        return False
    return policy.design_space.has_choices


def restore_policy(
    description: dict[str, Any], simulator: DesignSimulator | None, policy_class: type | None = None
) -> Any:
    """Build a policy from `describe_policy`'s output.

    Raises:
        ValueError: If the policy is of an unknown class, or does not fit the simulator.
    """
    cls = policy_class or policy_class_called(description["policy"])
    name = description["policy"]
    try:
        policy = cls.rebuild(current_arguments(cls.__init__, description["config"]), simulator)
    except TypeError as err:
        raise ValueError(f"the saved {name} cannot be built from {description['config']}: {err}") from err
    try:
        policy.load_state_dict(description["weights"])
    except RuntimeError as err:
        raise ValueError(f"the saved {name} does not fit this simulator: {err}") from err
    if _scores_choices(policy) and description.get("scores") != "shared":
        raise ValueError(
            f"the saved {name} chooses among candidates as sbi_bed 0.1 did: train it again, or load it with 0.1."
        )
    trained = description.get("trained_horizon")
    if trained is not None:
        policy.trained_horizon = check_count(trained, "trained_horizon")  # pyright: ignore[reportArgumentType]
    return policy


def policy_class_called(name: str) -> type[SavedPolicy]:
    """The policy of this room that has this name.

    Raises:
        ValueError: If there is none.
    """
    import sbi_bed.policies as room

    cls = getattr(room, name) if name in room.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, SavedPolicy)):
        raise ValueError(f"'{name}' is not one of sbi_bed's policies; give policy_class=, the class it was saved from.")
    return cls


def load_policy(path: str | Path, simulator: DesignSimulator | None = None, policy_class: type | None = None) -> Any:
    """Load a policy that its `save` wrote.

    Args:
        path: The file.
        simulator: The experiment that a `Policy` was built for; a `TreatmentPolicy` needs none.
        policy_class: Class of a policy that is not one of this package's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated or foreign, or the policy does not fit the simulator.

    Example:
        >>> import tempfile
        >>> from sbi_bed.policies import DeepSetsPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     DeepSetsPolicy(simulator, summary_dim=16).save(f"{folder}/policy.pt")
        ...     policy = load_policy(f"{folder}/policy.pt", simulator)
        >>> type(policy).__name__, policy.config["summary_dim"]
        ('DeepSetsPolicy', 16)
    """
    content = load_file(path, "policy")
    if not {"policy", "config", "weights"} <= content.keys():
        raise ValueError(f"{path} lacks parts of a policy.")
    with rebuilding(path):
        return restore_policy(content, simulator, policy_class)
