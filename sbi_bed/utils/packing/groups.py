"""Ragged data in groups as tensors.

A data set of groups, each a set of observations of F features, is a tensor (groups, observations, F + 1): the features, and
a mask channel that is 1 where something was observed and 0 where it is padded or missing (the features are then 0). More
levels, such as persons in classes in schools, or several data sets, are more dimensions in front. It is what
`HierarchicalEmbedding` reads, and an ordinary `x` of sbi.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import as_finite_tensor, check_count
from .ragged import LowestSet, depth_of, sets_of_nested
from .tables import sets_of_table

__all__ = ["pack_groups", "unpack_groups"]


def pack_groups(
    data: Any,
    group: str | Sequence[str] | None = None,
    features: str | Sequence[str] | None = None,
    *,
    mask: Any = None,
    num_levels: int | None = None,
    sizes: Sequence[int | None] | None = None,
) -> Tensor:
    """Pack ragged grouped data into a masked tensor.

    Args:
        data: One of

            - nested sequences, arrays or tensors, as deep as the data are: groups of observations of features, with more
              levels around them, such as a list of data sets. Any level may be ragged but the features; sets may be empty.
              With two levels of nesting only, an observation is a number.
            - a table with named columns (a pandas or polars DataFrame), one row for each observation.
        group: For a table, the columns that say which group a row belongs to, from the highest level to the lowest. Groups
            are numbered as they first appear.
        features: For a table, the columns that are observed; all but `group` (and `mask`) if None.
        mask: Where something was observed, 1 or True: nested as `data`, without features; for a table a column's name, or
            one value for each row. What stands where it is 0 is not read, and may be NaN.
        num_levels: Levels of nesting above an observation, if not one less than the depth of `data`: say 3 where the numbers
            of a list of lists of lists are observations and not features.
        sizes: What to pad each level to, from the highest, None for the largest there is; such as ``(None, 40, 100)``.

    Returns:
        Shape (…, groups, observations, F + 1), in the precision of `data` (lists and whole numbers: torch's default).

    Raises:
        TypeError: If `data` are not numbers.
        ValueError: If a value is NaN or infinite, depths or numbers of features differ, the mask does not fit or is not 0
            and 1, columns are missing, or a set is larger than `sizes` says.

    Example:
        >>> x = pack_groups([[[0.3], [0.5]], [[0.1]]])  # a group of two observations, and one of one
        >>> x.shape, x[..., -1].tolist()
        (torch.Size([2, 2, 2]), [[1.0, 1.0], [1.0, 0.0]])
    """
    if hasattr(data, "columns"):
        sets = sets_of_table(data, group, features, mask)
        return _pack(sets, sizes, levels=1 + len(sets[0][0]))
    if group is not None or features is not None:
        raise ValueError(
            "group and features are names of columns: they need a table with columns, such as a DataFrame."
        )
    depth = depth_of(data)
    if depth < 2:
        raise ValueError(f"data must be groups of observations, nested at least two deep, got depth {depth}.")
    levels = max(2, depth - 1) if num_levels is None else check_count(num_levels, "num_levels")
    if depth not in (levels, levels + 1):
        raise ValueError(f"data nested {depth} deep cannot have {levels} levels above an observation.")
    return _pack(sets_of_nested(data, mask, levels, has_features=depth > levels), sizes, levels)


def unpack_groups(x: Tensor) -> list:
    """Undo `pack_groups` for one data set (…, groups, observations, F + 1), or several.

    Returns:
        Nested lists of what was observed, (n, F) in each lowest group. Padding is left out, and so are sets without
        observations behind the last one that has some.

    Raises:
        ValueError: If x has fewer than three dimensions, is not finite, or its last channel is no mask.

    Example:
        >>> groups = [[[1.0], [2.0]], [[3.0]]]  # two groups, of two and of one observation
        >>> [group.flatten().tolist() for group in unpack_groups(pack_groups(groups))]
        [[1.0, 2.0], [3.0]]
    """
    x = as_finite_tensor(x, "x")
    if x.ndim < 3:
        raise ValueError(f"x must have shape (..., groups, observations, features + 1), got {tuple(x.shape)}.")
    if not bool(((x[..., -1] == 0) | (x[..., -1] == 1)).all()):
        raise ValueError("the last channel of grouped data is its mask and must be 0 or 1.")
    return _unpack(x)


def _unpack(x: Tensor) -> Any:
    if x.ndim == 2:
        return x[x[:, -1] > 0, :-1]
    some = (x[..., -1] > 0).flatten(1).any(1).nonzero()
    return [_unpack(part) for part in x[: int(some[-1]) + 1 if len(some) else 0]]


def _pack(sets: list[LowestSet], sizes: Any, levels: int) -> Tensor:
    """Put lowest sets into their places."""
    widths = {values.shape[-1] for _, values, _ in sets if values.numel()}
    if len(widths) != 1:
        what = f"got {sorted(widths)}" if widths else "and there is none"
        raise ValueError(f"observations must have one number of features, {what}.")
    width = widths.pop()
    largest = [1 + max((place[k] for place, *_ in sets if len(place) > k), default=-1) for k in range(levels - 1)]
    largest.append(max(len(values) for _, values, _ in sets))
    if sizes is not None:
        if len(sizes) != levels:
            raise ValueError(f"sizes must be one for each of {levels} levels, got {tuple(sizes)}.")
        wanted = [
            have if size is None else check_count(size, "sizes") for have, size in zip(largest, sizes, strict=True)
        ]
        if any(have > size for have, size in zip(largest, wanted, strict=True)):
            raise ValueError(f"sets of up to {tuple(largest)} elements do not fit into sizes {tuple(wanted)}.")
        largest = wanted
    dtype = next(values.dtype for _, values, _ in sets if values.numel())
    for _, values, _ in sets:
        dtype = torch.promote_types(dtype, values.dtype) if values.numel() else dtype
    x = torch.zeros(*largest, width + 1, dtype=dtype)
    for place, values, flags in sets:
        if values.numel():
            seen = flags.unsqueeze(-1).to(dtype)
            x[(*place, slice(len(values)), slice(None))] = torch.cat(
                [torch.where(seen > 0, values.to(dtype), 0.0), seen], dim=-1
            )
    return x
