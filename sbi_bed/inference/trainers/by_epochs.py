"""Training by epochs: the one loop behind all trainers that pass through a fixed set of simulations again and again.

A subclass says what its simulations are, how its net is built and what the losses of a batch are. The rest is done here, on
sbi's own loop (`_compat.py`): seed, held-out simulations, batches, learning rate, clipping, check for NaN, progress bar,
tracker, time limit, new starts, checkpoint and resume.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..._compat import TrainingLoop
from ...neural_nets.embedding_nets.hierarchical import HierarchicalEmbedding
from ...utils.checks import check_count, check_fraction
from ...utils.seeding import seeded
from ...utils.tracking import NoTracker
from .checkpoint import Checkpoint
from .held_out import split_rows
from .settings import Settings

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["EpochSettings", "EpochTrainer"]

_HELD_OUT_SEED = 0
_PARTS = {"attempt", "seconds", "loop", "result"}  # of the state in a checkpoint


@dataclass(frozen=True, kw_only=True)
class EpochSettings(Settings):
    """Settings of a training by epochs.

    Attributes:
        max_num_epochs: Passes through the simulations, at most.
        training_batch_size: Simulations in each step.
        validation_fraction: Share of the simulations that is held out.
        stop_after_epochs: Epochs without a lower validation loss after which to stop; None for never.
        split_seed: Seed of which simulations are held out; drawn like all else if None.
        weight_decay: Of AdamW.
        max_restarts: How often to start again, at most.
        vary_sizes: Whether to train on random sizes of the data sets, see `ModelComparison.train`.
        checkpoint_every: Epochs between two writings of the checkpoint; it is also written at the beginning and at the end.
    """

    max_num_epochs: int
    training_batch_size: int
    validation_fraction: float
    stop_after_epochs: int | None = None
    split_seed: int | None = None
    weight_decay: float = 0.0
    max_restarts: int = 0
    vary_sizes: bool | None = None
    checkpoint_every: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_num_epochs", "training_batch_size", "stop_after_epochs"):
            if name != "stop_after_epochs" or self.stop_after_epochs is not None:
                self._set(name, check_count(getattr(self, name), name))
        self._set("max_restarts", check_count(self.max_restarts, "max_restarts", 0))
        if self.split_seed is not None:
            self._set("split_seed", check_count(self.split_seed, "split_seed", -(2**63)))
        self._set("vary_sizes", None if self.vary_sizes is None else bool(self.vary_sizes))
        self._set("validation_fraction", check_fraction(self.validation_fraction, "validation_fraction"))
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}.")
        self._set("weight_decay", float(self.weight_decay))


class EpochTrainer:
    """Base of trainers by epochs.

    A subclass has a method `train` that calls `_train(settings)`, and gives `append_simulations`, `_build` and `_losses`. It
    may give the other methods of the first group below.

    Args:
        device: Where to train.
        tracker: An sbi `Tracker`; nothing is written if None.
        show_progress_bars: Whether to show progress with the validation loss.

    Attributes:
        device: Where to train.
        validation_losses: Mean validation loss after each epoch.
        held_out_losses: Loss of each held-out simulation, (N,), once trained.
        num_epochs: Epochs of the last training, since its last start.
        varied_sizes: Whether the last training varied the sizes of data sets.
    """

    label = "training"  # beside the progress bar
    fewest_simulations = 1  # to train on

    def __init__(
        self, device: str | torch.device = "cpu", tracker: Tracker | None = None, show_progress_bars: bool = True
    ):
        self.device = torch.device(device)
        self._tracker, self._show_progress_bars = tracker, show_progress_bars
        self.validation_losses: list[float] = []
        self.held_out_losses: Tensor | None = None
        self.num_epochs, self.varied_sizes = 0, False
        self._simulations: list[tuple[Tensor, ...]] = []  # what each call of `append_simulations` added

    def _simulated(self) -> tuple[Tensor, ...]:
        """All simulations, as they were appended, tensors (N, …)."""
        if not self._simulations:
            raise ValueError("there are no simulations: call append_simulations() first.")
        if len(self._simulations) > 1:
            self._simulations = [tuple(torch.cat(parts) for parts in zip(*self._simulations, strict=True))]
        return self._simulations[0]

    # ---- what a subclass gives

    def _tensors(self) -> tuple[Tensor, ...]:
        """The simulations from which batches are cut, tensors (N, …)."""
        return self._simulated()

    def _build(self, rows: Tensor) -> nn.Module:
        """The net, on the device; a new one is built and scaled with these `rows` of the simulations."""
        raise NotImplementedError

    def _losses(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Losses (B,) of a batch, of the net that `_build` gave."""
        raise NotImplementedError

    def _description(self) -> dict[str, Any]:
        """Plain data that decide the result, beside the settings."""
        return {}

    def _grouped_data(self) -> tuple[HierarchicalEmbedding, Tensor] | None:
        """The embedding net for grouped data, if there is one, and all data as it reads them, (N, groups, …)."""
        return None

    def _has_to_stop(self) -> bool:
        """Asked before each epoch but the first: whether to stop, beside patience and limits."""
        return False

    def _choose_weights(self, net: nn.Module, last: dict[str, Tensor]) -> None:
        """Called at the end of all epochs or the time. The net has its weights of the lowest validation loss."""

    def _start_again(self, net: nn.Module) -> bool:
        """Asked when the net is trained: whether to train it again. If so, the net has been given other weights."""
        return False

    # ---- the training

    def _train(self, settings: EpochSettings) -> nn.Module:
        """Train, or go on with a training that was stopped; returns the net.

        Raises:
            ValueError: If there are too few simulations, the checkpoint is of another training, or the loss becomes NaN.
        """
        before = set(self.__dict__)
        self._begin, self._settings = time.perf_counter(), settings
        try:
            with seeded(settings.seed, self.device):
                self._train_under_seed(self._tensors())
            return self._net.eval()
        finally:
            for name in self.__dict__.keys() - before - {"_net"}:
                del self.__dict__[name]  # copies of simulations, the open progress bar, …

    def _train_under_seed(self, tensors: tuple[Tensor, ...]) -> None:
        settings, num = self._settings, len(tensors[0])
        description = {"trainer": type(self).__name__, "num_simulations": num, **self._description()}
        self._file = Checkpoint(settings, description, self.device)
        kept = self._file.read(_PARTS)
        if self._tracker is not None:
            self._tracker.log_params(settings.as_plain_data())
        rows, held_out = split_rows(num, settings.validation_fraction, settings.split_seed, self.fewest_simulations)
        self._net = self._build(rows).to(self.device)
        size = settings.training_batch_size
        self._batches = _Batches(self, tensors, rows, size)
        self._held_out = _Batches(self, tensors, held_out, max(size, 256), train=False)
        self._attempt = 0 if kept is None else kept["attempt"]
        self._begin -= 0.0 if kept is None else kept["seconds"]
        with self._varying_sizes():
            if kept is not None and kept["result"] is not None:
                self._take_up(kept)
                return
            self._run(kept)
            while self._start_again(self._net):
                self._attempt += 1
                self._run(None)
            self._finish()

    def _varying_sizes(self) -> AbstractContextManager[None]:
        """The block in which the net is trained: its embedding net knows all sizes, and whether to vary them."""
        grouped, vary = self._grouped_data(), self._settings.vary_sizes
        if grouped is None:
            if vary:
                raise ValueError(
                    "vary_sizes=True needs a HierarchicalEmbedding as the embedding net, which reads any sizes."
                )
            self.varied_sizes = False
            return nullcontext()
        embedding, x = grouped
        self.varied_sizes = vary if vary is not None else embedding.vary_sizes or embedding.has_one_size(x)
        block = embedding.varying_sizes(self.varied_sizes)
        with embedding.varying_sizes(self.varied_sizes):
            embedding.learn_sizes(x)
        return block

    def _run(self, kept: dict[str, Any] | None) -> None:
        """Train from the present weights, or go on from the state of a checkpoint."""
        settings, self._loop = self._settings, self._new_loop(self._tracker or NoTracker())
        if kept is None:
            self._keep()  # so that a training that ends within its first epoch can be resumed, too
        else:
            self._restore(kept)
        progress = {"total": settings.max_num_epochs, "disable": not self._show_progress_bars}
        label = f"{self.label} on random sizes" if self.varied_sizes else self.label
        with tqdm(desc=label, initial=self._loop.epoch, **progress) as self._bar:
            self._loop.run(
                self._batches,
                self._held_out,
                settings.max_num_epochs,
                settings.stop_after_epochs or settings.max_num_epochs + 1,
                settings.clip_max_norm,
            )
        self.validation_losses, self.num_epochs = list(self._loop.validation_losses), self._loop.epoch
        if self._is_over and self._loop.last_weights is not None:
            self._choose_weights(self._net, self._loop.last_weights)

    def _new_loop(self, tracker: Any) -> TrainingLoop:
        hooks = self._losses_of, self._rate, self._stops, self._after_epoch
        return TrainingLoop(self._net, *hooks, self.device, tracker, self._settings.weight_decay)

    def _finish(self) -> None:
        """Look at the held-out simulations once more, and keep what was trained."""
        self.held_out_losses = self._losses_of_held_out()
        weights = {name: value.cpu() for name, value in self._net.state_dict().items()}
        self._keep({"weights": weights, "held_out_losses": self.held_out_losses, "epochs": self.num_epochs})

    def _take_up(self, kept: dict[str, Any]) -> None:
        """Have the net and all attributes of a training that is over."""
        self._loop = self._new_loop(NoTracker())
        self._restore(kept)
        result = kept["result"]
        self._net.load_state_dict(result["weights"])
        self.validation_losses, self.num_epochs = list(self._loop.validation_losses), result["epochs"]
        self.held_out_losses = result["held_out_losses"]

    def _keep(self, result: dict[str, Any] | None = None) -> None:
        """Write the checkpoint."""
        seconds = time.perf_counter() - self._begin
        state = {"attempt": self._attempt, "seconds": seconds, "loop": self._loop.state_dict(), "result": result}
        self._file.write(state)

    def _restore(self, kept: dict[str, Any]) -> None:
        try:
            self._loop.load_state_dict(kept["loop"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as err:
            raise ValueError(f"{self._settings.checkpoint} is a checkpoint of another net: {err}") from err
        self._file.restore_random_state(kept)

    # ---- what subclasses and sbi's loop ask

    @property
    def _used(self) -> float:
        """Share of `max_seconds` that is behind."""
        limit = self._settings.max_seconds
        return 0.0 if limit is None else (time.perf_counter() - self._begin) / limit

    @property
    def _is_over(self) -> bool:
        """Whether all epochs, or all of the time, are behind."""
        return self._loop.epoch >= self._settings.max_num_epochs or self._used >= 1

    def _losses_of_held_out(self) -> Tensor:
        """Loss of each held-out simulation, (N,), float64, of the net as it is now."""
        return self._of_held_out(self._losses)

    @torch.no_grad()
    def _of_held_out(self, of: Callable[[tuple[Tensor, ...]], Tensor]) -> Tensor:
        """What `of` gives for batches of held-out simulations, (N, …), float64, with the net as it is now."""
        self._net.eval()
        return torch.cat([self._with_fixed_sizes(of, batch) for batch in self._held_out]).double().cpu()

    def _losses_of(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._losses(batch) if self._net.training else self._with_fixed_sizes(self._losses, batch)

    def _with_fixed_sizes(self, of: Callable[[tuple[Tensor, ...]], Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """`of(batch)`, where held-out simulations have the same random sizes each time."""
        with seeded(_HELD_OUT_SEED if self.varied_sizes else None, self.device):
            return of(batch)

    def _rate(self) -> float:
        by_epochs = (self._loop.epoch + self._batches.done) / self._settings.max_num_epochs
        return self._settings.learning_rate_at(max(by_epochs, self._used))

    def _stops(self, loop: TrainingLoop) -> bool:
        return self._used >= 1 or (loop.epoch > 0 and self._has_to_stop())

    def _after_epoch(self, loop: TrainingLoop) -> None:
        self._batches.done, loss = 0.0, loop.validation_losses[-1]
        if not math.isfinite(loss):
            raise ValueError("the loss became NaN or infinite: lower learning_rate, or look for extreme values in x.")
        self._bar.update()
        self._bar.set_postfix({"validation loss": f"{loss:.4f}"})
        if self._file.is_due(loop.epoch):
            self._keep()


class _Batches:
    """One pass through simulations, in slices moved to the trainer's device.

    A pass of the training has a new order from torch's generator, leaves out the incomplete last batch, and ends when the
    time is up. Otherwise all simulations come in order.

    Attributes:
        done: Share of the pass that is behind.
        batch_size: Mean number of simulations in a batch of the last pass; sbi divides its sums by `len * batch_size`.
    """

    def __init__(self, trainer: EpochTrainer, tensors: tuple[Tensor, ...], rows: Tensor, size: int, train: bool = True):
        self._trainer, self._tensors, self._rows, self._train = trainer, tensors, rows, train
        self._size = min(size, len(rows))
        self.batch_size, self.done = float(self._size), 0.0

    def __len__(self) -> int:
        return len(self._rows) // self._size if self._train else -(-len(self._rows) // self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rows = self._rows[torch.randperm(len(self._rows))] if self._train else self._rows
        seen, self.done = 0, 0.0
        for number in range(len(self)):
            chosen = rows[number * self._size : (number + 1) * self._size]
            seen += len(chosen)
            self.batch_size = seen / len(self)
            yield tuple(tensor[chosen].to(self._trainer.device) for tensor in self._tensors)
            self.done = (number + 1) / len(self)
            if self._train and self._trainer._used >= 1:
                return
