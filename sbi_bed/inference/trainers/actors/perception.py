r"""Train a `LearnedPerception`: beliefs from simulations of state and measurement.

With x_s the state's coordinate, the loss is −E log N(x_s; μ_p(m, σ, σ_0, μ_0), σ_p(m, σ, σ_0, μ_0)²), over parameters that
are uniform on the perception's ranges, states of the prior, and measurements of the states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ....neural_nets.learned_perception import LearnedPerception
from ..by_steps import StepTrainer
from ..settings import StepSettings

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["PerceptionTrainer"]


class PerceptionTrainer(StepTrainer):
    """Trains a `LearnedPerception`, in place.

    Args:
        perception: The perception.
        tracker: An sbi `Tracker`; nothing is written if None.
        show_progress_bars: Whether to show progress with the loss.

    Attributes:
        perception: The perception.

    Raises:
        TypeError: If `perception` is not a `LearnedPerception`.

    Example:
        >>> import torch
        >>> from sbi_bed.neural_nets import LearnedPerception
        >>> def uniform_state(sigma_0, mu_0):
        ...     return mu_0 * torch.exp(sigma_0 * (2 * torch.rand_like(sigma_0) - 1))
        >>> def measure(state, sigma):
        ...     return state * torch.exp(sigma * torch.randn_like(state))
        >>> trainer = PerceptionTrainer(LearnedPerception(uniform_state, measure), show_progress_bars=False)
        >>> perception = trainer.train(num_steps=20, seed=0)
        >>> bool(perception.belief(torch.tensor(2.0), 0.2, 0.3, 1.5).spread < 0.3)
        True
    """

    label = "training perception"

    def __init__(self, perception: LearnedPerception, tracker: Tracker | None = None, show_progress_bars: bool = True):
        if not isinstance(perception, LearnedPerception):
            raise TypeError(f"perception must be a LearnedPerception, got {perception!r}.")
        super().__init__("cpu", tracker, show_progress_bars)
        self.perception = perception

    def train(
        self,
        num_steps: int = 3000,
        batch_size: int = 512,
        learning_rate: float = 3e-3,
        *,
        seed: int | None = None,
        clip_max_norm: float | None = None,
        **settings: Any,
    ) -> LearnedPerception:
        """Learn beliefs from simulations; returns the perception.

        Args:
            num_steps: Steps of Adam.
            batch_size: Simulations in each.
            learning_rate: First learning rate; it falls to `final_learning_rate` times that along a cosine.
            seed: Seed of the whole training; the global generator if None.
            clip_max_norm: Largest norm of gradients; None for no limit.
            **settings: `final_learning_rate` (0.01), `max_seconds`, `num_shards`, `checkpoint`, `checkpoint_every` (500) and
                `resume`, as for every trainer; see `sbi_bed.inference.StepSettings`.

        Raises:
            TypeError: If a keyword is no setting.
            ValueError: If an argument is out of range, the checkpoint is of another training, or a simulated state or
                measurement is not in the space of states.
        """
        arguments = {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        self._train(StepSettings.of({**arguments, "clip_max_norm": clip_max_norm, **settings}))
        self.perception.fitted = True
        return self.perception

    # ---- what the loop asks

    def _nets(self) -> dict[str, nn.Module]:
        return {"perception": self.perception}

    def _description(self) -> dict[str, Any]:
        return {"perception": self.perception.describe()}

    def _loss(self, num: int, done: float) -> tuple[Tensor, Tensor]:
        loss = -self.perception.simulated_log_prob(num).mean()
        return loss, loss.detach()
