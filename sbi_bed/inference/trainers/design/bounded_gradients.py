r"""A policy whose designs pass on gradients of bounded size.

A bound on the information gain can be very steep in a few histories (a sensor that lands on its source). The mean
gradient of a batch is then that of those few. Here the gradient that one history sends into one design is scaled down to
a largest norm, measured in free coordinates, the output of the policy's net:

    g ← g · min(1, c / (B ‖∂ξ/∂u · g‖)),   for a loss that is a mean over B histories.

It is gradient clipping (Pascanu et al. 2013), applied to each history and trial by itself. Directions of single terms
stay; the mean is biased towards the majority of the histories.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....simulators.design_space import DesignSpace

__all__ = ["BoundedGradients"]


class BoundedGradients:
    """Wraps a sequential policy for a rollout that is differentiated; proposes the same designs.

    Args:
        policy: Policy with `initial_state`, `update`, `propose` and `read`.
        design_space: Its design space.
        largest: Largest norm c of the gradient of one history's term in one design, nats for each unit of free
            coordinates.
    """

    def __init__(self, policy: Any, design_space: DesignSpace, largest: float):
        self._policy, self._space, self._largest = policy, design_space, largest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def in_context(self, context: Any) -> BoundedGradients:
        """The policy in a context, for policies that are told one; its designs pass on bounded gradients, too."""
        return BoundedGradients(self._policy.in_context(context), self._space, self._largest)

    def propose(self, state: Any, *space: DesignSpace) -> Tensor:
        """Next design (*batch, D), the policy's own."""
        design = self._policy.propose(state, *space)
        if not design.requires_grad:
            return design
        where = space[0] if space else self._space
        fixed = design.detach()

        def bound(gradient: Tensor) -> Tensor:
            norm = where.free_gradient(fixed, gradient).norm(dim=-1, keepdim=True) * (gradient[..., 0].numel() or 1)
            return gradient * (self._largest / norm.clamp_min(1e-30)).clamp(max=1.0)

        design = design.view_as(design)  # the policy may hold on to its own tensor
        design.register_hook(bound)
        return design
