"""One training by epochs from given weights, on sbi's loop: batches, learning rate, time limit, checkpoints, progress."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..._compat import TrainingLoop
from .batches import Batches
from .epoch_checkpoint import EpochCheckpoint
from .epoch_settings import EpochSettings

__all__ = ["EpochRun"]


class EpochRun:
    """Trains a net on simulations; a subclass says what the loss of a batch is.

    Args:
        net: Trained in place.
        settings: What decides the result.
        data: Tensors (N, …) that batches are cut from.
        split: Rows that are trained on, and rows that are held out.
        device: Where to train.
        begin: When the training began, by `time.perf_counter`, for `max_seconds`.
    """

    label = "training"

    def __init__(
        self,
        net: nn.Module,
        settings: EpochSettings,
        data: tuple[Tensor, ...],
        split: tuple[Tensor, Tensor],
        device: torch.device,
        begin: float,
    ):
        self._net, self._settings, self._device, self._begin = net, settings, device, begin
        size = settings.training_batch_size
        self._batches = Batches(data, split[0], size, True, device, lambda: self.used >= 1)
        self._held_out = Batches(data, split[1], max(size, 256), False, device)

    def train(
        self, file: EpochCheckpoint, position: dict[str, Any], state: dict[str, Any] | None, tracker: Any, show: bool
    ) -> None:
        """Train from the beginning, or from a checkpoint's `state`; `file` is written with `position` after epochs."""
        settings, parts = self._settings, (self._losses_of, self._rate, self._stop, self._after_epoch)
        self.loop = TrainingLoop(self._net, *parts, self._device, tracker, settings.weight_decay)
        if state is not None:
            file.restore(self.loop, state)
        self._begun()
        self._keep = lambda: file.write(self.loop, position, last=self.loop.epoch >= settings.max_num_epochs)
        progress = {"desc": self.label, "total": settings.max_num_epochs, "disable": not show}
        with tqdm(initial=self.loop.epoch, **progress) as self._bar:
            epochs, patience = settings.max_num_epochs, settings.stop_after_epochs
            self.loop.run(self._batches, self._held_out, epochs, patience, settings.clip_max_norm)

    @property
    def used(self) -> float:
        """Share of `max_seconds` that is behind."""
        limit = self._settings.max_seconds
        return 0.0 if limit is None else (time.perf_counter() - self._begin) / limit

    @torch.no_grad()
    def held_out_losses(self) -> Tensor:
        """Loss of each held-out simulation, (N,), float64, of the net as it is now."""
        self._net.eval()
        return torch.cat([self._losses_of(batch) for batch in self._held_out]).double()

    def _losses_of(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Losses (B,) of a batch."""
        raise NotImplementedError

    def _begun(self) -> None:
        """Called when the loop stands, from the beginning or from a checkpoint."""

    # ---- what sbi's loop asks

    def _rate(self) -> float:
        by_epochs = (self.loop.epoch + self._batches.done) / self._settings.max_num_epochs
        return self._settings.learning_rate_at(max(by_epochs, self.used))

    def _stop(self, loop: TrainingLoop) -> bool:
        return self.used >= 1

    def _after_epoch(self, loop: TrainingLoop) -> None:
        self._batches.done, loss = 0.0, loop.validation_losses[-1]
        if not math.isfinite(loss):
            raise ValueError("the loss became NaN or infinite: lower learning_rate, or look for extreme values in x.")
        self._bar.update()
        self._bar.set_postfix({"validation loss": f"{loss:.4f}"})
        self._keep()
