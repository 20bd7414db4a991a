"""Training by gradient steps: the one loop behind all trainers that simulate while they train.

A subclass says which nets it trains and what the loss of a batch is. The loop does the rest: seed, optimiser, learning
rate, clipping, check for NaN, progress bar, tracker, time limit, shards, checkpoint and resume.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...utils.checks import check_count
from ...utils.files import rebuilding
from ...utils.seeding import seeded
from .checkpoint import Checkpoint
from .settings import StepSettings
from .shards import Shards

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["StepTrainer"]


class StepTrainer:
    """Base of trainers by steps.

    A subclass has a method `train` that calls `_train(settings)`, and gives `_nets` and `_loss`. It may give `_build`,
    `_choose_start`, `_description`, `_more_state`, `_recall`, `_before_step`, `_finish`, and the class attributes below.

    Args:
        device: Where to train.
        tracker: An sbi `Tracker`; nothing is written if None.
        show_progress_bars: Whether to show progress.

    Attributes:
        device: Where to train.
        reports: What `_loss` reported, at every `report_every`-th step and at the last.
        num_steps: Steps done.

    Example:
        >>> class LineTrainer(StepTrainer):  # fits y = 3 x by least squares
        ...     def __init__(self, **options):
        ...         super().__init__(**options)
        ...         self.line = nn.Linear(1, 1)
        ...
        ...     def train(self, num_steps=200, batch_size=16, learning_rate=0.1, **settings):
        ...         settings |= {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate}
        ...         self._train(StepSettings.of(settings))
        ...         return self.line
        ...
        ...     def _nets(self):
        ...         return {"line": self.line}
        ...
        ...     def _loss(self, num, done):
        ...         x = torch.randn(num, 1)
        ...         loss = (self.line(x) - 3 * x).square().mean()
        ...         return loss, loss.detach()
        >>> line = LineTrainer(show_progress_bars=False).train(seed=0)
        >>> round(line.weight.item(), 1)
        3.0
    """

    label = "training"  # beside the progress bar
    metric = "loss"  # name of what `_loss` reports, for the tracker
    shown_metric = "loss"  # and for the progress bar
    report_every = 20
    betas = (0.9, 0.999)  # of Adam
    advice_about_nan = "lower the learning rate, or look for extreme values"

    def __init__(
        self, device: str | torch.device = "cpu", tracker: Tracker | None = None, show_progress_bars: bool = True
    ):
        self.device = torch.device(device)
        self._tracker, self._show_progress_bars = tracker, show_progress_bars
        self.reports: list[float] = []
        self.num_steps = 0

    # ---- what a subclass gives

    def _nets(self) -> dict[str, nn.Module]:
        """Nets to train, by the names that the checkpoint uses."""
        raise NotImplementedError

    def _loss(self, num: int, done: float) -> tuple[Tensor, Tensor]:
        """Loss of a new batch of `num`, a scalar, and the number to report, a detached scalar.

        `done` is the share of the training that is behind, of its steps or its time.
        """
        raise NotImplementedError

    def _build(self, settings: StepSettings) -> None:
        """Build what the training needs. Called under the seed, before the first step; in a resumed training, too."""

    def _more_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside nets and optimiser, tensors and plain data."""
        return {}

    def _recall(self, kept: dict[str, Any]) -> None:
        """Take up what `_more_state` gave. Called before `_build`, in a resumed training only."""

    def _choose_start(self, settings: StepSettings) -> None:
        """Choose the weights to begin with. Called under the seed, after `_build`, in a new training only."""

    def _description(self) -> dict[str, Any]:
        """Plain data that decide the result, beside the settings."""
        return {}

    def _parameters(self, net: nn.Module) -> list[nn.Parameter]:
        """Those parameters of one of the nets that are trained."""
        return [parameter for parameter in net.parameters() if parameter.requires_grad]

    def _before_step(self, done: float) -> None:
        """Called before each step."""

    def _share_after(self, settings: StepSettings) -> float:
        """Share of a time limit that is kept for `_finish`."""
        return 0.0

    def _finish(self) -> None:
        """Called under the seed, after the last step."""

    # ---- the loop

    def _train(self, settings: StepSettings) -> None:
        """Take all steps, or those that remain of a resumed training.

        Raises:
            ValueError: If the batch cannot be cut into shards, the checkpoint is of another training, or the gradient
                becomes NaN or infinite. The nets then have their weights of the step before. On a GPU, which is asked only
                when a report is due, that is at most `report_every` steps earlier.
        """
        begin = time.perf_counter()
        with seeded(settings.seed, self.device):
            file = Checkpoint(settings, {"trainer": type(self).__name__, **self._description()}, self.device)
            kept = file.read({"step", "seconds", "weights", "optimizer", "reports"})
            if self._tracker is not None:
                self._tracker.log_params(file.description)
            self._shards = Shards(settings.num_shards, self.device)
            self._size_of_shard = self._shards.size_of(settings.batch_size)
            if kept is not None:
                with rebuilding(str(settings.checkpoint)):
                    self._recall(kept)
            self._build(settings)
            if kept is None:
                self._choose_start(settings)
            parameters = [p for net in self._nets().values() for p in self._parameters(net.train())]
            self._shards.share(parameters)
            self._settings = settings
            self._optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=self.betas)
            self.num_steps = 0
            if kept is not None:
                self._restore(kept, file)
                begin -= kept["seconds"]
            self._take_steps(settings, file, begin)
            self._seconds = time.perf_counter() - begin
            self._finish()
        for net in self._nets().values():
            net.eval()

    def _take_steps(self, settings: StepSettings, file: Checkpoint, begin: float) -> None:
        is_first = self._shards.rank == 0  # of the processes: it shows and writes
        progress = {"desc": self.label, "total": settings.num_steps, "initial": self.num_steps}
        value = norm = torch.tensor(torch.nan)
        done, started, reported = 0.0, self.num_steps, self.num_steps
        with tqdm(**progress, disable=not (self._show_progress_bars and is_first)) as bar:
            while self.num_steps < settings.num_steps:
                limit = (
                    None if settings.max_seconds is None else (1 - self._share_after(settings)) * settings.max_seconds
                )
                used = 0.0 if limit is None else (time.perf_counter() - begin) / limit
                if used >= 1:
                    break
                done = max(self.num_steps / settings.num_steps, used)
                value, norm = self._step(settings, done)
                self.num_steps += 1
                bar.update()
                if self.num_steps % self.report_every == 0:
                    self._report(bar, value, norm, settings.learning_rate_at(done))
                    reported = self.num_steps
                if is_first and file.is_due(self.num_steps) and self.num_steps < settings.num_steps:
                    self._write(file, begin)
            if reported < self.num_steps:
                self._report(bar, value, norm, settings.learning_rate_at(done))
            if is_first and started < self.num_steps:
                self._write(file, begin)

    def _step(self, settings: StepSettings, done: float) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; the reported value and the gradients' norm."""
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(done)
        self._before_step(done)
        value, norm = self._set_gradients(lambda num: self._loss(num, done), self._nets(), self.num_steps)
        # On a GPU the question would wait for the device, so it is asked only when a report is due.
        may_ask = norm.device.type == "cpu" or (self.num_steps + 1) % self.report_every == 0
        if may_ask and not torch.isfinite(norm):
            raise ValueError(f"the gradient became NaN or infinite: {self.advice_about_nan}.")
        self._optimizer.step()
        return value, norm

    def _set_gradients(
        self, loss_of: Callable[[int], tuple[Tensor, Tensor]], nets: dict[str, nn.Module], *step: int
    ) -> tuple[Tensor, Tensor]:
        """Leave the clipped gradients of the mean loss over all shards in the nets; mean value and gradients' norm."""
        self._optimizer.zero_grad(set_to_none=True)
        value = torch.zeros((), device=self.device)
        for _ in self._shards.of_step(*step):
            loss, reported = loss_of(self._size_of_shard)
            (loss / self._shards.num_shards).backward()
            value += reported / self._shards.num_shards
        trained = [self._parameters(net) for net in nets.values()]
        self._shards.sum([value, *(p.grad for each in trained for p in each if p.grad is not None)])
        # Each net by itself: the gradients of a critic are many times those of a policy.
        norms = [torch.nn.utils.clip_grad_norm_(each, self._settings.largest_norm) for each in trained]
        return value, torch.stack(norms).norm()

    def _report(self, bar: tqdm, value: Tensor, norm: Tensor, rate: float) -> None:
        self.reports.append(float(value))
        last = self.reports[-10:]
        bar.set_postfix({self.shown_metric: f"{sum(last) / len(last):.4g}"})
        if self._tracker is not None:
            metrics = {self.metric: float(value), "learning_rate": rate, "gradient_norm": float(norm)}
            self._tracker.log_metrics(metrics, step=self.num_steps - 1)

    def _write(self, file: Checkpoint, begin: float) -> None:
        file.write(
            {
                "step": self.num_steps,
                "seconds": time.perf_counter() - begin,
                "weights": {name: net.state_dict() for name, net in self._nets().items()},
                "optimizer": self._optimizer.state_dict(),
                "reports": self.reports,
                **self._more_state(),
            }
        )

    def _restore(self, kept: dict[str, Any], file: Checkpoint) -> None:
        with rebuilding(str(self._settings.checkpoint)):
            try:
                for name, net in self._nets().items():
                    net.load_state_dict(kept["weights"][name])
            except (RuntimeError, KeyError) as err:
                raise ValueError(f"{self._settings.checkpoint} is a checkpoint of another net: {err}") from err
            self._optimizer.load_state_dict(kept["optimizer"])
            self.reports = [float(value) for value in kept["reports"]]
            self.num_steps = check_count(kept["step"], "step", 0)
        file.restore_random_state(kept)
