r"""Contrastive bounds on the expected information gain, streamed over contrastive samples.

A history h = (ξ_1, y_1, …, ξ_T, y_T) of θ_0 ~ p(θ) under a policy carries the gain E[log p(h | θ_0) − log p(h)]. With
contrastive θ_1, …, θ_L ~ p(θ) (Foster et al. 2020, arXiv 1911.00294; 2021, arXiv 2103.02438)

    sPCE = E[ log p(h | θ_0) − log 1/(L+1) Σ_{l=0..L} p(h | θ_l) ]  ≤  EIG,
    sNMC = E[ log p(h | θ_0) − log 1/L Σ_{l=1..L} p(h | θ_l) ]      ≥  EIG.

Both need log Σ_l p(h | θ_l) =: s. Its gradient is Σ_l w_l ∇ log p(h | θ_l) with softmax weights w_l, so contrastive
samples can be taken in chunks: a running maximum, a running sum and a running gradient, rescaled as the maximum grows.
One forward and one backward pass for each chunk; what is kept is O(B · T), never O(B · L · T). Contrastive samples are
shared over the batch of histories, which leaves the expectation for each history as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..simulators.base import DesignSimulator

__all__ = ["log_likelihood_of_history", "log_sum_likelihood", "snmc", "spce"]

_CHUNK_ELEMENTS = 2**17  # values of one intermediate of a likelihood: about what a core's cache holds


def log_likelihood_of_history(simulator: DesignSimulator, theta: Tensor, designs: Tensor, outcomes: Tensor) -> Tensor:
    """log p(y_t | θ, ξ_t) of each trial, shape (..., T), for theta (..., P), designs (..., T, D), outcomes (..., T, O)."""
    return simulator.log_likelihood(theta.unsqueeze(-2), designs, outcomes)


def spce(log_likelihood: Tensor, log_sum: Tensor, num_contrastive: int) -> Tensor:
    """Sequential prior contrastive estimate, a lower bound, for each history.

    Args:
        log_likelihood: log p(h | θ_0), any shape.
        log_sum: log Σ_{l=1..L} p(h | θ_l), same shape.
        num_contrastive: L.
    """
    return log_likelihood - torch.logaddexp(log_likelihood, log_sum) + math.log(num_contrastive + 1)


def snmc(log_likelihood: Tensor, log_sum: Tensor, num_contrastive: int) -> Tensor:
    """Sequential nested Monte Carlo estimate, an upper bound, for each history; arguments as for `spce`."""
    return log_likelihood - log_sum + math.log(num_contrastive)


def log_sum_likelihood(
    simulator: DesignSimulator,
    contrastive: Tensor,
    designs: Tensor,
    outcomes: Tensor,
    log_weights: Tensor | None = None,
    every_trial: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    """log Σ_l w_l p(h | θ_l), streamed; differentiable once in designs and outcomes.

    Args:
        simulator: Experiment with a likelihood.
        contrastive: θ_1, …, θ_L, shape (L, P), shared by all histories.
        designs: Shape (B, T, D).
        outcomes: Shape (B, T, O).
        log_weights: Logs of weights w_l, shape (L,); all 1 if None.
        every_trial: Return the sums after each trial, (T, B), instead of after the last, (B,). Gradients are then those
            of the last row alone.
        chunk_size: Contrastive samples taken at a time; chosen to fit the cache if None.

    Returns:
        Shape (B,), or (T, B) with `every_trial`.

    Source: DAD, arXiv 2103.02438, eq. (11)-(12), for the sums; the streaming is ours.
    """
    batch, num_trials = designs.shape[:2]
    if chunk_size is None:
        chunk_size = max(1, _CHUNK_ELEMENTS // max(1, batch * num_trials))
    stream = (simulator, contrastive, log_weights, every_trial, chunk_size)
    return _StreamedLogSum.apply(designs, outcomes, stream)


class _StreamedLogSum(torch.autograd.Function):
    """The stream of the module's docstring; gradients are gathered in the forward pass, scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, designs: Tensor, outcomes: Tensor, stream: tuple) -> Tensor:  # pyright: ignore
        simulator, contrastive, log_weights, every_trial, chunk_size = stream
        wanted = [tensor for tensor, needed in zip((designs, outcomes), ctx.needs_input_grad, strict=False) if needed]
        designs, outcomes = _trials_first(designs), _trials_first(outcomes)
        leaves = [
            leaf.requires_grad_() for leaf, need in zip((designs, outcomes), ctx.needs_input_grad, strict=False) if need
        ]
        gradients = [torch.zeros_like(leaf) for leaf in leaves]
        shape = (designs.shape[0], designs.shape[2]) if every_trial else (designs.shape[2],)
        top, total = designs.new_full(shape, -1e30), designs.new_zeros(shape)
        for start in range(0, len(contrastive), chunk_size):
            chunk = _features_first(contrastive[start : start + chunk_size]).unsqueeze(1)
            with torch.set_grad_enabled(bool(leaves)):
                trials = simulator.log_likelihood(chunk, designs, outcomes)
                last = trials.sum(0)
                if log_weights is not None:
                    last = last + log_weights[start : start + chunk_size].unsqueeze(-1)
            values = last.detach()
            if every_trial:
                values = trials.detach().cumsum(0)
                if log_weights is not None:
                    values = values + log_weights[start : start + chunk_size].unsqueeze(-1)
            new_top = torch.maximum(top, values.amax(-2))
            decay, weights = torch.exp(top - new_top), torch.exp(values - new_top.unsqueeze(-2))
            total, top = torch.addcmul(weights.sum(-2), total, decay), new_top
            if leaves:
                weights, decay = (weights[-1], decay[-1]) if every_trial else (weights, decay)
                found = torch.autograd.grad(last, leaves, grad_outputs=weights, allow_unused=True)
                for gradient, more in zip(gradients, found, strict=True):
                    gradient.mul_(decay.unsqueeze(-1))
                    if more is not None:
                        gradient.add_(more)
        if wanted:
            final = (total[-1] if every_trial else total).unsqueeze(-1)
            weight = torch.where(final > 0, 1.0 / final, 0.0)  # 0: no contrastive sample allows this history
            ctx.save_for_backward(*[(gradient * weight).squeeze(1).transpose(0, 1) for gradient in gradients])
        ctx.every_trial = every_trial
        return top + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        scale = (grad_output[-1] if ctx.every_trial else grad_output)[:, None, None]
        found = iter(ctx.saved_tensors)
        return (*(next(found) * scale if need else None for need in ctx.needs_input_grad[:2]), None)


def _features_first(tensor: Tensor) -> Tensor:
    """The same tensor, stored so that each feature (last dimension) is contiguous."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def _trials_first(tensor: Tensor) -> Tensor:
    """(B, T, F) → (T, 1, B, F), detached, each feature contiguous: sums over trials then run along memory."""
    return _features_first(tensor.detach().transpose(0, 1).unsqueeze(1))
