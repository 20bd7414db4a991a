r"""Any prior of an experiment as sbi's trainers and posteriors take it: a torch distribution of float32 draws.

sbi asks a prior for its support and for a bijection onto it. Torch has none for mixtures and for priors that say nothing of
their support, and for joined parts of different kinds it fails. Here both come from `to_unconstrained`. A simplex has fewer
coordinates than parameters, which sbi does not allow for: there the map is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints, identity_transform
from torch.distributions.transforms import IndependentTransform

from ..utils.transforms import UnconstrainedTransform, to_unconstrained
from .base import prior_log_prob

__all__ = ["SBIPrior"]


class SBIPrior(Distribution):
    """A prior over continuous parameters (P,), for sbi.

    Args:
        prior: A distribution, or any object with `sample` and `log_prob`.

    Attributes:
        prior: The prior that was given.

    Raises:
        ValueError: If theta is discrete in part.

    Example:
        >>> from torch.distributions import Dirichlet
        >>> SBIPrior(Dirichlet(torch.ones(3, dtype=torch.float64))).sample((2,)).dtype
        torch.float32
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]

    def __init__(self, prior: Any):
        self.prior, self._transform = prior, to_unconstrained(prior)
        draw = prior.sample((1,))
        self._dtype = draw.dtype
        super().__init__(event_shape=draw.shape[-1:], validate_args=False)

    @property
    def support(self) -> _Inside:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Where the prior has a density."""
        return _Inside(self, self._transform)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws (*sample_shape, P), float32."""
        return self.prior.sample(torch.Size(sample_shape)).float()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (...) of theta (..., P), −inf outside the support."""
        return prior_log_prob(self.prior, value.to(self._dtype)).float()


class _Inside(constraints.Constraint):
    """Vectors to which a prior gives a density."""

    event_dim, is_discrete = 1, False  # pyright: ignore[reportAssignmentType]

    def __init__(self, prior: SBIPrior, transform: UnconstrainedTransform):
        self.prior, self.transform = prior, transform
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether theta (..., P) is one of them, (...)."""
        return self.prior.log_prob(value) > -torch.inf


@biject_to.register(_Inside)  # pyright: ignore[reportArgumentType]
def _bijection(constraint: _Inside) -> IndependentTransform:
    transform = constraint.transform
    if transform.free_dim != transform.theta_dim:
        return IndependentTransform(identity_transform, 1)
    return IndependentTransform(transform.inv, 0)  # sbi sums over parameters unless the transform is an independent one
