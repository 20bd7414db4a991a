"""One training of a classifier from given weights, on sbi's loop: batches, learning rate, reasons to stop, progress."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..._compat import TrainingLoop
from ...neural_nets.classifiers import EvidenceClassifier
from .batches import Batches
from .classifier_settings import ClassifierSettings
from .epoch_checkpoint import EpochCheckpoint

__all__ = ["ClassifierRun"]

_STEPS_BEFORE_JUDGEMENT = 200


class ClassifierRun:
    """Trains a net on simulations.

    Args:
        net: x → log evidences; trained in place.
        loss: (log evidences, model_index) → losses (B,).
        settings: As for `ModelComparison.train`.
        data: model_index (N,) and x (N, *event).
        split: Rows that are trained on, and rows that are held out.
        device: Where to train.
        begin: When the training began, by `time.perf_counter`, for `max_seconds`.
        stop_at_chance: Whether to stop after a quarter of the training (but some steps) if the net is still at chance.
    """

    def __init__(
        self,
        net: EvidenceClassifier,
        loss: nn.Module,
        settings: ClassifierSettings,
        data: tuple[Tensor, Tensor],
        split: tuple[Tensor, Tensor],
        device: torch.device,
        begin: float,
        stop_at_chance: bool,
    ):
        self.net, self._loss, self._settings = net, loss, settings
        self._device, self._begin, self._to_be_judged = device, begin, stop_at_chance
        size = settings.training_batch_size
        self._last: dict[str, Tensor] | None = None
        self._batches = Batches(data, split[0], size, True, device, lambda: self.used >= 1)
        self._held_out = Batches(data, split[1], max(size, 256), False, device)

    def train(
        self, file: EpochCheckpoint, position: dict[str, Any], state: dict[str, Any] | None, tracker: Any, show: bool
    ) -> None:
        """Train from the beginning, or from a checkpoint's `state`; `file` is written with `position` after epochs."""
        settings, parts = self._settings, (self._losses_of, self._rate, self._stop, self._after_epoch)
        self.loop = TrainingLoop(self.net, *parts, self._device, tracker, settings.weight_decay)
        if state is not None:
            file.restore(self.loop, state)
            self._remember_last()
        self._to_be_judged &= self.loop.epoch <= self._first_judgement
        self._keep = lambda: file.write(self.loop, position, last=self.loop.epoch >= settings.max_num_epochs)
        with tqdm(
            desc="comparing models", total=settings.max_num_epochs, initial=self.loop.epoch, disable=not show
        ) as bar:
            self._bar = bar
            epochs, patience = settings.max_num_epochs, settings.stop_after_epochs
            self.loop.run(self._batches, self._held_out, epochs, patience, settings.clip_max_norm)
        self._prefer_last()

    @property
    def used(self) -> float:
        """Share of `max_seconds` that is behind."""
        limit = self._settings.max_seconds
        return 0.0 if limit is None else (time.perf_counter() - self._begin) / limit

    @torch.no_grad()
    def at_chance(self) -> bool:
        """Whether the held-out loss is that of a net without any data: within two standard errors, and within 2 %."""
        blind = [self._loss(m.new_zeros(len(m), self.net.num_models).float(), m) for m, _ in self._held_out]
        chance, losses = torch.cat(blind).double(), self.held_out_losses()
        return bool(losses.mean() > 0.98 * chance.mean()) and not _is_lower(losses, chance)

    def _remember_last(self) -> None:
        if self.loop.epoch >= self._settings.max_num_epochs or self.used >= 1:
            self._last = {name: value.clone() for name, value in self.net.state_dict().items()}

    @torch.no_grad()
    def _prefer_last(self) -> None:
        """Take the last weights unless the best ones' held-out losses are lower by more than two standard errors.

        sbi's loop leaves the weights of the epoch with the lowest validation loss. Where the learning rate has fallen to
        nothing the last are better in truth, and the lowest of many noisy numbers may well belong to an early epoch.
        """
        if self._last is None:
            return
        best, weights = self.held_out_losses(), {k: v.clone() for k, v in self.net.state_dict().items()}
        self.net.load_state_dict(self._last)
        if _is_lower(best, self.held_out_losses()):
            self.net.load_state_dict(weights)

    @torch.no_grad()
    def held_out_losses(self) -> Tensor:
        """Loss of each held-out simulation, (N,), of the net as it is now."""
        self.net.eval()
        return torch.cat([self._losses_of(batch) for batch in self._held_out]).double()

    # ---- what sbi's loop asks

    @property
    def _first_judgement(self) -> int:
        """Epochs after which to ask whether the net is at chance: a quarter, and some steps."""
        return max(
            math.ceil(self._settings.max_num_epochs / 4), math.ceil(_STEPS_BEFORE_JUDGEMENT / len(self._batches))
        )

    def _losses_of(self, batch: tuple[Tensor, ...]) -> Tensor:
        model_index, x = batch
        return self._loss(self.net(x.to(next(self.net.head.parameters()))), model_index)

    def _rate(self) -> float:
        by_epochs = (self.loop.epoch + self._batches.done) / self._settings.max_num_epochs
        return self._settings.learning_rate_at(max(by_epochs, self.used))

    def _stop(self, loop: TrainingLoop) -> bool:
        if self._to_be_judged and loop.epoch > 0 and (loop.epoch >= self._first_judgement or self.used > 0.25):
            self._to_be_judged = False
            never_better = loop.validation_losses[-1] <= 1.02 * loop.best_validation_loss
            if never_better and self.at_chance():
                return True
        return self.used >= 1

    def _after_epoch(self, loop: TrainingLoop) -> None:
        self._batches.done, loss = 0.0, loop.validation_losses[-1]
        if not math.isfinite(loss):
            raise ValueError("the loss became NaN or infinite: lower learning_rate, or look for extreme values in x.")
        self._remember_last()
        self._bar.update()
        self._bar.set_postfix({"validation loss": f"{loss:.4f}"})
        self._keep()


def _is_lower(first: Tensor, second: Tensor) -> bool:
    """Whether losses (N,) of the same simulations are lower on average, by more than two standard errors."""
    gain = second - first
    return bool(gain.mean() > 2 * gain.std(unbiased=False) / len(gain) ** 0.5)
