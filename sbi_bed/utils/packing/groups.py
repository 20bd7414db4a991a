"""Ragged data in groups as tensors.

A data set has groups, and each group has observations of F features. As a tensor it is (groups, observations, F + 1): the
features, and a mask channel that is 1 where something was observed and 0 where it is padded or missing (the features are
then 0). More levels, such as persons in classes in schools, or several data sets, are more dimensions in front.
`HierarchicalEmbedding` reads this, and for sbi it is an ordinary `x`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import as_finite_tensor, check_count
from .ragged import LowestSet, as_nested, depth_of, sets_of_nested
from .tables import sets_of_tables, tables_in

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

            - nested lists, arrays, tensors or columns (a pandas or polars Series), as deep as the data: groups of
              observations of features, with more levels around them, such as a list of data sets. Every level but the
              features may be ragged, and sets may be empty. With only two levels an observation is a number.
            - a table with named columns (a pandas or polars DataFrame) and one row for each observation.
            - a list of tables, or a list of such lists. Each is a group; with `group=`, a data set of groups.
        group: Columns of a table that say which group a row belongs to, from the highest level to the lowest. Groups
            are numbered as they first appear.
        features: Columns of a table that were observed; all but `group` and `mask` if None.
        mask: Where something was observed, 1 or True: nested as `data`, without features. For a table the name of a
            column, or one value for each row. Values where it is 0 are not read, and may be NaN.
        num_levels: Levels above an observation, if not one less than the depth of `data`: 3 where the numbers in a list
            of lists of lists are observations and not features.
        sizes: Size to pad each level to, from the highest; None for the largest set. For example ``(None, 40, 100)``.

    Returns:
        Shape (…, groups, observations, F + 1). Arrays, columns and tensors of float32 or float64 keep their precision;
        tables, lists and other numbers take torch's default.

    Raises:
        TypeError: If `data` holds dates, text, categories, complex numbers or other things that are not real numbers.
        ValueError: If a value is NaN, infinite or too large for its precision, depths or numbers of features differ, the
            mask does not fit or is not 0 and 1, columns are missing, or a set is larger than `sizes` says.

    Example:
        >>> x = pack_groups([[[0.3], [0.5]], [[0.1]]])  # a group of two observations, and one of one
        >>> x.shape, x[..., -1].tolist()
        (torch.Size([2, 2, 2]), [[1.0, 1.0], [1.0, 0.0]])
    """
    if type(data).__name__.endswith("GroupBy"):  # of pandas and polars
        raise TypeError("data are grouped already: give the table itself, and the names of these columns as group=.")
    tables = tables_in(data)
    if tables:
        sets = sets_of_tables(tables, group, features, mask)
        return _pack(sets, sizes, levels=1 + len(sets[0][0]))
    if group is not None or features is not None:
        raise ValueError(
            "group and features are names of columns: they need a table with columns, such as a DataFrame."
        )
    data, mask = as_nested(data), None if mask is None else as_nested(mask, "mask")
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
        Nested lists of the observations, (n, F) in each lowest group, without padding. On each level, empty sets after
        the last one with observations are left out.

    Raises:
        ValueError: If x has fewer than three dimensions, is not finite, or its last channel is not a mask.

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
    """The lowest sets at their places in one padded tensor."""
    widths = {values.shape[-1] for _, values, _ in sets if values.numel()}
    if len(widths) != 1:
        what = f"got {sorted(widths)}" if widths else "and there is none"
        raise ValueError(f"observations must have one number of features, {what}.")
    width = widths.pop()
    largest = [1 + max((place[k] for place, *_ in sets if len(place) > k), default=-1) for k in range(levels - 1)]
    largest.append(max(len(values) for _, values, _ in sets))
    if sizes is not None:
        sizes = [sizes] if isinstance(sizes, int) else sizes
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
