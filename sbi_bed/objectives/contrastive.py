r"""Contrastive bounds on the expected information gain, streamed over contrastive samples.

A history h = (ξ_1, y_1, …, ξ_T, y_T) of θ_0 ~ p(θ) under a policy carries the gain E[log p(h | θ_0) − log p(h)]. With
contrastive samples θ_1, …, θ_L ~ p(θ) there are two bounds (Foster et al. 2020, arXiv 1911.00294; 2021, arXiv 2103.02438):

    sPCE = E[ log p(h | θ_0) − log 1/(L+1) Σ_{l=0..L} p(h | θ_l) ]  ≤  EIG,
    sNMC = E[ log p(h | θ_0) − log 1/L Σ_{l=1..L} p(h | θ_l) ]      ≥  EIG.

Both need log Σ_l p(h | θ_l) =: s. Its gradient is Σ_l w_l ∇ log p(h | θ_l) with softmax weights w_l. So contrastive
samples can be processed in chunks, with a running maximum, a running sum and a running gradient, which are rescaled when
the maximum grows. Each chunk takes one forward and one backward pass; memory is O(B · T), never O(B · L · T). Contrastive
samples are either shared by all histories of the batch, which does not change the expectation, or drawn for each history.

With `compile=True` the passes of a chunk become one fused loop (`torch.compile`): the same estimator, less memory traffic.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..simulators.base import DesignSimulator
from ..utils.warn_user import warn_user

__all__ = ["log_likelihood_of_history", "log_sum_likelihood", "snmc", "spce"]

_CHUNK_ELEMENTS = 2**16  # values of one intermediate of a likelihood: about what a core's cache holds
_COMPILED_CHUNK_ELEMENTS = 2**20  # a fused loop keeps fewer of them


def log_likelihood_of_history(simulator: DesignSimulator, theta: Tensor, designs: Tensor, outcomes: Tensor) -> Tensor:
    """log p(y_t | θ, ξ_t) of each trial, shape (..., T), for theta (..., P), designs (..., T, D), outcomes (..., T, O).

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> designs, outcomes = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[1.1], [1.1]]])
        >>> log_likelihood_of_history(
        ...     LocationFinding(), torch.zeros(1, 2), designs, outcomes
        ... )  # of a source at the origin
        tensor([[-0.3211, -2.9438]])
    """
    return simulator.log_likelihood(theta.unsqueeze(-2), designs, outcomes)


def spce(log_likelihood: Tensor, log_sum: Tensor, num_contrastive: int) -> Tensor:
    """Sequential prior contrastive estimate, a lower bound, for each history.

    Args:
        log_likelihood: log p(h | θ_0), any shape.
        log_sum: log Σ_{l=1..L} p(h | θ_l), same shape.
        num_contrastive: Number L of contrastive samples.

    Example:
        >>> nothing_learnt = torch.tensor(-3.0) + math.log(7)  # every θ_l explains the history as well as θ_0
        >>> bool(spce(torch.tensor(-3.0), nothing_learnt, 7).abs() < 1e-6)
        True
        >>> spce(torch.tensor(-3.0), torch.tensor(-torch.inf), 7), math.log(8)  # the ceiling: no θ_l explains it at all
        (tensor(2.0794), 2.0794415416798357)
    """
    return log_likelihood - torch.logaddexp(log_likelihood, log_sum) + math.log(num_contrastive + 1)


def snmc(log_likelihood: Tensor, log_sum: Tensor, num_contrastive: int) -> Tensor:
    """Sequential nested Monte Carlo estimate, an upper bound, for each history; arguments as for `spce`.

    Example:
        >>> log_likelihood, log_sum = torch.tensor(-3.0), torch.tensor(-4.0)
        >>> bool(snmc(log_likelihood, log_sum, 7) > spce(log_likelihood, log_sum, 7))
        True
    """
    return log_likelihood - log_sum + math.log(num_contrastive)


def log_sum_likelihood(
    simulator: DesignSimulator,
    contrastive: Tensor,
    designs: Tensor,
    outcomes: Tensor,
    log_weights: Tensor | None = None,
    every_trial: bool = False,
    chunk_size: int | None = None,
    compile: bool = False,
) -> Tensor:
    """log Σ_l w_l p(h | θ_l), streamed; differentiable once in designs and outcomes.

    Args:
        simulator: Experiment with a likelihood.
        contrastive: θ_1, …, θ_L, shape (L, P), shared by all histories, or (L, B, P), each history's own.
        designs: Shape (B, T, D).
        outcomes: Shape (B, T, O).
        log_weights: Logs of weights w_l, shape (L,) or (L, B); all 1 if None.
        every_trial: Return the sums after each trial, (T, B), instead of after the last, (B,). Gradients are then those
            of the last row alone.
        chunk_size: Contrastive samples taken at a time; chosen to fit the cache if None.
        compile: Whether to run through `torch.compile`: slow at first, and again for each new shape or simulator. Where
            that fails there is one warning, and all goes on as without.

    Returns:
        Shape (B,), or (T, B) with `every_trial`.

    Source: DAD, arXiv 2103.02438, eq. (11)-(12), for the sums; the streaming is ours.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> designs, outcomes, contrastive = torch.randn(4, 3, 2), torch.rand(4, 3, 1), torch.randn(1000, 2)
        >>> streamed = log_sum_likelihood(simulator, contrastive, designs, outcomes, chunk_size=300)
        >>> at_once = (
        ...     log_likelihood_of_history(simulator, contrastive.unsqueeze(1), designs, outcomes).sum(-1).logsumexp(0)
        ... )
        >>> bool(torch.allclose(streamed, at_once, atol=1e-4))
        True
    """
    batch, num_trials = designs.shape[:2]
    if chunk_size is None:
        limit = _COMPILED_CHUNK_ELEMENTS if compile else _CHUNK_ELEMENTS
        chunk_size = min(len(contrastive), max(1, limit // max(1, batch * num_trials)))
        if compile:  # chunks of one size, since each size is compiled by itself
            chunk_size = math.ceil(len(contrastive) / math.ceil(len(contrastive) / chunk_size))
    stream = _Stream(simulator.log_likelihood, contrastive, log_weights, every_trial, chunk_size, compile)
    return _StreamedLogSum.apply(designs, outcomes, stream)


class _Stream(NamedTuple):
    """What `_StreamedLogSum` does not differentiate in."""

    log_likelihood: Callable[[Tensor, Tensor, Tensor], Tensor]
    contrastive: Tensor
    log_weights: Tensor | None
    every_trial: bool
    chunk_size: int
    compile: bool

    def chunks(self) -> Any:
        """Contrastive samples (C, 1, P) or (C, B, P), features first in memory, with their log weights (C, 1 or B)."""
        contrastive, log_weights = self.contrastive, self.log_weights
        if contrastive.ndim == 2:
            contrastive = contrastive.unsqueeze(1)
        if log_weights is not None and log_weights.ndim == 1:
            log_weights = log_weights.unsqueeze(1)
        missing = -len(contrastive) % self.chunk_size if self.compile else 0
        if missing:  # all chunks have one size: the last is filled up with samples of weight 0
            log_weights = contrastive.new_zeros(len(contrastive), 1) if log_weights is None else log_weights
            log_weights = torch.cat([log_weights, log_weights.new_full((missing, log_weights.shape[1]), -torch.inf)])
            contrastive = torch.cat([contrastive, contrastive[:missing]])
        for start in range(0, len(contrastive), self.chunk_size):
            part = slice(start, start + self.chunk_size)
            yield _features_first(contrastive[part]), None if log_weights is None else log_weights[part]


class _StreamedLogSum(torch.autograd.Function):
    """The stream of the module's docstring; gradients are gathered in the forward pass, scaled in the backward."""

    @staticmethod
    def forward(ctx: Any, designs: Tensor, outcomes: Tensor, stream: _Stream) -> Tensor:  # pyright: ignore
        needed = tuple(ctx.needs_input_grad[:2])
        trials = (_trials_first(designs), _trials_first(outcomes))
        shape = (designs.shape[1], len(designs)) if stream.every_trial else (len(designs),)
        gradients = tuple(torch.zeros_like(tensor) for tensor, need in zip(trials, needed, strict=True) if need)
        sums = _Sums(designs.new_full(shape, -1e30), designs.new_zeros(shape), gradients)
        differentiate = _compiled() if stream.compile else _differentiate
        for theta, log_weights in stream.chunks():
            chunk = _Chunk(stream.log_likelihood, theta, log_weights, trials, needed, stream.every_trial)
            sums = differentiate(chunk, sums)
        top, total, gradients = sums
        if gradients:
            final = (total[-1] if stream.every_trial else total).unsqueeze(-1)
            weight = torch.where(final > 0, 1.0 / final, 0.0)  # 0: no contrastive sample allows this history
            ctx.save_for_backward(*[(gradient * weight).squeeze(1).transpose(0, 1) for gradient in gradients])
        ctx.every_trial = stream.every_trial
        return top + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        scale = (grad_output[-1] if ctx.every_trial else grad_output)[:, None, None]
        found = iter(ctx.saved_tensors)
        return (*(next(found) * scale if need else None for need in ctx.needs_input_grad[:2]), None)


