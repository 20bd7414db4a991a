r"""A weaker or stronger prior: p(θ)^γ, renormalised, with a power γ for each parameter.

γ = 1 is the prior itself, γ < 1 is wider and γ > 1 narrower (Kallioinen et al. 2023, arXiv 2107.14054, for sensitivity to
the prior; arXiv 2310.11122 for networks with γ as input). Powers of the usual families stay in their family:

    Normal(m, s)         → Normal(m, s/√γ)                    Gamma(a, b)        → Gamma(γ(a − 1) + 1, γb)
    LogNormal(m, s)      → LogNormal(m + (1 − γ)s²/γ, s/√γ)   InverseGamma(a, b) → InverseGamma(γ(a + 1) − 1, γb)
    HalfNormal(s)        → HalfNormal(s/√γ)                   Beta(a, b)         → Beta(γ(a − 1) + 1, γ(b − 1) + 1)
    Exponential(b)       → Exponential(γb)                    Laplace(m, b)      → Laplace(m, b/γ)
    Normal(m, Σ), vector → Normal(m, Σ/γ)                     Uniform            → itself
    Dirichlet(a)         → Dirichlet(γ(a − 1) + 1)

The location of a log-normal shifts because the power is that of the density of θ, not of log θ. Powers of other densities
of one variable are computed numerically. p^γ has a finite integral only for some γ; the tails of p decide (`tails.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Beta,
    Chi2,
    Dirichlet,
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
from ...utils.seeding import seeded
from .joint_distribution import JointDistribution
from .numerical_density import PoweredDensity
from .tails import Tails, check_powers, gamma_bounds, tails_of

__all__ = ["PowerScaledPrior"]


_RULES: dict[type, Callable[[Any, Tensor], Distribution]] = {
    Normal: lambda d, g: Normal(d.loc, d.scale / g.sqrt()),
    LogNormal: lambda d, g: LogNormal(d.loc + (1 - g) / g * d.scale.square(), d.scale / g.sqrt()),
    HalfNormal: lambda d, g: HalfNormal(d.scale / g.sqrt()),
    Exponential: lambda d, g: Exponential(d.rate * g),
    Laplace: lambda d, g: Laplace(d.loc, d.scale / g),
    Gamma: lambda d, g: Gamma(g * (d.concentration - 1) + 1, d.rate * g),
    InverseGamma: lambda d, g: InverseGamma(g * (d.concentration + 1) - 1, d.rate * g),
    Beta: lambda d, g: Beta(g * (d.concentration1 - 1) + 1, g * (d.concentration0 - 1) + 1),
    Uniform: lambda d, g: d.expand(torch.broadcast_shapes(d.batch_shape, g.shape)),
}
_RULES[Chi2] = _RULES[Gamma]


class PowerScaledPrior:
    """A prior at any power γ: `condition(gamma)` gives the prior at γ.

    Each independent parameter has its own γ. A vector of correlated normal parameters, or a Dirichlet vector, is one block
    with one γ. A multivariate normal with a diagonal covariance counts as independent parameters.

    Args:
        prior: torch distribution of vectors (P,): `Independent` of one of the families above, `MultivariateNormal`,
            `Dirichlet`, sbi's `BoxUniform` or `MultipleIndependent`; or a list of such distributions and of one-dimensional
            ones.
        numerical: Whether to compute powers of other densities of one variable by quadrature.

    Attributes:
        num_gammas: Number K of powers.
        gamma_bounds: The open interval of powers with a finite integral: lower and upper ends, (2, K), float64.
        prior: The distribution at γ = 1.
        event_shape: Shape (P,) of theta.

    Raises:
        TypeError: If the power of a part of the prior is not known, and `numerical` is False.
        ValueError: If the prior is not over vectors, or the powers of a part cannot be computed.

    Example:
        >>> prior = PowerScaledPrior(Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
        >>> prior.condition([4.0, 1.0]).stddev
        tensor([0.5000, 1.0000])
        >>> prior.condition(torch.ones(7, 2)).sample((3,)).shape
        torch.Size([3, 7, 2])

        A net of the likelihood (sbi's NLE, NRE) does not depend on the prior, so it serves for all γ::

            inference = NLE(prior.prior).append_simulations(theta, x)
            inference.train()
            inference.build_posterior(prior=prior.condition(0.5)).sample((1000,), x=x_o)
    """

    def __init__(self, prior: Distribution | Sequence[Distribution], numerical: bool = False):
        if isinstance(prior, PowerScaledPrior):
            raise TypeError("prior is a PowerScaledPrior already.")
        self._blocks = [_as_block(part, numerical) for part in _parts(prior)]
        self.num_gammas = sum(block.num_gammas for block in self._blocks)
        self.gamma_bounds = torch.stack(
            [torch.cat(ends) for ends in zip(*(b.gamma_bounds for b in self._blocks), strict=True)]
        )
        self.prior = self.condition(1.0)
        self.event_shape = self.prior.event_shape

    def condition(self, gamma: Any) -> Distribution:
        """The prior at γ.

        Args:
            gamma: Powers, positive: (..., K), or (..., 1) or a number for the same power everywhere.

        Returns:
            Distribution of batch shape (...) and event shape (P,).

        Raises:
            ValueError: If a γ is not finite and positive, their number is wrong, p(θ)^γ has no finite integral (the error
                says the bound), or is so wide that more than 1 % of its draws exceed the range of floating-point numbers.
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
    """Independent parameters of one family: base of batch shape (k,), or () for one parameter, and k powers."""

    def __init__(self, base: Distribution, numerical: bool):
        self.base, self.num_gammas = base, base.batch_shape.numel()
        if type(base) not in _RULES and not numerical:
            known = ", ".join(sorted(family.__name__ for family in _RULES))
            raise TypeError(
                f"the power of a {type(base).__name__} is not known in closed form ({known}, MultivariateNormal and "
                "Dirichlet are): for a density of one variable give numerical=True."
            )
        with seeded(0):
            self.dtype = base.sample().dtype
        self.tails = tails_of(base)
        self.gamma_bounds = tuple(bound.reshape(-1) for bound in gamma_bounds(self.tails))

    def scale(self, gamma: Tensor) -> Distribution:
        if type(self.base) not in _RULES:
            return Independent(PoweredDensity(self.base, gamma, self.tails), 1)
        check_powers(gamma, self.tails, type(self.base).__name__, self.dtype)
        return Independent(_RULES[type(self.base)](self.base, gamma), 1)


class _Correlated:
    """A vector of correlated normal parameters: one power."""

    num_gammas = 1
    gamma_bounds = (torch.zeros(1, dtype=torch.float64), torch.full((1,), math.inf, dtype=torch.float64))

    def __init__(self, base: MultivariateNormal):
        self.base = base

    def scale(self, gamma: Tensor) -> Distribution:
        # (...,) powers of a (P, P) factor
        return MultivariateNormal(self.base.loc, scale_tril=self.base.scale_tril / gamma.unsqueeze(-1).sqrt())


class _Shares:
    """A Dirichlet vector: one power."""

    num_gammas = 1

    def __init__(self, base: Dirichlet):
        self.base = base
        smallest, end = base.concentration.double().amin().reshape(1) - 1, torch.zeros(1, dtype=torch.float64)
        self.tails = Tails(end, end + 1, smallest, smallest)  # where one share is 0; the others then add up to 1
        self.gamma_bounds = gamma_bounds(self.tails)

    def scale(self, gamma: Tensor) -> Distribution:
        check_powers(gamma, self.tails, "Dirichlet", self.base.concentration.dtype)
        return Dirichlet(gamma * (self.base.concentration - 1) + 1)


def _parts(prior: Any) -> list[Any]:
    if isinstance(prior, (list, tuple)):
        if not prior:
            raise ValueError("prior must be a distribution or a list of them, got none.")
        return [part for each in prior for part in _parts(each)]
    if isinstance(prior, JointDistribution):
        return _parts(prior.blocks)
    if hasattr(prior, "dists") and hasattr(prior, "dims_per_dist"):  # sbi's MultipleIndependent, not imported here
        return _parts(list(prior.dists))
    return [prior]


def _as_block(part: Any, numerical: bool) -> _Independents | _Correlated | _Shares:
    if not isinstance(part, Distribution):
        raise TypeError(f"prior must be made of torch distributions, got {part!r}.")
    if isinstance(part, MultivariateNormal) and not part.batch_shape:
        covariance = part.covariance_matrix
        if bool((covariance == torch.diag_embed(covariance.diagonal())).all()):
            return _Independents(Normal(part.loc, covariance.diagonal().sqrt()), numerical)
        return _Correlated(part)
    if isinstance(part, Dirichlet) and not part.batch_shape:
        return _Shares(part)
    base = part
    if isinstance(part, Independent) and part.reinterpreted_batch_ndims == 1:
        base = part.base_dist
    if base.event_shape or (base is part and base.batch_shape not in ((), (1,))) or len(base.batch_shape) > 1:
        raise ValueError(
            f"prior must be over vectors (P,), made of independent parameters (`Independent(..., 1)`) and normal vectors; "
            f"got {part!r} of batch shape {tuple(part.batch_shape)} and event shape {tuple(part.event_shape)}."
        )
    return _Independents(base, numerical)
