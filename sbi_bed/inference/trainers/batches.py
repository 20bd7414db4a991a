"""Batches of tensors for sbi's training loop: whole slices instead of single simulations put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["Batches"]


class Batches:
    """One pass over tensors that share their first dimension, in slices moved to a device.

    Args:
        tensors: Each (N, …).
        rows: Which of the N are used, (M,).
        batch_size: Rows of a batch, at most M.
        shuffle: Whether each pass has a new order, from torch's global generator, and leaves out the incomplete last batch;
            else all M come in order.
        device: Where batches go.
        stop: () → whether to end a pass early; asked after each batch.

    Attributes:
        done: Share of the pass that is behind.
        batch_size: Rows of a batch in the last pass, on average: sbi divides its sums by `len(batches) * batch_size`.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        rows: Tensor,
        batch_size: int,
        shuffle: bool,
        device: torch.device,
        stop: Callable[[], bool] = lambda: False,
    ):
        self._tensors, self._rows, self._shuffle, self._device, self._stop = tensors, rows, shuffle, device, stop
        self._size = min(batch_size, len(rows))
        self.batch_size, self.done = float(self._size), 0.0

    def __len__(self) -> int:
        return len(self._rows) // self._size if self._shuffle else -(-len(self._rows) // self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rows = self._rows[torch.randperm(len(self._rows))] if self._shuffle else self._rows
        seen, self.done = 0, 0.0
        for number in range(len(self)):
            chosen = rows[number * self._size : (number + 1) * self._size]
            seen += len(chosen)
            self.batch_size = seen / len(self)
            yield tuple(t[chosen].to(self._device) for t in self._tensors)
            self.done = (number + 1) / len(self)
            if self._stop():
                return
