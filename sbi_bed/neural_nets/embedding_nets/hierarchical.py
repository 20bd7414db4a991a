r"""Data in groups as a vector: the same for groups, and observations in a group, in any order, padded or not.

A data set is a set of sets: groups of observations, or persons in classes in schools. One module reads one level, from
its elements e_k (K, D) to a summary of each set (S, O), and is nested once for each level, the lowest first:

    c = [moments(e), √n, 1/√n],   z_k = σ(W e_k + V c),   z_k ← z_k + σ(W' z_k + V' [mean(z), sd(z)]),
    summary = A p + net(p),   p = [c, mean(z), sd(z), sum(z)],

where moments are mean, sd, log sd and arsinh t of the set, t = √n mean/sd, with a variance that is shrunken to a typical one
(`sets.py`). So each element is read in the light of its
set (equivariant), and then the set is pooled (invariant). The summary and √n are the elements of the next level. What
pooled moments alone cannot tell is learned; what they do tell, means and variances within and between groups, costs
nothing. After Elsemüller et al. 2023 (arXiv 2301.11873) and deep sets (arXiv 1703.06114); pooled moments are ours.

Of the largest tensors, one row for each observation, there is one for each lowest layer; it is narrow, and cut into parts
of whole sets, which are read one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...utils.checks import check_count
from ...utils.packing.sizes import TrainedRange
from ..first_weights import remember_first_weights
from .sets import Sets
from .vary_sizes import random_sizes

__all__ = ["HierarchicalEmbedding"]

_ELEMENTS_AT_A_TIME = 2**16  # tensors of a few megabytes: larger ones are taken anew from the system each time


class HierarchicalEmbedding(nn.Module):
    """Embedding net for grouped data, x (B, groups, observations, input_dim + 1) → summary (B, output_dim).

    The last channel of x is its mask, as `pack_groups` makes it: 1 observed, 0 padded or missing. The summary is
    invariant to the order of groups and of observations within each, to padding, and to the rest of the batch; sizes may
    differ between data sets. A group without observations is as if it were not there. The net knows the sizes that it was
    trained on, and warns once for each call of a posterior when data leave them.

    Observations are standardised behind the mask, with a mean and sd that `fit_scale` measures once; `ModelComparison`
    does so with its first simulations. sbi's own z-scoring would change the mask: pass it ``z_score_x="none"``.

    Args:
        input_dim: Features of one observation, without the mask.
        output_dim: Size of the summary.
        hidden_dim: Width of the upper levels.
        num_levels: Levels of nesting above an observation: 2 for groups, 3 for groups of groups, 1 for a plain set.
        lowest_dim: Width of the lowest level, whose elements are all observations: time and memory grow with it.
        num_blocks: Further equivariant layers of the upper levels.
        lowest_blocks: Further equivariant layers of the lowest level.
        vary_sizes: Whether data sets are read in random sizes while the net trains, drawn anew each time (`vary_sizes.py`
            beside this file), so that it learns to read any sizes up to those simulated, and missing data. For sbi's
            trainers; those of this package have `train(vary_sizes=)`.
        encoder: For observations that are themselves series or pictures, of `input_dim` values: a net (n, input_dim) →
            (n, features) that reads each by itself, such as sbi's `CNNEmbedding`. For several channels put
            `nn.Unflatten(-1, (time, channels))` before it.

    Attributes:
        config: The arguments as plain data, from which files build it again; None with an `encoder`.
        mean: Means of observed features, (input_dim,).
        sd: Their standard deviations, (input_dim,).
        typical_size: Typical number of elements of a set at each level, (num_levels,).
        typical_variance: Typical variance of standardised features within a lowest set, (input_dim,).
        vary_sizes: Whether sizes are random in training mode.
        trained: `TrainedRange` of sizes: of `fit_scale`, and of all data read in training mode.
        levels: Nets of the levels, the lowest first.

    Raises:
        TypeError: If a size is no whole number.
        ValueError: If a size is below 1 (`num_blocks`, `lowest_blocks`: 0), or the encoder cannot read (n, input_dim).

    Example:
        >>> x = torch.cat([torch.randn(3, 5, 7, 2), torch.ones(3, 5, 7, 1)], -1)  # 3 data sets, 5 groups of 7
        >>> embedding = HierarchicalEmbedding(input_dim=2).fit_scale(x)
        >>> embedding(x).shape
        torch.Size([3, 32])

        In sbi::

            embedding = HierarchicalEmbedding(input_dim=2).fit_scale(x)
            build = posterior_nn("maf", embedding_net=embedding, z_score_x="none")
            NPE(prior, density_estimator=build).append_simulations(theta, x).train()
    """

    mean: Tensor
    sd: Tensor
    typical_size: Tensor
    typical_variance: Tensor

    def __init__(
        self,
        input_dim: int,
        output_dim: int = 32,
        hidden_dim: int = 64,
        num_levels: int = 2,
        *,
        lowest_dim: int = 16,
        num_blocks: int = 1,
        lowest_blocks: int = 0,
        vary_sizes: bool = False,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.input_dim, self.output_dim = check_count(input_dim, "input_dim"), check_count(output_dim, "output_dim")
        self.num_levels, hidden_dim = check_count(num_levels, "num_levels"), check_count(hidden_dim, "hidden_dim")
        lowest_dim, num_blocks = check_count(lowest_dim, "lowest_dim"), check_count(num_blocks, "num_blocks", 0)
        lowest_blocks = check_count(lowest_blocks, "lowest_blocks", 0)
        self.config = None  # a net given by the user is not plain data
        if encoder is None:
            self.config = {
                "input_dim": self.input_dim,
                "output_dim": output_dim,
                "hidden_dim": hidden_dim,
                "num_levels": self.num_levels,
                "lowest_dim": lowest_dim,
                "num_blocks": num_blocks,
                "lowest_blocks": lowest_blocks,
                "vary_sizes": bool(vary_sizes),
            }
        self.vary_sizes, self._vary_held_out = bool(vary_sizes), False
        self.encoder = encoder
        self.register_buffer("mean", torch.zeros(self.input_dim))
        self.register_buffer("sd", torch.ones(self.input_dim))
        self.register_buffer("typical_size", torch.ones(self.num_levels))
        self.register_buffer("typical_variance", torch.ones(self.input_dim if encoder is None else 1))
        self.trained = TrainedRange(self.num_levels)
        width = self.input_dim if encoder is None else _width_of(encoder, self.input_dim)
        levels = []
        for level in range(self.num_levels):
            lowest, last = level == 0, level == self.num_levels - 1
            summary_dim = self.output_dim if last else max(16, width)
            hidden, blocks = (lowest_dim, lowest_blocks) if lowest and not last else (hidden_dim, num_blocks)
            levels.append(_Level(width, hidden, summary_dim, hidden_dim, blocks))
            width = summary_dim + 1
        self.levels = nn.ModuleList(levels)
        remember_first_weights(self, "levels")

    @torch.no_grad()
    def fit_scale(self, x: Tensor) -> HierarchicalEmbedding:
        """Measure mean and sd of observed features, and usual sizes of sets; returns the net itself.

        With an `encoder` one mean and one sd are shared by all values of a series.

        Args:
            x: Some hundreds of data sets, (B, groups, observations, input_dim + 1).

        Raises:
            ValueError: If x has another shape, a mask that is not 0 and 1, or fewer than two observations.
        """
        mask = self._mask_of(x)
        observed = x[..., :-1][mask].to(torch.float64)
        if len(observed) < 2:
            raise ValueError(f"a scale needs at least two observations, got {len(observed)}.")
        if self.encoder is not None:
            observed = observed.flatten()
        self.mean.copy_(observed.mean(0))
        sd = observed.std(0)
        self.sd.copy_(
            torch.where(sd > 1e-6 * (1 + observed.mean(0).abs()), sd, 1.0)
        )  # a constant feature stays as it is
        self._learn_sizes(mask)
        if self.encoder is None:
            scaled = ((x[..., :-1][mask] - self.mean) / self.sd).to(torch.float64)
            within = Sets.of_mask(mask, torch.float64).variance_within(scaled)
            self.typical_variance.copy_(torch.where(within > 1e-12, within, 1.0))
        for level in range(self.num_levels):
            count = mask.sum(-1)
            self.typical_size[level] = count[count > 0].to(torch.float64).mean()
            mask = count > 0
        return self

    def learn_sizes(self, x: Tensor) -> None:
        """Take the range of sizes that the net is trained on from all training data, (N, groups, observations, …)."""
        self._learn_sizes(self._mask_of(x))

    def _learn_sizes(self, mask: Tensor) -> None:
        self.trained.learn(mask)
        if self.vary_sizes:
            self.trained.include([(1, 1)] * self.num_levels, (0.0, 1.0))

    def has_one_size(self, x: Tensor) -> bool:
        """Whether all data sets (N, groups, observations, …) have the same sizes."""
        mask = self._mask_of(x)
        return bool((mask == mask[:1]).all())

    @contextmanager
    def varying_sizes(self, vary: bool) -> Iterator[None]:
        """Within this block `vary_sizes` is as said, in training and in evaluation."""
        before = self.vary_sizes, self._vary_held_out
        self.vary_sizes = self._vary_held_out = vary
        try:
            yield
        finally:
            self.vary_sizes, self._vary_held_out = before

    def forward(self, x: Tensor) -> Tensor:
        """Summaries (B, output_dim) of data sets (B, groups, observations, input_dim + 1).

        Raises:
            ValueError: If x has another shape, a mask that is not 0 and 1 (as after sbi's z-scoring), or a data set has no
                observation at all.
        """
        mask, x = self._mask_of(x), x.to(self.mean)
        if not bool(mask.flatten(1).any(1).all()):
            empty = int(mask.flatten(1).any(1).logical_not().nonzero()[0])
            raise ValueError(f"data set {empty} of the batch has no observation: its mask is 0 everywhere.")
        if self.vary_sizes and (self.training or self._vary_held_out):
            mask = random_sizes(mask)
        if not (self.training and len(x) <= 1):  # one row may be a probe of sbi's, with noise for data
            self.trained(mask)
        elements = x[..., :-1].flatten(0, -2) if bool(mask.all()) else x[..., :-1][mask]
        elements = (elements - self.mean) / self.sd
        if self.encoder is not None:
            elements = self.encoder(elements).flatten(1)
        summary = elements
        for level, read in enumerate(self.levels):
            sets = Sets.of_mask(mask, elements.dtype)
            root_size = (sets.count / self.typical_size[level]).sqrt().unsqueeze(-1)
            parts, variance = sets.split(_ELEMENTS_AT_A_TIME), self.typical_variance if level == 0 else 1.0
            summary = torch.cat(
                [read(elements[these], part, root_size[of_sets], variance) for these, of_sets, part in parts]
            )
            elements, mask = torch.cat([summary, root_size], dim=-1), mask.any(-1)
        return summary

    def _mask_of(self, x: Tensor) -> Tensor:
        """The mask as booleans, (B, groups, observations)."""
        if x.ndim != self.num_levels + 2 or x.shape[-1] != self.input_dim + 1:
            names = ("groups", "observations") if self.num_levels == 2 else ("...",)
            wanted = ", ".join(("batch", *names, str(self.input_dim + 1)))
            raise ValueError(
                f"grouped data of {self.num_levels} levels must have shape ({wanted}), the mask last, got {tuple(x.shape)}."
            )
        mask = x[..., -1]
        if not bool(((mask == 0) | (mask == 1)).all()):
            if self.training and len(x) <= 1:
                return torch.ones_like(mask, dtype=torch.bool)  # sbi's mixture density net probes with one row of noise
            raise ValueError(
                "the last channel of grouped data is its mask, 1 where observed and 0 where padded or missing. If sbi's "
                'z-scoring has changed it, pass z_score_x="none" to posterior_nn.'
            )
        return mask > 0


class _Level(nn.Module):
    """One level: elements (K, input_dim), √n of each set (S, 1) and a typical variance → summaries (S, output_dim)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, head_dim: int, num_blocks: int):
        super().__init__()
        context_dim = 4 * input_dim + 2
        pooled_dim = context_dim + 3 * hidden_dim + input_dim
        self.element, self.context = nn.Linear(input_dim, hidden_dim), nn.Linear(context_dim, hidden_dim, bias=False)
        self.blocks = nn.ModuleList(_Equivariant(hidden_dim) for _ in range(num_blocks))
        self.straight, self.enter = nn.Linear(pooled_dim, output_dim), nn.Linear(pooled_dim, head_dim)
        self.hidden, self.leave = nn.Linear(head_dim, head_dim), nn.Linear(head_dim, output_dim)
        self.act = nn.SiLU()

    def forward(self, elements: Tensor, sets: Sets, root_size: Tensor, variance: Tensor | float) -> Tensor:
        precision = sets.count.rsqrt().unsqueeze(-1)
        context = torch.cat([sets.moments(elements, variance), root_size, precision], dim=-1)
        z = self.act(sets.add(self.element(elements), self.context(context)))
        for block in self.blocks:
            z = block(z, sets)
        pooled = sets.mean_and_sd(z)
        total = root_size.square() * torch.cat([pooled[:, : z.shape[-1]], context[:, : elements.shape[-1]]], dim=-1)
        pooled = torch.cat([context, pooled, total], dim=-1)
        y = self.act(self.enter(pooled))
        return self.straight(pooled) + self.leave(y + self.act(self.hidden(y)))


class _Equivariant(nn.Module):
    """Each element sees itself and its set: (K, F) → (K, F)."""

    def __init__(self, width: int):
        super().__init__()
        self.own, self.others = nn.Linear(width, width), nn.Linear(2 * width, width, bias=False)
        self.act = nn.SiLU()

    def forward(self, z: Tensor, sets: Sets) -> Tensor:
        return z + self.act(sets.add(self.own(z), self.others(sets.mean_and_sd(z))))


def _width_of(encoder: nn.Module, input_dim: int) -> int:
    """Features that an encoder makes of one observation."""
    training = encoder.training
    try:
        with torch.no_grad():
            return math.prod(encoder.eval()(torch.zeros(2, input_dim)).shape[1:])
    except (RuntimeError, ValueError, IndexError) as err:
        raise ValueError(f"encoder cannot read observations of shape (n, {input_dim}): {err}") from err
    finally:
        encoder.train(training)
