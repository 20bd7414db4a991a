r"""Training by imitation: a net learns from a teacher's beliefs to assign treatments in context.

The teacher assigns units in many problems of a stream. Before each unit it predicts the outcome in both arms, N(m_a, v_a).
The student learns to predict the same from the history alone. Its loss at a unit is

    Σ_a KL(N(m_a, v_a) ‖ N(m̂_a, v̂_a)) + λ (√v_1 + √v_0)² (ê − e)² / (ê (1 − ê)) / c,

The second part is what the student's propensity ê loses against the teacher's e (`simulators/treatment/problem.py`); c is
the mean of (√v_1 + √v_0)² over the batch. The teacher's trajectories are made once. Each step takes some of them and some
of their units; the trajectories grow to their full length in the first half of the training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....policies.treatment.base import StreamPredictions, TreatmentPolicy, neyman_propensity
from ....policies.treatment.experimenters import ExperimenterTransformer
from ....simulators.treatment.stream import TreatmentStream, assign_stream
from ....utils.checks import check_count
from ....utils.files import rebuilding
from ....utils.seeding import seeded
from ..old_checkpoint import check_checkpoint_arguments, read_checkpoint, restore_random_state, write_checkpoint
from ..old_settings import Settings
from ..steps import Steps

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["ImitationSettings", "ImitationTrainer"]

_KIND = "experimenter-training"
_GROWING = 0.5  # share of a training in which streams grow to their full length
_FIRST_LENGTH = 40


@dataclass(frozen=True)
class ImitationSettings(Settings):
    """Arguments of `ImitationTrainer.train` that decide its result; see there.

    Raises:
        ValueError: If one is out of range.
    """

    num_steps: int
    batch_size: int
    num_episodes: int
    num_units: int
    units_per_episode: int
    propensity_weight: float
    max_seconds: float | None
    seed: int | None

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "num_episodes", "num_units", "units_per_episode"):
            self._set(name, check_count(getattr(self, name), name))
        self._check_learning_rates()
        if not self.propensity_weight >= 0:
            raise ValueError(f"propensity_weight must not be negative, got {self.propensity_weight}.")
        for name in ("clip_max_norm", "max_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")

    def length_at(self, done: float) -> int:
        """Number of units of each trajectory once a share `done` of the training is over."""
        first = min(_FIRST_LENGTH, self.num_units)
        return min(self.num_units, first + int((self.num_units - first) * done / _GROWING))


class ImitationTrainer:
    """Trains a net to assign treatments as a teacher does.

    Args:
        stream: Problems to train on.
        teacher: A policy that predicts outcomes, in most cases a `NeymanTeacher` of the stream's smoothness.
        student: Net to train, in place. If None, an `ExperimenterTransformer` is built under the seed of the training.
        device: Where to train.
        tracker: An sbi `Tracker` for the loss and learning rate; nothing is written if None.
        show_progress_bars: Whether to show progress with the current loss.

    Attributes:
        losses: Training loss at every twentieth step.
        num_steps: Steps done.

    Raises:
        TypeError: If teacher or student are not `TreatmentPolicy`s that predict outcomes.
        ValueError: If covariates disagree, or the student has nothing to train.

    Example:
        >>> from sbi_bed.policies import NeymanTeacher
        >>> stream, teacher = TreatmentStream(smoothness=1.5), NeymanTeacher(1, smoothness=1.5)
        >>> trainer = ImitationTrainer(stream, teacher, show_progress_bars=False)
        >>> student = trainer.train(num_steps=2, num_episodes=8, num_units=30, seed=0)
    """

    def __init__(
        self,
        stream: TreatmentStream,
        teacher: TreatmentPolicy,
        student: TreatmentPolicy | None = None,
        device: str | torch.device = "cpu",
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
    ):
        for name, policy in (("teacher", teacher), ("student", student)):
            if policy is None and name == "student":
                continue
            if not (isinstance(policy, TreatmentPolicy) and policy.has_predictions):
                raise TypeError(f"the {name} must be a TreatmentPolicy that predicts outcomes, got {policy!r}.")
            if policy.covariate_dim != stream.covariate_dim:
                raise ValueError(
                    f"the stream has {stream.covariate_dim} covariates, the {name} was built for {policy.covariate_dim}."
                )
        if student is not None and not any(p.requires_grad for p in student.parameters()):
            raise ValueError(f"{type(student).__name__} has nothing to train.")
        self.stream, self.teacher, self.device = stream, teacher, torch.device(device)
        self._build = student is None
        self.student: TreatmentPolicy = ExperimenterTransformer(stream.covariate_dim) if student is None else student
        self._tracker, self._show_progress_bars = tracker, show_progress_bars
        self.losses: list[float] = []
        self.num_steps = 0

    def train(
        self,
        num_steps: int = 1500,
        batch_size: int = 32,
        learning_rate: float = 2e-3,
        *,
        seed: int | None = None,
        num_episodes: int = 3000,
        num_units: int = 300,
        units_per_episode: int = 64,
        propensity_weight: float = 2.0,
        final_learning_rate: float = 0.01,
        clip_max_norm: float | None = 1.0,
        max_seconds: float | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
        resume: bool = False,
    ) -> TreatmentPolicy:
        """Train for `num_steps` steps of Adam; returns the student, in evaluation mode.

        Args:
            num_steps: Number of gradient steps.
            batch_size: Trajectories in each.
            learning_rate: First learning rate; it falls to `final_learning_rate` times that along a cosine.
            seed: Seed of the whole training; the global generator if None.
            num_episodes: Trajectories of the teacher, made before the first step.
            num_units: Units in each trajectory.
            units_per_episode: Units of a trajectory at which student and teacher are compared in one step.
            propensity_weight: λ, see above.
            final_learning_rate: Share of the learning rate that is left at the end.
            clip_max_norm: Largest norm of gradients; None for no limit.
            max_seconds: Stop after so many seconds at the latest, the teacher's trajectories included; the learning rate
                falls accordingly.
            checkpoint: File that holds the training's state, written every `checkpoint_every` steps and at the end.
            checkpoint_every: Steps between checkpoints.
            resume: Go on from `checkpoint` where it exists; the result is that of an uninterrupted training if a seed is
                given, from which the trajectories are made again.

        Raises:
            ValueError: If an argument is out of range, the checkpoint is of another training, or the loss becomes NaN.
        """
        settings = ImitationSettings.of(locals())
        check_checkpoint_arguments(checkpoint, checkpoint_every, resume)
        description = self._description(settings)
        if self._tracker is not None:
            self._tracker.log_params(description)
        begin = time.perf_counter()
        with seeded(settings.seed, self.device):
            trajectories = self._trajectories(settings)
            if self._build:
                self.student = ExperimenterTransformer(self.stream.covariate_dim)
            self._build = False
            student = self.student.to(self.device).train()
            optimizer = torch.optim.Adam(student.parameters(), lr=settings.learning_rate)
            start = self._restore(checkpoint, description, optimizer) if resume else 0
            show = self._show_progress_bars
            steps = Steps(settings.num_steps, "training student", start, settings.max_seconds, begin, show)
            for step, done in steps:
                loss = self._step(trajectories, settings, optimizer, done)
                self.num_steps = step + 1
                if steps.every(20):
                    self._report(steps, step, float(loss), settings.learning_rate_at(done))
                if checkpoint is not None and steps.every(checkpoint_every):
                    self._keep(checkpoint, description, optimizer)
        return student.eval()

    # ---- pieces of a training

    @torch.no_grad()
    def _trajectories(self, settings: ImitationSettings) -> tuple[Tensor, Tensor, Tensor]:
        """Histories (N, T, d + 3) and the teacher's means and log variances (N, T, 2) before each unit."""
        parts = []
        for first in range(0, settings.num_episodes, 500):
            problems = self.stream.sample(min(500, settings.num_episodes - first))
            rollout = assign_stream(problems, self.teacher, settings.num_units, with_predictions=True)
            parts.append((rollout.history, rollout.mean, rollout.log_variance))
        history, mean, log_variance = (torch.cat(part).float().to(self.device) for part in zip(*parts, strict=True))
        return history, mean, log_variance

    def _step(
        self,
        trajectories: tuple[Tensor, Tensor, Tensor],
        settings: ImitationSettings,
        optimizer: torch.optim.Optimizer,
        done: float,
    ) -> Tensor:
        length = settings.length_at(done)
        rows = torch.randint(settings.num_episodes, (settings.batch_size,))
        places = torch.randperm(length)[: settings.units_per_episode]
        history, mean, log_variance = (part[rows.to(self.device), :length] for part in trajectories)
        said = self.student.along(history, places)
        chosen = places.to(self.device)
        loss = imitation_loss(said, mean[:, chosen], log_variance[:, chosen], settings.propensity_weight)
        if not bool(torch.isfinite(loss)):
            raise ValueError(
                f"the loss became {float(loss.detach())} at step {self.num_steps}: lower the learning rate."
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), settings.largest_norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(done)
        optimizer.step()
        return loss.detach()

    def _report(self, steps: Steps, step: int, loss: float, rate: float) -> None:
        self.losses.append(loss)
        steps.say("loss", self.losses)
        if self._tracker is not None:
            self._tracker.log_metrics({"imitation_loss": loss, "learning_rate": rate}, step=step)

    # ---- checkpoints

    def _description(self, settings: ImitationSettings) -> dict[str, Any]:
        who = {"teacher": self.teacher, "student": self.student}
        names = {name: f"{type(policy).__name__} {policy.config}" for name, policy in who.items()}
        return {**names, "smoothness": list(self.stream.smoothness), **settings.as_plain_data()}

    def _keep(self, path: str | Path, description: dict, optimizer: torch.optim.Optimizer) -> None:
        state = {"step": self.num_steps, "weights": self.student.state_dict(), "losses": self.losses}
        state = {**state, "optimizer": optimizer.state_dict()}
        write_checkpoint(path, _KIND, description, state, self.device)

    def _restore(self, path: str | Path | None, description: dict, optimizer: torch.optim.Optimizer) -> int:
        content = read_checkpoint(path, _KIND, description, {"step", "weights", "optimizer", "losses"})
        if content is None:
            return 0
        with rebuilding(str(path)):
            self.student.load_state_dict(content["weights"])
            optimizer.load_state_dict(content["optimizer"])
            restore_random_state(content, self.device)
            self.losses, self.num_steps = list(content["losses"]), check_count(content["step"], "step", 0)
        return self.num_steps


def imitation_loss(said: StreamPredictions, mean: Tensor, log_variance: Tensor, propensity_weight: float) -> Tensor:
    """The loss above, averaged over units, of what a student said, for a teacher's predictions (..., 2)."""
    if said.mean is None or said.log_variance is None:
        raise ValueError("a student must predict outcomes.")
    gap = said.log_variance - log_variance
    squares = (mean - said.mean).square() * (-said.log_variance).exp()
    divergence = 0.5 * (gap + (-gap).exp() - 1 + squares).sum(-1)
    scale = (0.5 * log_variance).exp().sum(-1).square()
    student, teacher = (neyman_propensity(part, 1e-3) for part in (said.log_variance, log_variance))
    regret = scale / scale.mean() * (student - teacher).square() / (student * (1 - student))
    return (divergence + propensity_weight * regret).mean()
