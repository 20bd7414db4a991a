"""Data with a context as one flat x, which sbi's estimators and diagnostics take.

The context stands behind the data: [data, flattened | context]. `ContextEmbedding` splits x again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import as_finite_tensor

__all__ = ["pack_context", "unpack_context"]


def pack_context(x: Any, context: Any) -> Tensor:
    """Put contexts behind data.

    Args:
        x: Data, (B, *event).
        context: One context for each data set, (B, C), or one for all, (C,).

    Returns:
        Shape (B, E + C), E the number of values in `event`.

    Raises:
        ValueError: If lengths differ, or a number is not finite.

    Example:
        >>> packed = pack_context(torch.zeros(2, 4, 3), [0.5, 2.0])
        >>> packed.shape, packed[0, -2:]
        (torch.Size([2, 14]), tensor([0.5000, 2.0000]))
    """
    x, context = as_finite_tensor(x, "x"), as_finite_tensor(context, "context")
    if context.ndim == 1:
        context = context.expand(len(x), -1)
    if x.ndim < 2 or context.ndim != 2 or len(x) != len(context):
        raise ValueError(
            f"x (B, ...) and context (B, C) must have the same length, got {tuple(x.shape)} and {tuple(context.shape)}."
        )
    return torch.cat([x.flatten(1), context.to(x)], -1)


def unpack_context(packed: Tensor, event_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Split packed x (*batch, E + C) into data (*batch, *event_shape) and contexts (*batch, C).

    Raises:
        ValueError: If x has fewer than E values.

    Example:
        >>> x, context = unpack_context(torch.arange(8.0).reshape(1, 8), (2, 3))
        >>> x.shape, context
        (torch.Size([1, 2, 3]), tensor([[6., 7.]]))
    """
    size = math.prod(event_shape)
    if packed.ndim < 1 or packed.shape[-1] < size:
        raise ValueError(
            f"data of shape {tuple(event_shape)} with a context have at least {size} values, got {tuple(packed.shape)}."
        )
    return packed[..., :size].unflatten(-1, tuple(event_shape)), packed[..., size:]
