r"""Embedding of data with a context: [data | context] → [summary s of the data, context c, net(s, c)].

The context says which prior, simulator or data are meant (arXiv 2310.11122). It is packed behind the data in one x, which
sbi's trainers and diagnostics take like any other x. This net splits x again. The data have a net of their own. Contexts are
standardised, powers γ on the log scale. A context mostly changes the weight of the data against the prior, which is a
product: a small net of both learns it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.checks import check_count
from ...utils.packing.contexts import unpack_context
from ..first_weights import remember_first_weights

__all__ = ["ContextEmbedding"]


class ContextEmbedding(nn.Module):
    """Embedding net for data with a context, x (B, E + C) → (B, S + C + output_dim); sbi must not z-score it.

    Args:
        event_shape: Shape of one data set (E values), as `embedding_net` takes it.
        context_dim: Number C of context values.
        embedding_net: Data (B, *event_shape) → summary (B, S): `HierarchicalEmbedding`, `HistoryEmbedding` or any net. If
            None, the summary is the data, flattened and standardised.
        log_columns: Whether each of the C values is read as its logarithm (it must be positive); none if None.
        output_dim: Number of features of both together.
        hidden_dim: Width of the net that computes these.

    Attributes:
        both: Net of summary and context together.
        context_mean: Means of contexts (of logarithms where these are read), (C,).
        context_sd: Standard deviations of contexts, (C,).
        x_mean: Means of the data, (E,), if there is no `embedding_net`.
        x_sd: Standard deviations of the data, (E,).

    Raises:
        TypeError: If a size is not a whole number.
        ValueError: If a size is below 1, `log_columns` has another length than C, or `embedding_net` cannot read ones of
            shape (2, *event_shape).

    Example:
        >>> from sbi_bed.utils import pack_context
        >>> x = pack_context(torch.randn(50, 4, 2), torch.rand(50, 3) + 0.5)
        >>> embedding = ContextEmbedding((4, 2), 3, nn.Sequential(nn.Flatten(), nn.Linear(8, 5)), [True] * 3)
        >>> embedding.fit_scale(x)(x).shape
        torch.Size([50, 40])
    """

    log_columns: Tensor
    context_mean: Tensor
    context_sd: Tensor
    x_mean: Tensor
    x_sd: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        context_dim: int,
        embedding_net: nn.Module | None = None,
        log_columns: Sequence[bool] | None = None,
        output_dim: int = 32,
        hidden_dim: int = 64,
    ):
        super().__init__()
        self.event_shape = tuple(check_count(size, "event_shape") for size in event_shape)
        self.context_dim, self.embedding_net = check_count(context_dim, "context_dim"), embedding_net
        logs = [False] * self.context_dim if log_columns is None else list(log_columns)
        if len(logs) != self.context_dim:
            raise ValueError(
                f"log_columns must have {self.context_dim} values, one for each value of a context, got {logs}."
            )
        self.register_buffer("log_columns", torch.tensor(logs))
        self.register_buffer("context_mean", torch.zeros(self.context_dim))
        self.register_buffer("context_sd", torch.ones(self.context_dim))
        num = math.prod(self.event_shape) if embedding_net is None else 0
        self.register_buffer("x_mean", torch.zeros(num))
        self.register_buffer("x_sd", torch.ones(num))
        width = self._summary_dim() + self.context_dim
        hidden_dim, output_dim = check_count(hidden_dim, "hidden_dim"), check_count(output_dim, "output_dim")
        self.both = nn.Sequential(nn.Linear(width, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, output_dim))
        remember_first_weights(self, "both")

    @torch.no_grad()
    def fit_scale(self, x: Tensor) -> ContextEmbedding:
        """Measure means and sds of contexts and of the data (in `embedding_net` if it has `fit_scale`); returns the net.

        Args:
            x: Some hundreds of packed simulations, (B, E + C).

        Raises:
            ValueError: If x has another width.
        """
        data, context = self._split(x)
        _measure(context, self.context_mean, self.context_sd)
        if self.embedding_net is None:
            _measure(data.flatten(1), self.x_mean, self.x_sd)
        elif hasattr(self.embedding_net, "fit_scale"):
            self.embedding_net.fit_scale(data)  # pyright: ignore[reportCallIssue]
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Summaries, contexts and features of both, (B, S + C + output_dim), of packed x (B, E + C).

        Raises:
            ValueError: If x has another width.
        """
        data, context = self._split(x)
        summary = (
            (data.flatten(1) - self.x_mean) / self.x_sd if self.embedding_net is None else self.embedding_net(data)
        )
        known = torch.cat([summary, (context - self.context_mean) / self.context_sd], -1)
        return torch.cat([known, self.both(known)], -1)

    def _summary_dim(self) -> int:
        if self.embedding_net is None:
            return math.prod(self.event_shape)
        training = self.embedding_net.training
        try:
            with torch.no_grad():
                summary = self.embedding_net.eval()(torch.ones(2, *self.event_shape))
        except (RuntimeError, ValueError, IndexError) as err:
            raise ValueError(f"embedding_net cannot read data of shape (2, *{self.event_shape}): {err}") from err
        finally:
            self.embedding_net.train(training)
        if summary.ndim != 2:
            raise ValueError(f"embedding_net must give summaries (B, S), got shape {tuple(summary.shape)}.")
        return summary.shape[-1]

    def _split(self, x: Tensor) -> tuple[Tensor, Any]:
        data, context = unpack_context(x, self.event_shape)
        if context.shape[-1] != self.context_dim:
            raise ValueError(
                f"x must be data of shape {self.event_shape} followed by {self.context_dim} values of context, "
                f"got {tuple(x.shape)}."
            )
        return data, torch.where(self.log_columns, context.clamp_min(1e-30).log(), context)


def _measure(value: Tensor, mean: Tensor, sd: Tensor) -> None:
    """Put mean and sd of values (B, S) into two buffers; the sd of a constant is 1."""
    mean.copy_(value.double().mean(0))
    found = value.double().std(0)
    sd.copy_(torch.where(found > 1e-6 * (1 + mean.abs()), found, 1.0))
