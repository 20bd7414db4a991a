"""Histories as tensors.

A history of n trials, h = {(ξ_1, y_1), …, (ξ_n, y_n)}, is a tensor of shape (..., horizon, D + O + 1): the design, the
outcome, and a mask channel that is 1 where a trial took place and 0 where the history is padded (design and outcome
are then 0). It is what policies read, what `PolicySimulator` returns, and an ordinary `x` of sbi.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import as_finite_tensor, check_count

__all__ = [
    "append_trial",
    "check_history",
    "continue_history",
    "empty_history",
    "pack_history",
    "split_history",
    "trials_before",
    "unpack_history",
]


def empty_history(design_dim: int, outcome_dim: int, batch_shape: Sequence[int] = ()) -> Tensor:
    """A history of no trials, shape (*batch_shape, 0, D + O + 1)."""
    return torch.zeros(*batch_shape, 0, design_dim + outcome_dim + 1)


def append_trial(history: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
    """Append one trial, design (..., D) and outcome (..., O), to an unpadded history (..., n, D + O + 1)."""
    trial = torch.cat([design, outcome, torch.ones_like(outcome[..., :1])], dim=-1)
    return torch.cat([history, trial.unsqueeze(-2)], dim=-2)


def continue_history(history: Tensor | None, designs: Tensor, outcomes: Tensor) -> Tensor:
    """Histories (B, n + m, D + O + 1) of a history (n, D + O + 1) common to all, if any, and then m trials of each.

    Values are not looked at, so that training on a GPU need not wait for it.

    Args:
        history: Trials before, without padding.
        designs: Shape (B, m, D).
        outcomes: Shape (B, m, O).
    """
    later = torch.cat([designs, outcomes, torch.ones_like(outcomes[..., :1])], dim=-1)
    return later if history is None else torch.cat([history.expand(len(later), -1, -1), later], dim=-2)


def pack_history(
    designs: Tensor | Sequence[Tensor], outcomes: Tensor | Sequence[Tensor], horizon: int | None = None
) -> Tensor:
    """Pack designs and outcomes into a masked history.

    Args:
        designs: Designs of shape (..., n, D); or a list of (n_i, D), one for each experiment, lengths free.
        outcomes: Outcomes of shape (..., n, O), or a list of (n_i, O).
        horizon: Length to pad to; the longest experiment if None.

    Returns:
        History of shape (..., horizon, D + O + 1); for lists (num_experiments, horizon, D + O + 1).

    Raises:
        ValueError: If shapes disagree, a value is not finite, or there are more trials than `horizon`.

    Example:
        >>> x = pack_history(torch.ones(2, 3), torch.zeros(2, 1), horizon=4)
        >>> x.shape, x[:, -1].tolist()
        (torch.Size([4, 5]), [1.0, 1.0, 0.0, 0.0])
    """
    if isinstance(designs, Sequence) or isinstance(outcomes, Sequence):
        if len(designs) == 0 or len(designs) != len(outcomes):
            raise ValueError(
                f"designs and outcomes must be lists of one length, not empty; got {len(designs)} and {len(outcomes)}."
            )
        horizon = max(len(d) for d in designs) if horizon is None else horizon
        designs = [as_finite_tensor(d, "designs") for d in designs]
        outcomes = [as_finite_tensor(o, "outcomes") for o in outcomes]
        return torch.stack([pack_history(d, o, horizon) for d, o in zip(designs, outcomes, strict=True)])
    designs, outcomes = as_finite_tensor(designs, "designs"), as_finite_tensor(outcomes, "outcomes")
    if designs.ndim < 2 or designs.shape[:-1] != outcomes.shape[:-1]:
        raise ValueError(
            "designs (..., n, D) and outcomes (..., n, O) must agree in all but the last dimension, "
            f"got {tuple(designs.shape)} and {tuple(outcomes.shape)}."
        )
    num_trials = designs.shape[-2]
    horizon = num_trials if horizon is None else check_count(horizon, "horizon", 0)
    if num_trials > horizon:
        raise ValueError(f"got {num_trials} trials for a horizon of {horizon}.")
    trials = torch.cat([designs, outcomes, torch.ones_like(outcomes[..., :1])], dim=-1)
    return torch.nn.functional.pad(trials, (0, 0, 0, horizon - num_trials))


def check_history(history: Tensor, design_dim: int, outcome_dim: int) -> Tensor:
    """Return `history` if it is one of these dimensions: finite, mask of 0 and 1, trials before padding.

    Raises:
        ValueError: If it is not.
    """
    history = as_finite_tensor(history, "history", last_dim=design_dim + outcome_dim + 1)
    if history.ndim < 2:
        raise ValueError(f"history must have shape (..., trials, features), got {tuple(history.shape)}.")
    mask = history[..., -1]
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("the last channel of a history is its mask and must be 0 or 1.")
    if (mask[..., 1:] > mask[..., :-1]).any():
        raise ValueError("the trials of a history must come first and its padding last.")
    return history


def trials_before(history: Tensor | None, horizon: int, design_dim: int, outcome_dim: int) -> tuple[Tensor | None, int]:
    """The trials already done, (n, D + O + 1) without padding, or None; and how many of `horizon` remain.

    Raises:
        ValueError: If `history` is not that of one experiment, or none remains.
    """
    remaining = check_count(horizon, "horizon")
    if history is not None:
        history = check_history(history, design_dim, outcome_dim)
        if history.ndim != 2:
            raise ValueError(f"history must be that of one experiment, (n, D + O + 1), got {tuple(history.shape)}.")
        history = history[: int(history[:, -1].sum())]
        remaining -= len(history)
        if remaining < 1:
            raise ValueError(f"no trial remains of a horizon of {horizon}.")
    return history, remaining


def split_history(history: Tensor, design_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split (..., n, D + O + 1) into designs (..., n, D), outcomes (..., n, O) and mask (..., n)."""
    return history[..., :design_dim], history[..., design_dim:-1], history[..., -1]


def unpack_history(history: Tensor, design_dim: int) -> tuple[Tensor, Tensor] | tuple[list[Tensor], list[Tensor]]:
    """Undo `pack_history`: the designs and outcomes that went in, padding removed.

    Args:
        history: Shape (..., horizon, D + O + 1).
        design_dim: Number D of design values.

    Returns:
        Designs (..., n, D) and outcomes (..., n, O); two lists, one entry for each experiment, where a batch
        (B, horizon, D + O + 1) holds experiments of different lengths.

    Example:
        >>> history = pack_history(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[5.0], [6.0]]), horizon=4)
        >>> designs, outcomes = unpack_history(history, design_dim=2)
        >>> designs.tolist(), outcomes.tolist()
        ([[0.0, 1.0], [2.0, 3.0]], [[5.0], [6.0]])
    """
    history = check_history(history, design_dim, history.shape[-1] - design_dim - 1)
    lengths = history[..., -1].sum(-1).long()
    if lengths.numel() == 0 or (lengths == lengths.flatten()[0]).all():
        num_trials = int(lengths.flatten()[0]) if lengths.numel() else 0
        designs, outcomes, _ = split_history(history[..., :num_trials, :], design_dim)
        return designs, outcomes
    pairs = [unpack_history(h, design_dim) for h in history.flatten(0, -3)]
    return [d for d, _ in pairs], [o for _, o in pairs]  # pyright: ignore[reportReturnType]
