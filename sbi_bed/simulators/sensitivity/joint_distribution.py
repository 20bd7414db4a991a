"""Independent blocks of parameters as one distribution, which may be a batch of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

__all__ = ["JointDistribution"]


class JointDistribution(Distribution):
    """θ = (θ_1, …, θ_K) with independent blocks θ_k, each a vector; log p(θ) = Σ_k log p_k(θ_k).

    sbi's `MultipleIndependent` is similar, but cannot have a batch shape.

    Args:
        blocks: Distributions with event shapes (P_k,) and the same batch shape.

    Raises:
        ValueError: If a block is not a distribution of vectors, or batch shapes differ.

    Example:
        >>> from torch.distributions import Gamma, Independent, MultivariateNormal
        >>> normal = MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> joint = JointDistribution([normal, Independent(Gamma(torch.ones(1), 1.0), 1)])
        >>> joint.sample((5,)).shape, joint.log_prob(torch.ones(5, 3)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    def __init__(self, blocks: Sequence[Distribution]):
        self.blocks = list(blocks)
        for position, block in enumerate(self.blocks):
            if len(block.event_shape) != 1:
                raise ValueError(f"blocks[{position}] must be a distribution of vectors, got {block!r}.")
            if block.support is constraints.simplex:
                raise ValueError(
                    f"blocks[{position}] is a distribution over the simplex, which cannot stand beside other parameters: "
                    f"got {block!r}. Use it alone, or independent parameters such as log ratios of the shares."
                )
        batch_shapes = {tuple(block.batch_shape) for block in self.blocks}
        if len(batch_shapes) != 1:
            raise ValueError(f"blocks must have the same batch shape, got {sorted(batch_shapes)}.")
        self._lengths = [block.event_shape[0] for block in self.blocks]
        super().__init__(Size(*batch_shapes), Size((sum(self._lengths),)), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Constraint on vectors θ."""
        parts: list[Any] = [block.support for block in self.blocks]
        parts = [getattr(part, "base_constraint", part) for part in parts]
        return constraints.independent(constraints.cat(parts, dim=-1, lengths=self._lengths), 1)  # pyright: ignore

    @property
    def mean(self) -> Tensor:
        """Means, (*batch, P)."""
        return torch.cat([block.mean for block in self.blocks], -1)

    @property
    def variance(self) -> Tensor:
        """Variances, (*batch, P)."""
        return torch.cat([block.variance for block in self.blocks], -1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, *batch, P)."""
        return torch.cat([block.sample(torch.Size(sample_shape)) for block in self.blocks], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of θ (..., P)."""
        parts = zip(self.blocks, value.split(self._lengths, -1), strict=True)
        return torch.stack([block.log_prob(part) for block, part in parts]).sum(0)
