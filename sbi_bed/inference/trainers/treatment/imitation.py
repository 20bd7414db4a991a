r"""Training by imitation: a net learns from a teacher's beliefs to assign treatments in context.

The teacher assigns units in many problems of a stream. Before each unit it predicts the outcome in both arms, N(m_a, v_a).
The student learns to predict the same from the history alone. Its loss at a unit is

    Σ_a KL(N(m_a, v_a) ‖ N(m̂_a, v̂_a)) + λ (√v_1 + √v_0)² (ê − e)² / (ê (1 − ê)) / c,

The second part is what the student's propensity ê loses against the teacher's e (`simulators/treatment/problem.py`); c is
the mean of (√v_1 + √v_0)² over the batch. The teacher's trajectories are made once. Each step takes some of them and some
of their units; the trajectories grow to their full length in the first half of the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....policies.treatment.base import StreamPredictions, TreatmentPolicy, neyman_propensity
from ....policies.treatment.experimenters import ExperimenterTransformer
from ....simulators.treatment.stream import TreatmentStream, assign_stream
from ....utils.checks import check_count
from ..by_steps import StepTrainer
from ..settings import StepSettings

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["ImitationSettings", "ImitationTrainer"]

_GROWING = 0.5  # share of a training in which streams grow to their full length
_FIRST_LENGTH = 40
_LARGEST_BATCH = 500  # of trajectories that are made side by side


@dataclass(frozen=True, kw_only=True)
class ImitationSettings(StepSettings):
    """Settings of `ImitationTrainer.train`; see there.

    Raises:
        ValueError: If one is out of range.
    """

    num_episodes: int
    num_units: int
    units_per_episode: int
    propensity_weight: float

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_episodes", "num_units", "units_per_episode"):
            self._set(name, check_count(getattr(self, name), name))
        if not self.propensity_weight >= 0:
            raise ValueError(f"propensity_weight must not be negative, got {self.propensity_weight}.")
        self._set("propensity_weight", float(self.propensity_weight))

    def length_at(self, done: float) -> int:
        """Number of units of each trajectory once a share `done` of the training is over."""
        first = min(_FIRST_LENGTH, self.num_units)
        return min(self.num_units, first + int((self.num_units - first) * done / _GROWING))


class ImitationTrainer(StepTrainer):
    """Trains a net to assign treatments as a teacher does.

    Args:
        stream: Problems to train on.
        teacher: A policy that predicts outcomes, in most cases a `NeymanTeacher` of the stream's smoothness.
        student: Net to train, in place. If None, an `ExperimenterTransformer` is built under the seed of the training.
        device: Where to train.
        tracker: An sbi `Tracker` for the loss and learning rate; nothing is written if None.
        show_progress_bars: Whether to show progress with the current loss.

    Attributes:
        stream: The problems.
        teacher: The teacher.
        student: The student.
        losses: Training loss at every twentieth step and at the last.

    Raises:
        TypeError: If teacher or student are not `TreatmentPolicy`s that predict outcomes.
        ValueError: If covariates disagree, there are more than two arms, or the student has nothing to train.

    Example:
        >>> from sbi_bed.policies import NeymanTeacher
        >>> stream, teacher = TreatmentStream(smoothness=1.5), NeymanTeacher(1, smoothness=1.5)
        >>> trainer = ImitationTrainer(stream, teacher, show_progress_bars=False)
        >>> student = trainer.train(num_steps=2, num_episodes=8, num_units=30, seed=0)
    """

    label, metric = "training student", "imitation_loss"
    advice_about_nan = "lower the learning rate"

    def __init__(
        self,
        stream: TreatmentStream,
        teacher: TreatmentPolicy,
        student: TreatmentPolicy | None = None,
        device: str | torch.device = "cpu",
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
    ):
        super().__init__(device, tracker, show_progress_bars)
        for name, policy in (("teacher", teacher), ("student", student)):
            if policy is None and name == "student":
                continue
            if not (isinstance(policy, TreatmentPolicy) and policy.has_predictions):
                raise TypeError(f"the {name} must be a TreatmentPolicy that predicts outcomes, got {policy!r}.")
            if policy.covariate_dim != stream.covariate_dim:
                raise ValueError(
                    f"the stream has {stream.covariate_dim} covariates, the {name} was built for {policy.covariate_dim}."
                )
            if policy.num_arms != 2:
                raise ValueError(f"students learn to assign two arms, the {name} was built for {policy.num_arms}.")
        if student is not None and not any(p.requires_grad for p in student.parameters()):
            raise ValueError(f"{type(student).__name__} has nothing to train.")
        self.stream, self.teacher, self._has_to_build = stream, teacher, student is None
        self.student: TreatmentPolicy = ExperimenterTransformer(stream.covariate_dim) if student is None else student

    @property
    def losses(self) -> list[float]:
        """Training loss at every twentieth step and at the last."""
        return self.reports

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
        **settings: Any,
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
            **settings: `final_learning_rate` (0.01), `clip_max_norm` (1.0), `max_seconds`, `num_shards`, `checkpoint`,
                `checkpoint_every` (500) and `resume`, as for every trainer; see `sbi_bed.inference.StepSettings`. The
                teacher's trajectories count for `max_seconds`; a resumed training makes them again.

        Raises:
            TypeError: If a keyword is no setting.
            ValueError: If an argument is out of range, the checkpoint is of another training, or the loss becomes NaN.
        """
        arguments = {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        sizes = {"num_episodes": num_episodes, "num_units": num_units, "units_per_episode": units_per_episode}
        plan = ImitationSettings.of({**arguments, **sizes, "propensity_weight": propensity_weight, **settings})
        self._plan = plan
        self._train(plan)
        return self.student

    # ---- what the loop asks

    def _nets(self) -> dict[str, nn.Module]:
        return {"student": self.student}

    def _description(self) -> dict[str, Any]:
        who = {"teacher": self.teacher, "student": self.student}
        names = {name: f"{type(policy).__name__} {policy.config}" for name, policy in who.items()}
        return {**names, "smoothness": list(self.stream.smoothness)}

    @torch.no_grad()
    def _build(self, settings: StepSettings) -> None:
        """The teacher's histories (N, T, d + 3), and its means and log variances (N, T, 2) before each unit."""
        num_units, parts = self._plan.num_units, []
        for first in range(0, self._plan.num_episodes, _LARGEST_BATCH):
            problems = self.stream.sample(min(_LARGEST_BATCH, self._plan.num_episodes - first))
            rollout = assign_stream(problems, self.teacher, num_units, with_predictions=True)
            parts.append((rollout.history, rollout.mean, rollout.log_variance))
        self._trajectories = [torch.cat(part).float().to(self.device) for part in zip(*parts, strict=True)]
        if self._has_to_build:
            self.student, self._has_to_build = ExperimenterTransformer(self.stream.covariate_dim), False
        self.student.to(self.device)

    def _loss(self, num: int, done: float) -> tuple[Tensor, Tensor]:
        plan, length = self._plan, self._plan.length_at(done)
        rows = torch.randint(plan.num_episodes, (num,))
        places = torch.randperm(length)[: plan.units_per_episode]
        history, mean, log_variance = (part[rows.to(self.device), :length] for part in self._trajectories)
        said, chosen = self.student.along(history, places), places.to(self.device)
        loss = imitation_loss(said, mean[:, chosen], log_variance[:, chosen], plan.propensity_weight)
        # What is said of the first units may depend on no weight: the gradient is 0 then, not absent.
        nothing = sum(0 * weight.sum() for weight in self.student.parameters())
        return loss + nothing, loss.detach()


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
