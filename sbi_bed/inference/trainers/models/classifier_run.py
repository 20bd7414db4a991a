"""One training of a classifier from given weights, which may turn out to be at chance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...._compat import TrainingLoop
from ....neural_nets.classifiers import EvidenceClassifier
from ..epoch_checkpoint import EpochCheckpoint
from ..epoch_run import EpochRun
from ..epoch_settings import EpochSettings

__all__ = ["ClassifierRun"]

_STEPS_BEFORE_JUDGEMENT = 200


class ClassifierRun(EpochRun):
    """Trains a classifier on simulations.

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

    label = "training classifier"

    def __init__(
        self,
        net: EvidenceClassifier,
        loss: nn.Module,
        settings: EpochSettings,
        data: tuple[Tensor, Tensor],
        split: tuple[Tensor, Tensor],
        device: torch.device,
        begin: float,
        stop_at_chance: bool,
    ):
        super().__init__(net, settings, data, split, device, begin)
        self.net, self._loss, self._to_be_judged = net, loss, stop_at_chance
        self._last: dict[str, Tensor] | None = None

    def train(
        self, file: EpochCheckpoint, position: dict[str, Any], state: dict[str, Any] | None, tracker: Any, show: bool
    ) -> None:
        """As for `EpochRun`; the last weights are kept unless the best ones are better by more than chance."""
        super().train(file, position, state, tracker, show)
        self._prefer_last()

    @torch.no_grad()
    def at_chance(self) -> bool:
        """Whether the held-out loss is that of a net without any data: within two standard errors, and within 2 %."""
        blind = [self._loss(m.new_zeros(len(m), self.net.num_models).float(), m) for m, _ in self._held_out]
        chance, losses = torch.cat(blind).double(), self.held_out_losses()
        return bool(losses.mean() > 0.98 * chance.mean()) and not _is_lower(losses, chance)

    def _begun(self) -> None:
        if self.loop.epoch > 0:
            self._remember_last()
        self._to_be_judged &= self.loop.epoch <= self._first_judgement

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

    @property
    def _first_judgement(self) -> int:
        """Epochs after which to ask whether the net is at chance: a quarter, and some steps."""
        return max(
            math.ceil(self._settings.max_num_epochs / 4), math.ceil(_STEPS_BEFORE_JUDGEMENT / len(self._batches))
        )

    def _losses_of(self, batch: tuple[Tensor, ...]) -> Tensor:
        model_index, x = batch
        return self._loss(self.net(x.to(next(self.net.head.parameters()))), model_index)

    def _stop(self, loop: TrainingLoop) -> bool:
        if self._to_be_judged and loop.epoch > 0 and (loop.epoch >= self._first_judgement or self.used > 0.25):
            self._to_be_judged = False
            never_better = loop.validation_losses[-1] <= 1.02 * loop.best_validation_loss
            if never_better and self.at_chance():
                return True
        return super()._stop(loop)

    def _after_epoch(self, loop: TrainingLoop) -> None:
        self._remember_last()
        super()._after_epoch(loop)


def _is_lower(first: Tensor, second: Tensor) -> bool:
    """Whether losses (N,) of the same simulations are lower on average, by more than two standard errors."""
    gain = second - first
    return bool(gain.mean() > 2 * gain.std(unbiased=False) / len(gain) ** 0.5)
