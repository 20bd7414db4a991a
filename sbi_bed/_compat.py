"""Private names of sbi 0.27 that we use. No other file may use any; read this one again when the pin is raised.

`NeuralInference` holds sbi's loop over epochs: Adam, clipping, validation, early stopping, the best weights, a tracker. Of
a trainer it needs only `_neural_net` and `_get_losses`. Between epochs it calls a few methods of its own, which we
override:

- `_get_losses` is called at each step, so that the learning rate of that step is set there.
- `_converged` is called before each epoch: we may stop for a reason of our own, with the best weights restored.
- `_maybe_show_progress` is called after each epoch, when all counters are up to date.
- `_report_convergence_at_end` warns that the last epoch was reached. We silence it: with a learning rate that falls to 0
  the last epoch is meant to be reached.

sbi runs n + 1 epochs for `max_num_epochs=n`, so `_converged` checks that limit, too.

`DirectPosterior` keeps its leakage correction in `_leakage_density_correction_factor`, even when its default x changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sbi.inference.trainers._contracts import TrainConfig
from sbi.inference.trainers.base import NeuralInference
from torch import Tensor, nn

__all__ = ["TrainingLoop", "forget_leakage"]


class TrainingLoop(NeuralInference):
    """sbi's training loop over any net.

    Args:
        net: The net to train.
        losses_of: batch → losses (B,), differentiable in the net's weights.
        rate_at: () → learning rate of the next step.
        stop: loop → whether to stop before the next epoch.
        after_epoch: Called with the loop after each epoch.
        device: Device to train on; the net is moved there.
        tracker: An sbi `Tracker`; sbi writes to it when training ends.
        weight_decay: Weight decay of AdamW; with 0 that is Adam.

    Attributes:
        last_weights: Weights after the last epoch, where the training ended by `max_num_epochs` or `stop`; None where it
            ended because nothing improved.
    """

    def __init__(
        self,
        net: nn.Module,
        losses_of: Callable[[Any], Tensor],
        rate_at: Callable[[], float],
        stop: Callable[[TrainingLoop], bool],
        after_epoch: Callable[[TrainingLoop], None],
        device: torch.device,
        tracker: Any,
        weight_decay: float = 0.0,
    ):
        super().__init__(device=str(device), tracker=tracker, show_progress_bars=False)
        self._neural_net: Any = net.to(device)
        self.device = device
        self._losses_of, self._rate_at, self._stop, self._after_epoch = losses_of, rate_at, stop, after_epoch
        self._max_num_epochs = 0
        self.epoch = 0
        self.last_weights: dict[str, Tensor] | None = None
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=weight_decay)

    def run(
        self,
        train_batches: Iterable[Any],
        validation_batches: Iterable[Any],
        max_num_epochs: int,
        stop_after_epochs: int,
        clip_max_norm: float | None,
    ) -> None:
        """Train the net, and leave it with the weights of its lowest validation loss.

        Batches are iterated once in each epoch. They need a length and a `batch_size`, as torch's loaders have.
        """
        config = TrainConfig(
            training_batch_size=1,  # the loaders decide
            learning_rate=1.0,  # `rate_at` decides
            validation_fraction=0.5,  # the loaders decide
            stop_after_epochs=stop_after_epochs,
            max_num_epochs=max_num_epochs,
            resume_training=True,  # from the optimiser and counters that __init__ or `load_state_dict` has set
            retrain_from_scratch=False,
            show_train_summary=False,
            clip_max_norm=clip_max_norm,
        )
        self._max_num_epochs = max_num_epochs
        self._run_training_loop(train_batches, validation_batches, config)  # pyright: ignore[reportArgumentType]

    @property
    def validation_losses(self) -> list[float]:
        """Mean validation loss after each epoch."""
        return self._summary["validation_loss"]

    @property
    def best_validation_loss(self) -> float:
        """The lowest validation loss, including the last epoch's."""
        return min(self.validation_losses, default=float("inf"))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the loop keeps from one epoch to the next, as tensors and plain data."""
        return {
            "weights": self._neural_net.state_dict(),
            "best_weights": self._best_model_state_dict,
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "loss": self._val_loss,
            "best_loss": self._best_val_loss,
            "fruitless": self._epochs_since_last_improvement,
            "summary": self._summary,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned.

        Raises:
            RuntimeError: If the weights belong to another net.
        """
        self._neural_net.load_state_dict(state["weights"])
        self._best_model_state_dict: Any = state["best_weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self._val_loss, self._best_val_loss = state["epoch"], state["loss"], state["best_loss"]
        self._epochs_since_last_improvement, self._summary = state["fruitless"], state["summary"]

    # ---- methods that sbi's loop calls

    def _get_losses(self, batch: Any, loss_args: Any = None) -> Tensor:
        if self._neural_net.training:
            rate = self._rate_at()
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        return self._losses_of(batch)

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        converged = super()._converged(epoch, stop_after_epochs)
        if not converged and (epoch >= self._max_num_epochs or self._stop(self)):
            self.last_weights = {name: value.clone() for name, value in self._neural_net.state_dict().items()}
            self._neural_net.load_state_dict(self._best_model_state_dict)
            converged = True
        return converged

    def _maybe_show_progress(self, show: bool, epoch: int) -> None:  # pyright: ignore
        self._after_epoch(self)

    def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
        pass

    # ---- abstract methods of sbi's trainers that a loop does not need

    def _not_here(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("TrainingLoop only trains the net that it was given, on the batches it was given.")

    append_simulations = train = _not_here
    _initialize_neural_network = _get_start_index = _get_potential_function = _loss = _not_here


def forget_leakage(posterior: Any) -> None:
    """Make an sbi posterior, or each member of an ensemble, compute its leakage correction again for the next x."""
    for member in (posterior, *getattr(posterior, "posteriors", ())):
        if hasattr(member, "_leakage_density_correction_factor"):
            member._leakage_density_correction_factor = None
