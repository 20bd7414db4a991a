r"""A prior made weaker or stronger: p(θ)^γ, renormalised, with a power of its own for each parameter.

γ = 1 is the prior itself, γ < 1 is wider and γ > 1 narrower (Kallioinen et al. 2023, arXiv 2107.14054, for sensitivity to
the prior; arXiv 2310.11122 for networks that know γ). Powers of the usual families stay in their family:

    Normal(m, s)         → Normal(m, s/√γ)                    Gamma(a, b)        → Gamma(γ(a − 1) + 1, γb)
    LogNormal(m, s)      → LogNormal(m + (1 − γ)s²/γ, s/√γ)   InverseGamma(a, b) → InverseGamma(γ(a + 1) − 1, γb)
    HalfNormal(s)        → HalfNormal(s/√γ)                   Beta(a, b)         → Beta(γ(a − 1) + 1, γ(b − 1) + 1)
    Exponential(b)       → Exponential(γb)                    Laplace(m, b)      → Laplace(m, b/γ)
    Normal(m, Σ), vector → Normal(m, Σ/γ)                     Uniform            → itself

The shift of a log-normal's location is the Jacobian's share: its power is taken as a density of θ, not of log θ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Chi2,
    Distribution,
    Exponential,
    Gamma,
    HalfNormal,
    Independent,
    InverseGamma,
    Laplace,
    LogNormal,
    MultivariateNormal,
    Normal,
    Uniform,
)

from ...utils.checks import as_finite_tensor
from .joint_distribution import JointDistribution
from .numerical_density import PoweredDensity

__all__ = ["PowerScaledPrior"]


def _shape(value: Tensor, name: str, gamma: Tensor) -> Tensor:
    """A shape parameter of a scaled density, which is positive where the density has a finite integral."""
    if not bool((value > 0).all()):
        first = tuple((value <= 0).nonzero()[0].tolist())
        power = gamma.expand(value.shape)[first].item()
        raise ValueError(
            f"p(θ)^γ has no finite integral at γ = {power:g}: the {name} would be {value[first].item():g}. Choose γ nearer "
            "to 1, or another prior."
        )
    return value


_RULES: dict[type, Callable[[Any, Tensor], Distribution]] = {
    Normal: lambda d, g: Normal(d.loc, d.scale / g.sqrt()),
    LogNormal: lambda d, g: LogNormal(d.loc + (1 - g) / g * d.scale.square(), d.scale / g.sqrt()),
    HalfNormal: lambda d, g: HalfNormal(d.scale / g.sqrt()),
    Exponential: lambda d, g: Exponential(d.rate * g),
    Laplace: lambda d, g: Laplace(d.loc, d.scale / g),
    Gamma: lambda d, g: Gamma(_shape(g * (d.concentration - 1) + 1, "shape of Gamma", g), d.rate * g),
    InverseGamma: lambda d, g: InverseGamma(
        _shape(g * (d.concentration + 1) - 1, "shape of InverseGamma", g), d.rate * g
    ),
    Beta: lambda d, g: Beta(
        _shape(g * (d.concentration1 - 1) + 1, "first shape of Beta", g),
        _shape(g * (d.concentration0 - 1) + 1, "second shape of Beta", g),
    ),
    Uniform: lambda d, g: d.expand(torch.broadcast_shapes(d.batch_shape, g.shape)),
}
_RULES[Chi2] = _RULES[Gamma]


class PowerScaledPrior:
    """A prior whose power γ is part of the question: `condition(gamma)` gives the prior at γ.

    Each independent parameter has its own γ; a vector of correlated normal parameters is one block and has one. A
    multivariate normal with a diagonal covariance counts as independent parameters.

    Args:
        prior: torch distribution of vectors (P,): `Independent` of one of the families above, `MultivariateNormal`, sbi's
            `BoxUniform` or `MultipleIndependent`; or a list of such distributions and of one-dimensional ones.
        numerical: Whether to take powers of other densities of one variable by quadrature.

    Attributes:
        num_gammas: Number K of powers.
        prior: The distribution at γ = 1.
        event_shape: Shape (P,) of theta.

    Raises:
        TypeError: If the prior, or a part of it, has a power that is not known (and may not be computed numerically).
        ValueError: If the prior is not over vectors.

    Example:
        >>> prior = PowerScaledPrior(Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
        >>> prior.condition([4.0, 1.0]).stddev
        tensor([0.5000, 1.0000])
        >>> prior.condition(torch.ones(7, 2)).sample((3,)).shape
        torch.Size([3, 7, 2])

        Where the net is of the likelihood (sbi's NLE, NRE) it does not depend on the prior, and nothing is trained again::

            inference = NLE(prior.prior).append_simulations(theta, x)
            inference.train()
            inference.build_posterior(prior=prior.condition(0.5)).sample((1000,), x=x_o)
    """

    def __init__(self, prior: Distribution | Sequence[Distribution], numerical: bool = False):
        if isinstance(prior, PowerScaledPrior):
            raise TypeError("prior is a PowerScaledPrior already.")
        self._blocks = [_as_block(part, numerical) for part in _parts(prior)]
        self.num_gammas = sum(block.num_gammas for block in self._blocks)
        self.prior = self.condition(1.0)
        self.event_shape = self.prior.event_shape

    def condition(self, gamma: Any) -> Distribution:
        """The prior at γ.

        Args:
            gamma: Powers, positive: (..., K), or (..., 1) or a number for one and the same.

        Returns:
            Distribution of batch shape (...) and event shape (P,).

        Raises:
            ValueError: If a γ is not finite and positive, their number is wrong, or p(θ)^γ has no finite integral.
        """
        gamma = as_finite_tensor(gamma, "gamma").to(torch.get_default_dtype())
        if gamma.shape[-1] not in (1, self.num_gammas):
            raise ValueError(
                f"gamma must have {self.num_gammas} values, one for each block of the prior, or 1 for all, in its last "
                f"dimension; got shape {tuple(gamma.shape)}."
            )
        if not bool((gamma > 0).all()):
            first = tuple((gamma <= 0).nonzero()[0].tolist())
            raise ValueError(f"gamma must be positive, got {gamma[first].item()} at index {first}.")
        gammas = gamma.expand(*gamma.shape[:-1], self.num_gammas).split([b.num_gammas for b in self._blocks], -1)
        blocks = [block.scale(part) for block, part in zip(self._blocks, gammas, strict=True)]
        return blocks[0] if len(blocks) == 1 else JointDistribution(blocks)


class _Independents:
    """Independent parameters of one family: base of batch shape (k,), or () for one, and k powers."""

    def __init__(self, base: Distribution, numerical: bool):
        self.base, self.num_gammas = base, base.batch_shape.numel()
        if type(base) not in _RULES and not numerical:
            known = ", ".join(sorted(family.__name__ for family in _RULES))
            raise TypeError(
                f"the power of a {type(base).__name__} is not known in closed form ({known} and MultivariateNormal are): "
                "for a density of one variable give numerical=True."
            )

    def scale(self, gamma: Tensor) -> Distribution:
        return Independent(_RULES.get(type(self.base), PoweredDensity)(self.base, gamma), 1)


class _Correlated:
    """A vector of correlated normal parameters: one power."""

    num_gammas = 1

    def __init__(self, base: MultivariateNormal):
        self.base = base

    def scale(self, gamma: Tensor) -> Distribution:
        # (...,) powers of a (P, P) factor
        return MultivariateNormal(self.base.loc, scale_tril=self.base.scale_tril / gamma.unsqueeze(-1).sqrt())


def _parts(prior: Any) -> list[Any]:
    if isinstance(prior, (list, tuple)):
        if not prior:
            raise ValueError("prior must be a distribution or a list of them, got none.")
        return [part for each in prior for part in _parts(each)]
    if isinstance(prior, JointDistribution):
        return prior.blocks
    if hasattr(prior, "dists") and hasattr(prior, "dims_per_dist"):  # sbi's MultipleIndependent, not imported here
        return list(prior.dists)
    return [prior]


def _as_block(part: Any, numerical: bool) -> _Independents | _Correlated:
    if not isinstance(part, Distribution):
        raise TypeError(f"prior must be made of torch distributions, got {part!r}.")
    if isinstance(part, MultivariateNormal) and not part.batch_shape:
        covariance = part.covariance_matrix
        if bool((covariance == torch.diag_embed(covariance.diagonal())).all()):
            return _Independents(Normal(part.loc, covariance.diagonal().sqrt()), numerical)
        return _Correlated(part)
    base = part
    if isinstance(part, Independent) and part.reinterpreted_batch_ndims == 1:
        base = part.base_dist
    if base.event_shape or (base is part and base.batch_shape not in ((), (1,))) or len(base.batch_shape) > 1:
        raise ValueError(
            f"prior must be over vectors (P,), made of independent parameters (`Independent(..., 1)`) and normal vectors; "
            f"got {part!r} of batch shape {tuple(part.batch_shape)} and event shape {tuple(part.event_shape)}."
        )
    return _Independents(base, numerical)