class _Chunk(NamedTuple):
    """Contrastive samples to add, and the trials that they are compared with."""

    log_likelihood: Callable[[Tensor, Tensor, Tensor], Tensor]
    theta: Tensor  # (C, 1 or B, P)
    log_weights: Tensor | None  # (C, 1 or B)
    trials: tuple[Tensor, Tensor]  # designs and outcomes (T, 1, B, F)
    needed: tuple[bool, ...]  # which of them need gradients
    every_trial: bool


class _Sums(NamedTuple):
    """Running sums over all chunks so far."""

    top: Tensor  # running maximum, (B,) or (T, B)
    total: Tensor  # running sum, relative to it
    gradients: tuple[Tensor, ...]  # running gradients (T, 1, B, F)


def _differentiate(chunk: _Chunk, sums: _Sums) -> _Sums:
    """Add one chunk to the running maximum, sum and gradients."""
    leaves = [t.detach().requires_grad_() for t, need in zip(chunk.trials, chunk.needed, strict=True) if need]
    with torch.set_grad_enabled(bool(leaves)):
        by_trial = chunk.log_likelihood(chunk.theta, *_with_leaves(chunk, leaves))
        last = by_trial.sum(0)
    top, total, weights, decay = _accumulate(by_trial.detach(), last.detach(), chunk, sums)
    if leaves:
        found = torch.autograd.grad(last, leaves, grad_outputs=weights, allow_unused=True)
        for gradient, more in zip(sums.gradients, found, strict=True):
            gradient.mul_(decay.unsqueeze(-1))
            if more is not None:
                gradient.add_(more)
    return _Sums(top, total, sums.gradients)


