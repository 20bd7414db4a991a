r"""sbi's conditional densities q(θ | x) for parameters on a simplex, too.

Probabilities θ that sum to 1 have no density over all of their coordinates. A net for them is a density of the coordinates
u = transform(θ) of stick-breaking,

    q(θ | x) = q(u | x) |du/dθ|,

with volumes over all but the last probability, as for torch's `Dirichlet`. Parameters of other parts take their own
coordinates along: logs, logits or standardised values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch import Tensor, nn

from ..utils.transforms import UnconstrainedTransform, rowwise, to_unconstrained

__all__ = ["posterior_net"]

_FURTHEST = 30.0  # coordinates of probabilities that rounding has made 0


def posterior_net(prior: Any, model: str, embedding_net: nn.Module, **options: Any) -> Callable[[Tensor, Tensor], Any]:
    """What sbi's NPE takes as density estimator: (theta, x) → net.

    Args:
        prior: Distribution of theta (P,), or any object with `sample` and `log_prob`.
        model: Name of sbi's density estimator.
        embedding_net: Net of the data.
        **options: Further arguments of sbi's `posterior_nn`.

    Raises:
        ValueError: If theta is discrete in part.

    Example:
        >>> prior = torch.distributions.Dirichlet(torch.ones(3))
        >>> build = posterior_net(prior, "zuko_maf", torch.nn.Identity())
        >>> theta, x = prior.sample((50,)), torch.randn(50, 2)
        >>> bool((build(theta, x).sample((4,), condition=x).sum(-1) - 1).abs().max() < 1e-5)
        True
    """
    transform: UnconstrainedTransform = to_unconstrained(prior)
    build: Any = posterior_nn(model, embedding_net=embedding_net, z_score_x="none", **options)  # pyright: ignore
    if transform.free_dim == transform.theta_dim:
        return build
    return lambda theta, x: _OnSimplex(build(_free(transform, theta), x), transform)


def _free(transform: Any, theta: Tensor) -> Tensor:
    return torch.nan_to_num(rowwise(transform, theta), nan=0.0, posinf=_FURTHEST, neginf=-_FURTHEST)


class _OnSimplex(ConditionalDensityEstimator):
    """q(θ | x) from a net of coordinates."""

    def __init__(self, net: ConditionalDensityEstimator, transform: UnconstrainedTransform):
        super().__init__(net, torch.Size([transform.theta_dim]), net.condition_shape)
        self._transform = transform

    @property
    def embedding_net(self) -> nn.Module:
        """Net of the data."""
        return self.net.embedding_net  # pyright: ignore

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        free = _free(self._transform, input)
        volume = rowwise(self._transform.log_abs_det_jacobian, input, free)
        return self.net.log_prob(free, condition=condition, **kwargs) + volume  # pyright: ignore

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any) -> Tensor:
        return rowwise(self._transform.inv, self.net.sample(sample_shape, condition=condition, **kwargs))  # pyright: ignore

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        return -self.log_prob(input.unsqueeze(0), condition, **kwargs)[0]
