r"""Train a net to act optimally under any cost, from the expected cost alone.

In random situations (belief, σ_r, cost parameters) the net's action is moved by δ to both sides, δ = τ/4, and the expected
costs L of the five actions are computed on lattices of states and responses that are shifted at random in every step
(`sbi_bed.simulators.actors.expected_cost`). With L_k at offset kδ,

    L' ≈ [8 (L_1 − L_{−1}) − (L_2 − L_{−2})] / 12δ,   L'' ≈ (L_2 + L_{−2} − 2 L_0) / 4δ²,

and the action moves down the gradient of L / |L''|. The reference |L''| is not differentiated. It makes large and small
stimuli, precise and vague beliefs count alike: relative errors of actions are minimised. It does not move the minimum. The
cost itself is not differentiated either, so it may have kinks and jumps.

After arXiv 2409.03710 (neural amortised Bayesian actors), which samples states and responses and differentiates the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....neural_nets.actor import NeuralActor
from ....neural_nets.actor_errors import ActorErrors, actor_errors
from ....neural_nets.learned_perception import LearnedPerception
from ....simulators.actors.cost import ActorCost
from ....simulators.actors.cost_checks import check_cost, check_symmetries
from ....simulators.actors.expected_cost import expected_cost
from ....simulators.actors.optimal_actions import check_pair
from ....simulators.actors.perception import Belief, Perception
from ....simulators.actors.situations import Situations, draw_situations
from ....utils.checks import check_count
from ..by_steps import StepTrainer
from ..settings import StepSettings
from .perception import PerceptionTrainer

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["ActorTrainer"]

_STEP = 0.25  # δ in units of τ
_LARGEST_STEP = 1.0  # of an action, in coordinates


@dataclass(frozen=True, kw_only=True)
class ActorSettings(StepSettings):
    """Settings of `ActorTrainer.train`; see there.

    Raises:
        ValueError: If one is out of range.
    """

    num_nodes: int
    final_learning_rate: float = 0.005
    checkpoint_every: int = 1000

    def __post_init__(self):
        super().__post_init__()
        self._set("batch_size", check_count(self.batch_size, "batch_size", 2))
        self._set("num_nodes", check_count(self.num_nodes, "num_nodes", 4))


class ActorTrainer(StepTrainer):
    """Trains a `NeuralActor` for a cost.

    Args:
        cost: What responses cost: a cost of the package, or your own (`ActorCost`).
        perception: How stimuli are perceived and responses made, and ranges to train in; `LogNormalPerception()` if None.
            A `LearnedPerception` that is not trained yet is trained first, by `PerceptionTrainer` under the same seed.
        hidden_dim: Width of the net.
        num_layers: Its hidden layers.
        device: Where to train.
        tracker: An sbi `Tracker`; nothing is written if None.
        show_progress_bars: Whether to show progress with the mean distance to the optimum, as the gradient has it.

    Attributes:
        actor: The net.
        errors: How far its actions are from optimal ones, measured after training (`ActorErrors`), or None.
        distances: Mean of |L'/L''| at every hundredth step and at the last.

    Raises:
        TypeError: If `cost` is not an `ActorCost`, or `perception` not a `Perception`.
        ValueError: If their dimensions differ, the expected cost is infinite or has no minimum, or the cost lacks a
            symmetry that it claims.

    Example:
        >>> from sbi_bed.simulators import AbsoluteCost
        >>> trainer = ActorTrainer(AbsoluteCost(), show_progress_bars=False)
        >>> actor = trainer.train(num_steps=5, seed=0, num_validation=10)
        >>> actor(torch.tensor([1.0, 2.0]), sigma=0.2, sigma_0=0.2, mu_0=1.5, sigma_r=0.1).shape
        torch.Size([2])
    """

    label, metric, shown_metric, report_every, betas = "training actor", "distance", "mean |L'/L''|", 100, (0.9, 0.99)

    def __init__(
        self,
        cost: ActorCost,
        perception: Perception | None = None,
        hidden_dim: int = 64,
        num_layers: int = 3,
        device: str | torch.device = "cpu",
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
    ):
        super().__init__(device, tracker, show_progress_bars)
        self.cost, self.perception = check_pair(cost, perception)
        check_cost(self.cost, self.perception)
        check_symmetries(self.cost)
        if isinstance(self.perception, LearnedPerception) and self.device.type != "cpu":
            raise ValueError(f"an actor on learned beliefs trains on the CPU, got device {self.device}.")
        self._size = {"hidden_dim": hidden_dim, "num_layers": num_layers}
        self.actor: NeuralActor | None = None
        self.errors: ActorErrors | None = None

    @property
    def distances(self) -> list[float]:
        """Mean of |L'/L''| at every hundredth step and at the last."""
        return self.reports

    def train(
        self,
        num_steps: int = 5000,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        *,
        seed: int | None = None,
        num_nodes: int | None = None,
        num_validation: int | None = None,
        **settings: Any,
    ) -> NeuralActor:
        """Train a new net, then measure its errors; returns it in evaluation mode.

        Args:
            num_steps: Steps of Adam.
            batch_size: Situations in each.
            learning_rate: First learning rate; it falls to `final_learning_rate` times that along a cosine.
            seed: Seed of the whole training; the global generator if None.
            num_nodes: Nodes along each axis of state and response; if None 13, or 6 where these are vectors.
            num_validation: Actions compared with optimal ones at the end; if None 1000, or 100 of vectors; 0 for none.
            **settings: `final_learning_rate` (0.005), `clip_max_norm` (1.0), `max_seconds`, `num_shards`, `checkpoint`,
                `checkpoint_every` (1000) and `resume`, as for every trainer; see `sbi_bed.inference.StepSettings`.

        Raises:
            TypeError: If a keyword is no setting.
            ValueError: If an argument is out of range, the checkpoint is of another training, or costs become NaN.
        """
        vectors = self.perception.action_dim > 1
        num_nodes = (6 if vectors else 13) if num_nodes is None else num_nodes
        num_validation = (100 if vectors else 1000) if num_validation is None else num_validation
        check_count(num_validation, "num_validation", 0)
        arguments = {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        plan = ActorSettings.of({**arguments, "num_nodes": num_nodes, **settings})
        self._num_nodes = plan.num_nodes
        self._train(plan)
        self.actor = self._net
        if num_validation:
            self.errors = actor_errors(self.actor, num_validation, seed=0 if plan.seed is None else plan.seed + 1)
            self.actor.errors = self.errors.as_plain_data()
        return self.actor

    # ---- what the loop asks

    def _nets(self) -> dict[str, nn.Module]:
        return {"actor": self._net}

    def _parameters(self, net: nn.Module) -> list[nn.Parameter]:
        return self._net.acting_parameters()

    def _description(self) -> dict[str, Any]:
        return {**self._size, "cost": self.cost.describe(), "perception": self.perception.describe()}

    def _build(self, settings: StepSettings) -> None:
        if isinstance(self.perception, LearnedPerception) and not self.perception.fitted:
            PerceptionTrainer(self.perception, show_progress_bars=self._show_progress_bars).train()
        self._net = NeuralActor(self.cost, self.perception, **self._size)
        belief, sigma_r, parameters = _parts(draw_situations(self.cost, self.perception, 5000, everywhere=True))
        self._net.fit_scale(belief, sigma_r, parameters)
        self._net.to(self.device)

    def _loss(self, num: int, done: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            situations = draw_situations(self.cost, self.perception, num, everywhere=True)
        belief, sigma_r, parameters = _parts(situations, self.device)
        offset = self._net.offset(belief, sigma_r, parameters)
        step = newton_step(self.cost, self.perception, belief, offset.detach(), sigma_r, parameters, self._num_nodes)
        if not bool(torch.isfinite(step).all()):
            raise ValueError(
                f"the expected cost of {self.cost.name} became NaN or infinite: look at its values where responses or "
                "states are extreme."
            )
        return (offset * step).sum(-1 if step.ndim > 1 else ()).mean(), step.abs().mean()


def _parts(situations: Situations, device: torch.device | str = "cpu") -> tuple[Belief, Tensor, dict[str, Tensor]]:
    belief = Belief(*(part.to(device) for part in situations.belief))
    parameters = {name: value.to(device) for name, value in situations.cost_parameters.items()}
    return belief, situations.person["sigma_r"].to(device), parameters


@torch.no_grad()
def newton_step(
    cost: ActorCost,
    perception: Perception,
    belief: Belief,
    offset: Tensor,
    sigma_r: Tensor,
    parameters: dict[str, Tensor],
    num_nodes: int,
) -> Tensor:
    """L'/|L''| at actions with these offsets (B,) or (B, D), along each axis, at most `_LARGEST_STEP`; random lattices."""
    dim = perception.action_dim
    tau = (belief.spread.square() + sigma_r.square()).sqrt()
    stencil = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).to(offset)
    if dim == 1:
        x_action = (belief.location + offset).unsqueeze(-1) + _STEP * tau.unsqueeze(-1) * stencil
    else:
        moves = torch.cat([stencil[:, None] * torch.eye(dim).to(offset)[axis] for axis in range(dim)])
        x_action = (belief.location + offset).unsqueeze(-2) + _STEP * tau[:, None, None] * moves
    shift = torch.rand(2, len(offset), dim).to(offset)
    costs = expected_cost(
        cost, perception, belief, x_action, sigma_r, parameters, num_nodes, (shift[0], shift[1])
    ).unflatten(-1, (dim, 5))
    below2, below, here, above, above2 = costs.unbind(-1)  # (B, D) each
    slope, bend = (8 * (above - below) - (above2 - below2)) / 12, (above2 + below2 - 2 * here) / 4
    delta = _STEP * tau.unsqueeze(-1)
    step = delta * slope / torch.maximum(bend.abs(), delta * slope.abs() / _LARGEST_STEP).clamp_min(1e-30)
    return step.squeeze(-1) if dim == 1 else step