def _differentiate_functionally(chunk: _Chunk, sums: _Sums) -> _Sums:
    """`_differentiate` in the form that `torch.compile` understands: nothing in place, no tape."""

    def of(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        by_trial = chunk.log_likelihood(chunk.theta, *_with_leaves(chunk, leaves))
        return by_trial.sum(0), by_trial

    leaves = [tensor for tensor, need in zip(chunk.trials, chunk.needed, strict=True) if need]
    if not leaves:
        last, by_trial = of()
        top, total, _, _ = _accumulate(by_trial, last, chunk, sums)
        return _Sums(top, total, sums.gradients)
    last, vjp, by_trial = torch.func.vjp(of, *leaves, has_aux=True)  # pyright: ignore[reportAssignmentType]
    top, total, weights, decay = _accumulate(by_trial, last, chunk, sums)
    decay = decay.unsqueeze(-1)
    return _Sums(top, total, tuple(g * decay + more for g, more in zip(sums.gradients, vjp(weights), strict=True)))


def _with_leaves(chunk: _Chunk, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Designs and outcomes, with leaves in place of those that need gradients."""
    given = iter(leaves)
    return [next(given) if need else tensor for tensor, need in zip(chunk.trials, chunk.needed, strict=True)]


def _accumulate(by_trial: Tensor, last: Tensor, chunk: _Chunk, sums: _Sums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New maximum and sum, the weights (C, B) of the last row relative to the maximum, and the factor of earlier sums."""
    values = by_trial.cumsum(0) if chunk.every_trial else last
    if chunk.log_weights is not None:
        values = values + chunk.log_weights
    top = torch.maximum(sums.top, values.amax(-2))
    decay, weights = torch.exp(sums.top - top), torch.exp(values - top.unsqueeze(-2))
    total = torch.addcmul(weights.sum(-2), sums.total, decay)
    return (top, total, weights[-1], decay[-1]) if chunk.every_trial else (top, total, weights, decay)


@functools.cache
def _compiled() -> Callable[..., Any]:
    """`_differentiate_functionally` through `torch.compile`; where that fails a warning, and `_differentiate`."""
    fused, failed = torch.compile(_differentiate_functionally, dynamic=False), weakref.WeakSet()

    def differentiate(chunk: _Chunk, sums: _Sums) -> _Sums:
        model = getattr(chunk.log_likelihood, "__self__", chunk.log_likelihood)
        if model in failed:
            return _differentiate(chunk, sums)
        try:
            return fused(chunk, sums)
        except (
            Exception
        ) as err:  # compilers raise many kinds of errors; an error of the likelihood is raised again below
            outcome = _differentiate(chunk, sums)
            failed.add(model)
            reason = str(err).strip().splitlines()[0] if str(err).strip() else ""
            warn_user(f"compile=True is ignored, torch.compile failed: {type(err).__name__}: {reason}")
            return outcome

    return differentiate


def _features_first(tensor: Tensor) -> Tensor:
    """The same tensor, stored so that each feature (last dimension) is contiguous."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def _trials_first(tensor: Tensor) -> Tensor:
    """(B, T, F) → (T, 1, B, F), detached, each feature contiguous: so that sums over trials run along memory."""
    return _features_first(tensor.detach().transpose(0, 1).unsqueeze(1))
