"""Roots of increasing functions, many at once, with the derivatives that the implicit function theorem gives them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["increasing_root"]


def increasing_root(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, num_steps: int = 60) -> Tensor:
    """Where an increasing function crosses zero between `low` and `high`, all shapes (...).

    Found by halving, then one step of Newton through which the root is a differentiable function of whatever tensors
    `function` uses: ∂root/∂θ = −(∂f/∂θ) / f'.

    Args:
        function: Elementwise, (...) -> (...).
        low: Where it is at most zero.
        high: Where it is at least zero.
        num_steps: Halvings.

    Example:
        >>> two = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> root = increasing_root(lambda x: x**2 - two, torch.zeros_like(two), two.detach())
        >>> root.backward()
        >>> round(root.item(), 6), round(two.grad.item(), 6)  # √2 and 1/(2√2)
        (1.414214, 0.353553)
    """
    with torch.no_grad():
        for _ in range(num_steps):
            middle = (low + high) / 2
            below = function(middle) < 0
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    with torch.enable_grad():
        root = ((low + high) / 2).detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(root).sum(), root)
    root = root.detach()
    slope = torch.where(slope > 0, slope, torch.inf)  # a flat function moves nothing
    return root - function(root) / slope.detach()
