r"""Sums over sets of different sizes, without reading any padding.

Elements e_k, k = 1, …, K, are the rows of a matrix, and each belongs to one of S sets. For a set s of n_s elements,

    mean_s = n_s^{-1} Σ_{k ∈ s} e_k,   v_s = (Σ_{k ∈ s} (e_k − mean_s)² + κ v) / (n_s − 1 + κ),   t_s = √n_s · mean_s / √v_s.

The variance v_s is shrunken to a typical one, v, with a prior count κ = 0.01: a set of one element has v_s = v, and so has
nothing to tell about spread; a set without spread has a small variance, but no smaller than its size n_s can show, v κ/n_s.

Where all sets have the same size the rows are a block and sums are plain ones; else they are gathered by an index. A
missing element is no row at all, so that nothing depends on what stands in its place, nor on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["Sets"]

_PRIOR_COUNT = 0.01  # κ: how many observations the typical variance counts for


class Sets:
    """Which of K elements belong to which of S sets, none of them empty.

    Args:
        count: Sizes of the sets, (S,), in floating point.
        index: The set of each element, (K,), increasing; None if all sets have one size. Elements are sorted by set.

    Example:
        >>> sets = Sets(torch.tensor([2.0, 1.0]), torch.tensor([0, 0, 1]))
        >>> sets.mean(torch.tensor([[1.0], [3.0], [5.0]])).squeeze(-1)
        tensor([2., 5.])
    """

    def __init__(self, count: Tensor, index: Tensor | None = None):
        self.count, self.index = count, index

    @classmethod
    def of_mask(cls, mask: Tensor, dtype: torch.dtype) -> Sets:
        """The sets of a boolean mask (*sets, n); elements are its true entries in order, empty sets are left out."""
        count = mask.sum(-1)
        some = count > 0
        if bool(mask.all()):
            return cls(count.flatten().to(dtype))
        number = (some.flatten().cumsum(0) - 1).view(some.shape)
        return cls(count[some].to(dtype), number.unsqueeze(-1).expand(mask.shape)[mask])

    def split(self, max_elements: int) -> Iterator[tuple[slice, slice, Sets]]:
        """Parts of whole sets with about `max_elements` elements each: their elements, their sets, and those as `Sets`."""
        ends = self.count.long().cumsum(0)
        start, first = 0, 0
        while start < len(ends):
            limit = torch.tensor(first + max_elements, device=ends.device)
            stop = max(start + 1, int(torch.searchsorted(ends, limit, right=True)))
            last = int(ends[stop - 1])
            index = None if self.index is None else self.index[first:last] - start
            yield slice(first, last), slice(start, stop), Sets(self.count[start:stop], index)
            start, first = stop, last

    def mean(self, elements: Tensor) -> Tensor:
        """Means (S, F) of elements (K, F)."""
        num_sets, width = len(self.count), elements.shape[-1]
        if self.index is None:
            return elements.view(num_sets, -1, width).mean(1)
        total = elements.new_zeros(num_sets, width).index_add(0, self.index, elements)
        return total / self.count.unsqueeze(-1)

    def add(self, elements: Tensor, to_each: Tensor) -> Tensor:
        """Elements (K, F) plus what belongs to their set, (S, F)."""
        if self.index is None:
            return (elements.view(len(self.count), -1, elements.shape[-1]) + to_each.unsqueeze(1)).flatten(0, 1)
        return elements + to_each.index_select(0, self.index)

    def mean_and_sd(self, elements: Tensor) -> Tensor:
        """Means and standard deviations (S, 2F) in one pass, for hidden layers: the smallest deviation is 0.01."""
        mean = self.mean(elements)
        variance = (self.mean(elements * elements) - mean * mean).clamp_min(0.0)
        return torch.cat([mean, (variance + 1e-4).sqrt()], dim=-1)

    def moments(self, elements: Tensor, typical_variance: Tensor | float = 1.0) -> Tensor:
        """Mean, sd, log sd and arsinh t (S, 4F) in two passes, for inputs, whose mean may be many times their sd.

        `typical_variance` is v, (F,) or a number.
        """
        mean, size = self.mean(elements), self.count.unsqueeze(-1)
        squares = size * self.mean(self.add(elements, -mean).square())
        variance = (squares + _PRIOR_COUNT * typical_variance) / (size - 1 + _PRIOR_COUNT)
        t = mean * (size / variance).sqrt()
        return torch.cat([mean, variance.sqrt(), 0.5 * variance.log(), t.asinh()], dim=-1)

    def variance_within(self, elements: Tensor) -> Tensor:
        """Variance within sets of two or more elements, pooled over all sets, (F,); NaN where there are none."""
        squares = self.add(elements, -self.mean(elements)).square().sum(0)
        return squares / (self.count - 1).sum()
