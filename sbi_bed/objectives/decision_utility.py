r"""The bound on what a decision after the experiment is worth, with a net that makes it.

    E[ u(θ, d(h)) ]  ≤  E[ max_a E[u(θ, a) | h] ],

for any decision rule d, and equal for the best. A net is trained with the policy (transformer neural decision processes
do so, Huang et al. 2024, arXiv 2411.02064). A continuous action it names, and climbs the left side with the policy. Of
finitely many actions it learns the expected utilities v_a(h) = E[u(θ, a) | h], by least squares, and takes the best. The
policy climbs the utility of a decision that is a little blurred, E[Σ_a π_a(h) u(θ, a)] with π = softmax(v / τ), where τ is
half of the mean lead of the best action. It is the truth that pays: max_a v_a(h) would reward designs for which v is wrong.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..neural_nets.embedding_nets.history import HistoryEmbedding
from ..simulators.base import DesignSimulator
from ..simulators.experiments import Experiments
from .base import NeuralBound
from .decision import Decision, estimate_utility

__all__ = ["DecisionUtility"]

_BLUR = 0.5
_FAR = 5.0  # free coordinates from which a net is pulled back from the ends of a bounded space


class DecisionUtility(NeuralBound):
    """The expected utility of a decision after the experiment, in the utility's own unit: what `DAD` then raises.

    Args:
        simulator: The experiment.
        decision: Its utility and actions.
        embedding_net: Histories (B, n, D + O + 1) → summaries (B, output_dim); a `HistoryEmbedding` if None.
        fitting_steps: As for `NeuralBound`; a policy learns little from a net that does not decide well yet.
        max_design_gradient: As for `Bound`, in standard deviations of the utility.

    Attributes:
        decision: As above.
        embedding_net: The summary that decisions are made from.
        head: From the summary to actions.

    Raises:
        TypeError, ValueError: If the utility returns something other than one finite number for each theta and action.

    Example:
        >>> from sbi_bed.inference import DAD
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> dig = Decision(lambda theta, place: -(theta - place).square().sum(-1), simulator.design_space)
        >>> trainer = DAD(simulator, 2, bound=DecisionUtility(simulator, dig), show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, seed=0)
        >>> trainer.bound.decide(torch.tensor([[0.0, 0.0, 0.5, 1.0]])).shape  # where to dig after one reading
        torch.Size([2])
    """

    unit = "utility"
    has_aim = True

    def __init__(
        self,
        simulator: DesignSimulator,
        decision: Decision,
        embedding_net: nn.Module | None = None,
        fitting_steps: int = 1,
        max_design_gradient: float | None = None,
    ):
        super().__init__(fitting_steps, max_design_gradient)
        if not isinstance(decision, Decision):
            raise TypeError(f"decision must be a Decision(utility, actions), got {decision!r}.")
        pilot = decision.check(simulator)
        ends = [decision.space.from_free(torch.full((decision.space.free_dim,), end)) for end in (100.0, 200.0)]
        self._saturates = torch.equal(*ends)
        self.decision, self.lookahead = decision, {"objective": "utility", "decision": decision}
        self._scale = max(float(pilot.std()), 1e-12)
        self.embedding_net: Any = HistoryEmbedding(simulator) if embedding_net is None else embedding_net
        self.head = nn.Linear(self.embedding_net.output_dim, decision.space.free_dim)

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """Utilities (B,) of the net's decisions after histories (B, n, D + O + 1) of theta (B, P)."""
        return self.decision.utility(theta, self.decision.space.from_free(self._free(x).to(theta)))

    def loss(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """−utility in standard deviations, whatever its unit; with the loss that the net learns expected utilities by."""
        if not self.decision.is_finite:
            free = self._free(x).to(theta)
            terms = self.decision.utility(theta, self.decision.space.from_free(free))
            # At the ends of a bounded space no gradient would lead a net back.
            beyond = (free.abs() - _FAR).clamp_min(0).square().mean() if self._saturates else 0.0
            return beyond - terms.mean() / self._scale, terms.detach()
        self.requires_grad_(False)
        expected = self._free(x)
        self.requires_grad_(True)
        with torch.no_grad():
            values = self.decision.values(theta)
            terms = values.gather(-1, expected.argmax(-1, keepdim=True)).squeeze(-1)
            blur = _BLUR * (expected.amax(-1) - expected.mean(-1)).mean().clamp_min(1e-6)
        blurred = ((expected / blur).softmax(-1) * values).sum(-1).mean() / self._scale
        return self.fitting_loss(theta, x.detach()) - blurred, terms

    def fitting_loss(self, theta: Tensor, x: Tensor) -> Tensor:
        """Loss of the net alone, on histories as they are."""
        if not self.decision.is_finite:
            return self.loss(theta, x)[0]
        return (self._free(x) - self.decision.values(theta) / self._scale).square().sum(-1).mean()

    def _free(self, x: Tensor) -> Tensor:
        """Actions in free coordinates (B, F): of finitely many, their expected utilities in standard deviations."""
        return self.head(self.embedding_net(x))

    @torch.no_grad()
    def decide(self, history: Tensor) -> Tensor:
        """The net's decision (..., A) after histories (..., n, D + O + 1)."""
        training = self.training
        free = self.eval()._free(history)
        self.train(training)
        return self.decision.space.from_free(free)

    def held_out(self, experiments: Experiments, policy: Any, num: int, num_contrastive: int | None = None) -> Tensor:
        """Utilities (num,) of decisions after new experiments: by weighted draws, or the net's without a likelihood."""
        if experiments.simulator.has_likelihood:
            return estimate_utility(experiments, policy, self.decision, num, num_contrastive or num)
        return super().held_out(experiments, policy, num)
