"""Trained sbi posteriors over histories in a live experiment, whose horizon may have changed since the training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

__all__ = ["padded_for", "posterior_given"]


def padded_for(posterior: Any, history: Tensor, horizon: int) -> Tensor:
    """Trials (n, D + O + 1) padded to the length that a trained posterior reads, or `horizon` if it does not say.

    Raises:
        ValueError: If there are more trials than it reads.

    Example:
        >>> from types import SimpleNamespace
        >>> posterior = SimpleNamespace(posterior_estimator=SimpleNamespace(condition_shape=(5, 4)))
        >>> padded_for(posterior, torch.ones(2, 4), horizon=3).shape
        torch.Size([5, 4])
    """
    shape = getattr(getattr(posterior, "posterior_estimator", None), "condition_shape", ())
    length = shape[0] if len(shape) == 2 else horizon
    if len(history) > length:
        raise ValueError(
            f"the trained posterior reads {length} trials, there are {len(history)}: train it for a longer horizon."
        )
    return torch.nn.functional.pad(history, (0, 0, 0, length - len(history)))


def posterior_given(posterior: Any, history: Tensor, horizon: int) -> Any:
    """A copy of a trained sbi posterior with the trials (n, D + O + 1) as its default x."""
    if not hasattr(posterior, "set_default_x"):
        raise TypeError(f"sample_with must be a name or a trained sbi posterior, got {posterior!r}.")
    from ..._compat import forget_leakage  # a live run that never asks needs no sbi

    posterior = copy.deepcopy(posterior)
    posterior.set_default_x(padded_for(posterior, history, horizon).unsqueeze(0))
    forget_leakage(posterior)
    return posterior
