r"""Mixtures of normal densities: log density and log probability of intervals, for many pairs of values and mixtures.

    log Σ_k w_k N(z; m_k, s_k) = log Σ_k exp(c_k − t_k²),   t_k = (z − m_k) / (√2 s_k),   c_k = log w_k − log s_k − ½ log 2π

Contrastive bounds and particles ask for millions of pairs, so memory traffic is the price. Forward two fused passes for each
component and one log-sum-exp; backward the shares r_k = w_k N(z; m_k, s_k) / p(z), which are all that gradients need.
Probabilities of intervals, Σ_k w_k (Φ(b_k) − Φ(a_k)), are summed as they are, from erfc in the tail where it keeps its
digits, and in logs only where the sum nearly underflows: log Φ takes fifteen times as long as erfc.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["mixture_log_interval", "mixture_log_prob"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_TINY = 1e-30  # a probability from which float32 loses digits


def mixture_log_prob(z: Tensor, log_weight: Tensor, mean: Tensor, log_sd: Tensor) -> Tensor:
    """log p(z), leading dimensions broadcast; once differentiable.

    Args:
        z: Values (...).
        log_weight: Normalised log weights (K, ...).
        mean: Means (K, ...).
        log_sd: Log standard deviations (K, ...).
    """
    scale = (-log_sd).exp() * math.sqrt(0.5)
    return _MixtureLogProb.apply(z, scale, -mean * scale, log_weight - log_sd - _HALF_LOG_2PI)


def mixture_log_interval(low: Tensor, high: Tensor, log_weight: Tensor) -> Tensor:
    """log Σ_k w_k (Φ(high_k) − Φ(low_k)), leading dimensions broadcast.

    Args:
        low: Lower ends (K, ...), in standard deviations from the means.
        high: Upper ends (K, ...).
        log_weight: Normalised log weights (K, ...).
    """
    flip = low > 0
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)  # so that no digits cancel
    tails = torch.erfc(high * -math.sqrt(0.5)) - torch.erfc(low * -math.sqrt(0.5))
    total = (tails * (0.5 * log_weight.exp())).sum(0)
    value, is_far = total.clamp_min(_TINY).log(), total < _TINY
    if is_far.any():
        far = [x.expand(-1, *value.shape)[:, is_far] for x in (low, high, log_weight)]
        value = value.masked_scatter(is_far, (far[2] + _log_interval(far[0], far[1])).logsumexp(0))
    return value


def _log_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(Φ(high) − Φ(low)) for intervals that do not lie above 0, exact in the tail."""
    above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return above + torch.log1p(-torch.exp((below - above).clamp_max(-1e-6)))


class _MixtureLogProb(torch.autograd.Function):
    """log Σ_k exp(c_k − (a_k z + b_k)²), of z (...) and a, b, c (K, ...)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        t = torch.addcmul(b, a, z)
        each = torch.addcmul(c, t, t, value=-1.0)
        largest = each.amax(0).clamp_(min=torch.finfo(each.dtype).min)  # all may be impossible
        each.sub_(largest).exp_()
        total = each.sum(0)
        ctx.save_for_backward(z, a, t, each.div_(total))
        ctx.shapes = z.shape, b.shape, c.shape
        return total.log_().add_(largest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, a, t, share = ctx.saved_tensors
        of_z, of_mixture = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:])
        of_each = share * grad  # what each component receives
        of_t = t * of_each
        of_t.mul_(-2.0)
        grad_z = (of_t * a).sum(0).sum_to_size(z.shape) if of_z else None
        if not of_mixture:
            return grad_z, None, None, None
        return (
            grad_z,
            (of_t * z).sum_to_size(a.shape),
            of_t.sum_to_size(ctx.shapes[1]),
            of_each.sum_to_size(ctx.shapes[2]),
        )
