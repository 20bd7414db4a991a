r"""Sizes of packed data, and the range of sizes that a net was trained on.

A mask (B, …, observations) of packed data says how many elements each set has at each level: groups in a data set,
observations in a group. Nets that read such data give an answer for any sizes, but a good one only for sizes like those of
their training. So a net keeps a `TrainedRange`: for each level the smallest and largest size seen in training, and of each
data set the share that is missing,

    1 − (number of observations) / (number of groups × size of the largest group),

and likewise on more levels: 0 where all sets of a level have one size.

Where sizes are random the smallest of N may be a rare one, and new data could leave the range by chance. So a tail is added.
Let p be the frequency of the smallest size that was seen ten times, and q that of the next larger one. The tail p r^k with
r = min(p/q, 0.6) ends where it falls below 10⁻⁶. There is none if the smallest size of all is common, p > q/2: designs end
there. Likewise for the largest size. A tail adds a fifth of the range at most, and nothing beyond the padded size.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..warn_user import is_first_in_call, warn_user

__all__ = ["SizeWatch", "TrainedRange", "sizes_of_mask", "watch_sizes"]

_RAREST = 1e-6  # probability of a size at which a range ends
_ENOUGH = 10  # sets of a size from which its frequency is read
_watch: ContextVar[SizeWatch | None] = ContextVar("watch", default=None)


def sizes_of_mask(mask: Tensor) -> tuple[list[Tensor], Tensor]:
    """Sizes of all sets of each level, and the share missing of each data set.

    Args:
        mask: What was observed, (B, …, observations), boolean or 0 and 1.

    Returns:
        One tensor for each level, the highest first: numbers of elements (B, …) of its sets, 0 for sets without any; and the
        share missing (B,).

    Example:
        >>> mask = torch.tensor([[[1, 1, 1], [1, 0, 0], [0, 0, 0]]])  # a group of three and a group of one
        >>> (groups, observations), missing = sizes_of_mask(mask)
        >>> groups.tolist(), observations.tolist(), round(missing.item(), 3)
        ([2], [[3, 1, 0]], 0.333)
    """
    mask, sizes = mask > 0, []
    total = mask.flatten(1).sum(-1)
    room = torch.ones(len(mask), dtype=torch.float64, device=mask.device)
    while mask.ndim > 1:
        sizes.append(mask.sum(-1))
        room = room * sizes[-1].flatten(1).amax(-1) if mask.ndim > 2 else room * sizes[-1]
        mask = mask.any(-1)
    return sizes[::-1], 1 - total / room.clamp_min(1)


class TrainedRange(nn.Module):
    """The range of sizes that a net was trained on; a part of the net, saved with its weights.

    The net calls it with each mask that it reads. In training mode the range widens to these sizes; otherwise, data sets
    that leave the range cause one warning (see `watch_sizes`).

    Args:
        num_levels: Levels of sets: 2 for groups of observations, 1 for a plain set such as a history.
        names: What the elements of each level are called, the highest level first.

    Attributes:
        low: Smallest size at each level, and smallest share missing, (num_levels + 1,); infinite before training.
        high: Largest ones, (num_levels + 1,).
        names: Names of the levels, the highest first.

    Example:
        >>> trained = TrainedRange(2)
        >>> trained.learn(torch.ones(500, 8, 20))
        >>> short = torch.ones(2, 8, 20)
        >>> short[1, 7, 1:] = 0
        >>> trained.is_outside(short).tolist()
        [False, True]
        >>> with watch_sizes(warn=False) as watch:
        ...     trained.eval()(short)
        >>> watch.describe()
        'observations per group: 1 to 20, trained on 20; share missing: 0.12, trained on 0'
    """

    low: Tensor
    high: Tensor

    def __init__(self, num_levels: int, names: tuple[str, ...] | None = None):
        super().__init__()
        usual = {1: ("observations",), 2: ("groups", "observations per group")}
        below = tuple(f"elements per set of level {level}" for level in range(num_levels - 1, 1, -1))
        self.names = names or usual.get(num_levels, ("groups", *below, "observations per group"))
        self.register_buffer("low", torch.full((num_levels + 1,), math.inf))
        self.register_buffer("high", torch.full((num_levels + 1,), -math.inf))

    @property
    def is_known(self) -> bool:
        """Whether any training has been seen."""
        return bool(torch.isfinite(self.low).all())

    @torch.no_grad()
    def learn(self, mask: Tensor) -> None:
        """Take the range from the masks of all training data, (N, …, observations), and forget what was before."""
        sizes, missing = sizes_of_mask(mask)
        bounds = [_range_of_sizes(size[size > 0], room) for size, room in zip(sizes, mask.shape[1:], strict=True)]
        low, high = float(missing.min()), float(missing.max())
        slack = 0.25 * (high - low)
        bounds.append((max(0.0, low - slack), min(1.0, high + slack)))
        self.low.copy_(torch.tensor([low for low, _ in bounds]))
        self.high.copy_(torch.tensor([high for _, high in bounds]))

    @torch.no_grad()
    def include(self, sizes: list[tuple[int, int]], missing: tuple[float, float]) -> None:
        """Widen the range to these smallest and largest sizes of each level, the highest first, and shares missing."""
        low, high = torch.tensor([*map(list, sizes), list(missing)]).to(self.low).unbind(-1)
        self.low.copy_(torch.minimum(self.low, low))
        self.high.copy_(torch.maximum(self.high, high))

    @torch.no_grad()
    def is_outside(self, mask: Tensor) -> Tensor:
        """Which data sets leave the range, (B,), by their masks (B, …, observations)."""
        return self._values_outside(mask)[1].any(-1)

    @torch.no_grad()
    def forward(self, mask: Tensor) -> None:
        """Widen the range to these masks (B, …, observations) in training; otherwise tell who watches that they leave it."""
        if len(mask) == 0:
            return
        if self.training:
            values, _ = self._values_outside(mask)
            self.low.copy_(torch.minimum(self.low, values[..., 0].amin(0)))
            self.high.copy_(torch.maximum(self.high, values[..., 1].amax(0)))
        elif self.is_known:
            with watch_sizes() as watch:
                values, outside = self._values_outside(mask)
                watch.outside.append(outside.any(-1).cpu())
                for level, name in enumerate((*self.names, "share missing")):
                    if bool(outside[:, level].any()):
                        found = values[outside[:, level], level]
                        seen = float(found[:, 0].min()), float(found[:, 1].max())
                        watch.add(name, seen, (float(self.low[level]), float(self.high[level])))

    def _values_outside(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest size of each data set at each level, (B, levels + 1, 2), and whether they leave the range."""
        sizes, missing = sizes_of_mask(mask)
        values = []
        for size in sizes:
            size = size.flatten(1) if size.ndim > 1 else size.unsqueeze(-1)
            largest = size.amax(-1)
            values.append(torch.stack([torch.where(size > 0, size, largest.unsqueeze(-1)).amin(-1), largest], -1))
        values = torch.stack([*values, torch.stack([missing, missing], -1)], 1).to(self.low)
        slack = torch.full_like(self.low, 1e-6)
        outside = (values[..., 0] < self.low - slack) | (values[..., 1] > self.high + slack)
        return values, outside & torch.tensor(self.is_known, device=outside.device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Files of versions that did not know their range can still be loaded: nothing is known then."""
        for name in ("low", "high"):
            state_dict.setdefault(prefix + name, getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SizeWatch:
    """What leaves the trained range of any net within a block; made by `watch_sizes`.

    Attributes:
        outside: For each batch that a net has read, which of its data sets left the range, (B,).
    """

    def __init__(self, warn: bool):
        self.outside: list[Tensor] = []
        self._warn, self._token = warn, None
        self._found: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}

    def __enter__(self) -> SizeWatch:
        outer = _watch.get()
        if outer is not None and self._warn:
            return outer
        self._token = _watch.set(self)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._token is None:
            return
        _watch.reset(self._token)
        self._token = None
        if self._warn and kind is None:
            self.warn()

    def warn(self) -> None:
        """Give the warning now if anything left the range; within a watched block, leave it to that block.

        sbi's posteriors have no such block and read the same data many times, so a call of the user warns once.
        """
        outer = _watch.get()
        if outer is not None:
            for name, (seen, trained) in self._found.items():
                outer.add(name, seen, trained)
        elif self._found and is_first_in_call():
            warn_user(
                f"the data leave the range that the net was trained on ({self.describe()}). Its answers can be wrong there "
                "and look sure. Train on such sizes: simulate them, or use train(vary_sizes=True) where the trainer has it.",
                RuntimeWarning,
            )

    def add(self, name: str, seen: tuple[float, float], trained: tuple[float, float]) -> None:
        """Note smallest and largest sizes of one level outside the range, and the range."""
        before, _ = self._found.get(name, (seen, trained))
        self._found[name] = (min(seen[0], before[0]), max(seen[1], before[1])), trained

    def describe(self) -> str:
        """Sizes that left the range, and the range; empty if none did."""
        return "; ".join(
            f"{name}: {_interval(seen)}, trained on {_interval(trained)}"
            for name, (seen, trained) in self._found.items()
        )

    def data_sets_outside(self, num: int) -> Tensor | None:
        """Which of the first `num` data sets left the range, (num,); None if no net that was watched knows its range."""
        return torch.cat(self.outside)[:num] if self.outside else None


def watch_sizes(warn: bool = True) -> SizeWatch:
    """A block in which data that leave the trained range of a net are noted, and warned of once, at its end.

    A block within another leaves the warning to the outer one. With `warn=False` there is no warning.

    Warns:
        RuntimeWarning: Once, naming levels and sizes.
    """
    return SizeWatch(warn)


def _interval(bounds: tuple[float, float]) -> str:
    first, last = (f"{value:.2f}".rstrip("0").rstrip(".") for value in bounds)
    return first if first == last else f"{first} to {last}"


def _range_of_sizes(size: Tensor, room: int) -> tuple[float, float]:
    """Smallest and largest of sizes (n,), with the tail that random sizes have beyond them, up to `room`."""
    values, counts = size.unique(return_counts=True)
    low, high, counts = int(values[0]), int(values[-1]), counts.tolist()
    if low == high:
        return low, high
    slack = math.ceil(0.2 * (high - low))
    below, above = (_edge(counts[::step], values.tolist()[::step], slack) for step in (1, -1))
    return max(1, low - slack, min(low, below)), min(room, high + slack, max(high, above))


def _edge(counts: list[int], values: list[int], slack: int) -> int:
    """The size at which a tail falls below 10⁻⁶, going from the inside of `values` to the first and beyond."""
    direction = 1 if values[0] > values[-1] else -1
    known = next((k for k, count in enumerate(counts[:-1]) if count >= _ENOUGH), None)
    if known is None:
        return values[0] + direction * slack
    share, ratio = counts[known] / sum(counts), counts[known] / counts[known + 1]
    if known == 0 and ratio >= 0.5:
        return values[0]  # it ends here
    return values[known] + direction * math.ceil(math.log(_RAREST / share) / math.log(min(ratio, 0.6)))
