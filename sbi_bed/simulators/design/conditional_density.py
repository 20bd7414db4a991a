r"""A density p(y | θ, ξ) that is learned from simulations, and cheap where many θ meet many trials.

    log p(y | θ, ξ) = Σ_j log p(y_j | θ, ξ, y_1 … y_{j−1})

Each factor is a mixture: of the values that outcomes take exactly (atoms: categories, zeros, ends of a scale), and of
normal densities in scaled coordinates; whole numbers get the normal probability of their interval. Its parameters come
from two nets, one that reads θ and one that reads ξ and y_1 … y_{j−1}. They meet in a bilinear layer and one hidden layer,

    u_h = Σ_r a_hr(θ) b_hr(ξ, y_<j),     parameters = V SiLU(u) + W u + c.

A thousand θ and a thousand trials are thus a million pairs at the price of a thousand nets of each and a matrix product,
which is what contrastive bounds and particles need. Outcomes are drawn with gradients: those of the continuous part
follow from the distribution function F by dy = −dF / p (Figurnov et al. 2018, arXiv 1805.08498).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.warn_user import is_first_in_call, warn_user
from .normal_mixture import mixture_log_interval, mixture_log_prob
from .scaling import Scaling

__all__ = ["ConditionalDensity"]

_MOST_CATEGORIES = 16  # whole numbers with no more different values are categories
_LEAST_SHARE = 0.005  # of outcomes that equal a value exactly, for an atom
_FEW = 0.01  # share of values that may be there
_FAR = 1e3  # standard deviations: beyond, gradients of log Φ lose all digits in float32
_LOG_2PI = math.log(2 * math.pi)


class ConditionalDensity(nn.Module):
    """p(y | θ, ξ); its nets are to be trained by −`log_prob`.

    Args:
        theta: Simulations that show what is to be learned: parameters (N, P),
        design: designs (N, D),
        outcome: and outcomes (N, O).
        num_components: Number K of normal densities in each mixture.
        num_hidden: Number H of pair features.
        rank: Terms of each.
        net_dim: Width of the two nets.

    Attributes:
        theta_scaling: How θ is read.
        design_scaling: How ξ is read.
        outcome_scaling: What outcomes there were.
        factors: The factors, one for each of the O values.
    """

    def __init__(
        self,
        theta: Tensor,
        design: Tensor,
        outcome: Tensor,
        *,
        num_components: int = 3,
        num_hidden: int = 16,
        rank: int = 8,
        net_dim: int = 64,
    ):
        super().__init__()
        self.config = {"num_components": num_components, "num_hidden": num_hidden, "rank": rank, "net_dim": net_dim}
        self.theta_scaling, self.design_scaling, self.outcome_scaling = map(Scaling, (theta, design, outcome))
        self.factors = nn.ModuleList(
            _Factor(self.theta_scaling.num_read, self.design_scaling.num_read + j, outcome[:, j], **self.config)
            for j in range(outcome.shape[-1])
        )

    @property
    def is_continuous(self) -> bool:
        """Whether no part of an outcome is discrete."""
        return all(factor.num_atoms == 0 and not factor.whole for factor in self._each())

    @property
    def is_discrete(self) -> bool:
        """Whether all of an outcome is."""
        return all(factor.whole or not factor.has_rest for factor in self._each())

    @property
    def categories(self) -> Tensor | None:
        """The values (K,) that the one value of an outcome can take; None where there are several, or no such values."""
        first = self._each()[0]
        return first.atoms if len(self.factors) == 1 and first.num_atoms and not first.has_rest else None

    def log_prob(self, theta: Tensor, design: Tensor, outcome: Tensor, discrete_only: bool = False) -> Tensor:
        """log p(y | θ, ξ), or of its discrete part alone, shape (...), in the precision of theta."""
        total: Any = 0.0
        for factor, y, parameters in self._factors_at(theta, design, outcome):
            total = total + factor.log_prob(y, parameters, discrete_only)
        return total.to(theta)

    def sample(self, theta: Tensor, design: Tensor, alike: int | None = None) -> Tensor:
        """Outcomes (..., O) drawn by torch's global generator, with gradients of continuous parts.

        Args:
            theta: Parameters (..., P).
            design: Designs (..., D).
            alike: One of the leading dimensions, counted from the last: all along it are drawn by the same random numbers.
        """
        lead = torch.broadcast_shapes(theta.shape[:-1], design.shape[:-1])
        drawn = list(lead)
        if alike is not None:
            drawn[alike] = 1
        (read, known), outcome = self._read(theta, design), []
        for factor in self._each():
            outcome.append(factor.sample(factor.parameters_of(read, known), lead, drawn))
            known = _join(known, factor.read(outcome[-1]))
        return torch.stack(outcome, -1).to(theta)

    def ranks(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        """F(y_j | θ, ξ, y_<j), (..., O), uniform under the density; ties of discrete values broken at random."""
        each = self._factors_at(theta, design, outcome)
        return torch.stack([factor.rank(y, parameters) for factor, y, parameters in each], -1)

    def warn_outside(self, **values: Tensor) -> None:
        """Warn, once in a call, where a hundredth of values of theta, design or outcome (..., F) leave the simulations.

        Warns:
            RuntimeWarning: With the worst value of each that did, and the range that was simulated.
        """
        found = []
        for name, value in values.items():
            scaling: Any = getattr(self, f"{name}_scaling")
            outside = scaling.outside(value).reshape(-1, value.shape[-1])
            for index in (outside.double().mean(0) > _FEW).nonzero().flatten().tolist():
                low, high, column = float(scaling.low[index]), float(scaling.high[index]), value[..., index].reshape(-1)
                worst = float(column[((column - low).clamp_max(0) + (column - high).clamp_min(0)).abs().argmax()])
                found.append(f"{name}[{index}] = {worst:.4g}, simulated from {low:.4g} to {high:.4g}")
        if found and is_first_in_call():
            warn_user(
                f"the learned likelihood is asked outside its simulations, where it can be wrong: {'; '.join(found)}. "
                "Look for another unit, or simulate with a wider prior and design space.",
                RuntimeWarning,
            )

    def _each(self) -> Any:
        return self.factors

    def _factors_at(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Iterator[tuple[Any, Tensor, Tensor]]:
        """Each factor with its value of the outcome and its parameters."""
        num_dims = max(theta.ndim, design.ndim, outcome.ndim)
        theta, design, outcome = (x.reshape(*[1] * (num_dims - x.ndim), *x.shape) for x in (theta, design, outcome))
        read, known = self._read(theta, design)
        for j, factor in enumerate(self._each()):
            y = outcome[..., j].to(read)
            yield factor, y, factor.parameters_of(read, known)
            known = _join(known, factor.read(y))

    def _read(self, theta: Tensor, design: Tensor) -> tuple[Tensor, Tensor]:
        dtype = next(self.parameters()).dtype
        return self.theta_scaling.read(theta).to(dtype), self.design_scaling.read(design).to(dtype)


class _Factor(nn.Module):
    """p(y_j | θ, known), known = (ξ, y_<j)."""

    atoms: Tensor
    ends: Tensor

    def __init__(
        self,
        theta_dim: int,
        known_dim: int,
        outcome: Tensor,
        num_components: int,
        num_hidden: int,
        rank: int,
        net_dim: int,
    ):
        super().__init__()
        values, counts = outcome.unique(return_counts=True)
        self.whole = bool((values == values.round()).all())
        if self.whole and len(values) <= _MOST_CATEGORIES:
            atoms, self.whole = values, False
        else:
            atoms = values[counts >= max(3.0, _LEAST_SHARE * len(outcome))] if not self.whole else values[:0]
        rest = outcome[(outcome.unsqueeze(-1) != atoms).all(-1)] if len(atoms) else outcome
        self.has_rest = len(rest) > 1
        self.num_atoms, self.num_components = len(atoms), num_components if self.has_rest else 0
        self.register_buffer("atoms", atoms)
        common = counts[[0, -1]] >= _LEAST_SHARE * len(outcome)
        ends = torch.where(common, values[[0, -1]], torch.tensor([-torch.inf, torch.inf]).to(values))
        self.register_buffer("ends", ends)  # whole numbers at an end stand for all beyond
        self.scaling = Scaling((rest if self.has_rest else outcome).unsqueeze(-1))
        self.num_outputs = self.num_atoms + self.has_rest * bool(self.num_atoms) + 3 * self.num_components
        self.pair_shape = (num_hidden, rank)
        self.of_theta, self.of_known = (_net(dim, net_dim, num_hidden * rank) for dim in (theta_dim, known_dim))
        self.last = nn.Linear(2 * num_hidden, self.num_outputs)
        with torch.no_grad():
            self.last.weight.mul_(0.3)

    def read(self, y: Tensor) -> Tensor:
        """What later factors know of y (...), (..., 1)."""
        return self.scaling(y.unsqueeze(-1)).clamp(-10.0, 10.0)

    def parameters_of(self, theta: Tensor, known: Tensor) -> Tensor:
        """Mixture parameters, first dimension theirs, then the leading dimensions broadcast."""
        shape = self.pair_shape
        u = _pairs(self.of_theta(theta).unflatten(-1, shape), self.of_known(known).unflatten(-1, shape))
        shape, u = u.shape[1:], u.reshape(len(u), -1)
        curved, straight = self.last.weight.split(len(u), 1)
        out = torch.addmm(self.last.bias.unsqueeze(-1), straight, u).addmm(curved, nn.functional.silu(u))
        return out.reshape(self.num_outputs, *shape)

    def log_prob(self, y: Tensor, parameters: Tensor, discrete_only: bool = False) -> Tensor:
        """log p(y), shape (...)."""
        rest = self._log_rest(y, parameters) if self.has_rest and (self.whole or not discrete_only) else 0.0
        if self.num_atoms == 0:
            return rest + torch.zeros_like(parameters[0])
        log_part = parameters[: self.num_atoms + self.has_rest].log_softmax(0)
        which = self._which(y)
        lead = torch.broadcast_shapes(log_part.shape[1:], which.shape)
        index = which.clamp_max(len(log_part) - 1).expand(lead).unsqueeze(0)
        chosen = log_part.expand(-1, *lead).gather(0, index)[0]
        if not self.has_rest:  # a category that was never seen
            return torch.where(which < self.num_atoms, chosen, -torch.inf)
        return chosen + torch.where(which < self.num_atoms, 0.0, rest)

    def sample(self, parameters: Tensor, lead: torch.Size, drawn: list[int]) -> Tensor:
        """y (...) of shape `lead`, with gradients of what is continuous, from random numbers of shape `drawn`."""
        y = torch.zeros(lead, dtype=parameters.dtype, device=parameters.device)
        if self.has_rest:
            log_w, mean, log_sd = self._mixture(parameters)
            which = _categorical(log_w.detach(), drawn).unsqueeze(0)
            its_mean, its_log_sd = (torch.take_along_dim(x, which, 0)[0] for x in (mean, log_sd))
            z = its_mean + its_log_sd.exp() * y.new_empty(drawn).normal_()
            if self.num_components > 1 and z.requires_grad:
                z = z.detach()
                distribution, density = self._cdf_and_density(z, log_w, mean, log_sd)
                z = z - (distribution - distribution.detach()) / density.detach().clamp_min(1e-6)
            y = self.scaling.inverse(z.unsqueeze(-1))[..., 0]
            if self.whole:
                y = y.detach().round().clamp(*self.ends.tolist())
        if self.num_atoms:
            part = _categorical(parameters[: self.num_atoms + self.has_rest].detach(), drawn)
            atom = self.atoms.to(y)[part.clamp_max(self.num_atoms - 1)]
            y = torch.where(part < self.num_atoms, atom, y)
        return y

    def rank(self, y: Tensor, parameters: Tensor) -> Tensor:
        """F(y) with ties broken at random, (...)."""
        rest = torch.zeros_like(parameters[0])
        if self.has_rest:
            log_w, mean, log_sd = self._mixture(parameters)
            if self.whole:
                low, high = (self._below(edge, mean, log_sd) for edge in self._edges(y))
                share = torch.rand_like(rest)
                rest = (log_w.exp() * (torch.special.ndtr(low) * (1 - share) + torch.special.ndtr(high) * share)).sum(0)
            else:
                rest = self._cdf_and_density(self.scaling(y.unsqueeze(-1))[..., 0], log_w, mean, log_sd)[0]
        if self.num_atoms == 0:
            return rest
        part = parameters[: self.num_atoms + self.has_rest].softmax(0)
        atoms = self.atoms.to(y).reshape(-1, *[1] * y.ndim)
        at, below = ((atoms == y) * part[: self.num_atoms]).sum(0), ((atoms < y) * part[: self.num_atoms]).sum(0)
        if not self.has_rest:
            return below + at * torch.rand_like(at)
        # Values of the rest are ranked among all: atoms below y count, and so does the rest below y.
        return below + at * torch.rand_like(at) + part[-1] * rest

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and log sds (K, ...)."""
        log_w, mean, log_sd = parameters[-3 * self.num_components :].split(self.num_components)
        if self.num_components > 1:  # components start apart
            apart = torch.linspace(-1.0, 1.0, self.num_components).to(mean)
            mean = mean + apart.reshape(-1, *[1] * (mean.ndim - 1))
        return log_w.log_softmax(0), mean, log_sd.clamp(-9.0, 4.0)

    def _log_rest(self, y: Tensor, parameters: Tensor) -> Tensor:
        log_w, mean, log_sd = self._mixture(parameters)
        if not self.whole:
            slope = self.scaling.log_slope(y.unsqueeze(-1))[..., 0]
            return mixture_log_prob(self.scaling(y.unsqueeze(-1))[..., 0], log_w, mean, log_sd) + slope
        low, high = (self._below(edge, mean, log_sd) for edge in self._edges(y))
        return mixture_log_interval(low, high, log_w)

    def _edges(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the interval of a whole number, in scaled coordinates."""
        low, high = (self.scaling((y + step).unsqueeze(-1))[..., 0] for step in (-0.5, 0.5))
        return low.where(y > self.ends[0], -(_FAR**2)), high.where(y < self.ends[1], _FAR**2)

    @staticmethod
    def _below(edge: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
        return ((edge - mean) * (-log_sd).exp()).clamp(-_FAR, _FAR)

    @staticmethod
    def _cdf_and_density(z: Tensor, log_w: Tensor, mean: Tensor, log_sd: Tensor) -> tuple[Tensor, Tensor]:
        far = (z - mean) * (-log_sd).exp()
        density = (log_w - 0.5 * far.square() - log_sd - 0.5 * _LOG_2PI).exp().sum(0)
        return (log_w.exp() * torch.special.ndtr(far)).sum(0), density

    def _which(self, y: Tensor) -> Tensor:
        """Index (...) of the atom that y equals; the number of atoms where it equals none."""
        equal = y.unsqueeze(-1) == self.atoms.to(y)
        return torch.where(equal.any(-1), equal.to(torch.uint8).argmax(-1), self.num_atoms)


def _net(input_dim: int, width: int, output_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(input_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, output_dim)
    )


def _join(known: Tensor, read: Tensor) -> Tensor:
    """(..., F) and (..., 1) → (..., F + 1), leading dimensions broadcast."""
    lead = torch.broadcast_shapes(known.shape[:-1], read.shape[:-1])
    return torch.cat([known.expand(*lead, -1), read.to(known).expand(*lead, -1)], -1)


def _pairs(a: Tensor, b: Tensor) -> Tensor:
    """Σ_r a_hr b_hr, shape (H, ...), for (..., H, R) each, leading dimensions broadcast; by matrix products."""
    num_lead = max(a.ndim, b.ndim) - 2
    a, b = (x.reshape(*[1] * (num_lead + 2 - x.ndim), *x.shape) for x in (a, b))
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    terms = [
        ("".join(chr(97 + i) for i in range(num_lead) if x.shape[i] != 1) + "yz", x.squeeze(tuple(range(num_lead))))
        for x in (a, b)
    ]
    kept = "".join(chr(97 + i) for i in range(num_lead) if lead[i] != 1)
    product = torch.einsum(f"{terms[0][0]},{terms[1][0]}->y{kept}", terms[0][1], terms[1][1])
    return product.reshape(product.shape[0], *lead)


def _categorical(logits: Tensor, drawn: list[int]) -> Tensor:
    """Draws (...) from logits (K, ...), by random numbers of shape `drawn`."""
    if len(logits) == 1:
        return torch.zeros(logits.shape[1:], dtype=torch.long, device=logits.device)
    uniform = logits.new_empty(len(logits), *drawn).uniform_().clamp_min(1e-30)
    return (logits - (-uniform.log()).log()).argmax(0)
