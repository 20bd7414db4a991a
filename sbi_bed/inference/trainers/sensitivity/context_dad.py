r"""Deep adaptive design for every prior at once: contexts c ~ p(c), and in each the gain under the prior of that context.

    max_policy  E_c E_{θ_0 ~ p(θ|c), h} [ log p(h | θ_0) − log 1/(L+1) Σ_{l=0..L} p(h | θ_l) ],    θ_1, …, θ_L ~ p(θ | c).

Given c it is the bound of `objectives/contrastive.py`, so the mean is a bound on I(θ; h | c). Each history has contrastive
samples of its own, from the prior of its own context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....objectives.base import Bound
from ....objectives.pce import PCE
from ....policies.sensitivity.context import ContextPolicy
from ....simulators.base import DesignSimulator
from ....simulators.experiments import Batch, Experiments
from ....simulators.rollout import rollout
from ....simulators.sensitivity.contexts import Contexts, prior_of_context
from ....simulators.sensitivity.power_scaled_prior import PowerScaledPrior
from ....simulators.sensitivity.simulate_with_context import sample_prior_in_contexts
from ..design.dad import DAD

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["ContextDAD"]


class ContextDAD(DAD):
    """Trains a policy that is told the context, such as the powers of the prior: a `DAD` that draws contexts.

    Args:
        simulator: Experiment with a likelihood; its own prior is not used.
        prior: `PowerScaledPrior`, or an object with `condition(context)`, contexts (B, C) → distribution of batch (B,).
        horizon: Number T of trials.
        contexts: What contexts are drawn from. If None those of the policy; without a policy γ in [0.5, 2], for a
            `PowerScaledPrior`.
        policy: `ContextPolicy` to train, in place; if None a new one, built when training starts, under its seed.
        show_progress_bars: Whether to show progress with the bound.
        device: Where to train.
        tracker: As for `DAD`.
        bound: A `PCE` with `proposal="prior"`; if None one with 255 contrastive samples. Memory grows with batch size times
            L times T, since each experiment has contrastive samples of its own.

    Attributes:
        policy: The policy.
        prior: As above.
        contexts: What contexts are drawn from.

    Raises:
        TypeError: If there are no contexts, the policy is not a `ContextPolicy`, or the bound not a `PCE`.
        ValueError: If the simulator has no likelihood, the policy was built for other contexts, or the bound has local
            proposals, which need one prior for all.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> trainer = ContextDAD(simulator, PowerScaledPrior(simulator.prior), horizon=3, show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, num_contrastive=7, seed=0)
        >>> policy.in_context([0.5, 2.0])(torch.zeros(0, 4)).shape
        torch.Size([2])
    """

    label = "training policy in contexts"

    def __init__(
        self,
        simulator: DesignSimulator,
        prior: Any,
        horizon: int,
        contexts: Contexts | None = None,
        policy: ContextPolicy | None = None,
        show_progress_bars: bool = True,
        *,
        device: str | torch.device = "cpu",
        tracker: Tracker | None = None,
        bound: Bound | None = None,
    ):
        if not (policy is None or isinstance(policy, ContextPolicy)):
            raise TypeError(f"policy must be a ContextPolicy, got {policy!r}.")
        if contexts is None and policy is not None:
            contexts = policy.contexts
        elif contexts is None and isinstance(prior, PowerScaledPrior):
            contexts = Contexts.power_scaling(prior)
        if not isinstance(contexts, Contexts):
            raise TypeError(f"contexts must be Contexts(...), which contexts are drawn from, got {contexts!r}.")
        if policy is not None and policy.contexts.description() != contexts.description():
            raise ValueError(
                f"the policy was built for {policy.contexts.description()}, contexts is {contexts.description()}: leave "
                "contexts out, or build a new ContextPolicy."
            )
        if not simulator.has_likelihood:
            raise ValueError("ContextDAD needs a simulator with a log_likelihood.")
        if not (bound is None or isinstance(bound, PCE)):
            raise TypeError(f"bound must be a PCE, got {bound!r}.")
        if bound is not None and bound.config["proposal"] != "prior":
            raise ValueError('proposal="local" needs one prior for all experiments; use PCE(proposal="prior").')
        self.prior, self.contexts = prior, contexts
        super().__init__(simulator, horizon, policy, device, tracker, show_progress_bars, bound=bound)

    def train(
        self,
        num_steps: int = 5000,
        batch_size: int = 256,
        num_contrastive: int | None = None,
        learning_rate: float = 1e-3,
        *,
        seed: int | None = None,
        **settings: Any,
    ) -> ContextPolicy:
        """As for `DAD`, each experiment of a batch in a context of its own; returns the policy, in evaluation mode."""
        policy = super().train(num_steps, batch_size, num_contrastive, learning_rate, seed=seed, **settings)
        return policy  # pyright: ignore[reportReturnType]

    def _description(self) -> dict[str, Any]:
        return {**super()._description(), "contexts": self.contexts.description()}

    def _new_policy(self) -> ContextPolicy:
        return ContextPolicy(self.simulator, self.contexts)

    def _new_bound(self) -> Bound:
        return PCE(num_contrastive=255)

    def _experiments(self, prior: Any, state: Tensor | None) -> Experiments:
        return _ContextExperiments(
            self.simulator, self.num_trials, device=self.device, prior_in_context=self.prior, contexts=self.contexts
        )


class _ContextExperiments(Experiments):
    """Experiments that each have a context of their own, and a θ from the prior of that context."""

    def __init__(self, *args: Any, prior_in_context: Any, contexts: Contexts, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._prior, self._contexts = prior_in_context, contexts

    def run(self, policy: Any, num: int, detach_outcomes: bool | None = None, num_trials: int | None = None) -> Batch:
        context = self._contexts.sample((num,))
        theta = sample_prior_in_contexts(self._prior, context).to(self.device)
        num_trials = self.num_trials if num_trials is None else num_trials
        here = policy.in_context(context.to(self.device))
        trials = rollout(self.simulator, here, theta, num_trials, detach_outcomes=detach_outcomes)
        return Batch(theta, trials, context)

    def sample_contrastive(self, batch: Batch, num: int) -> Tensor:
        return prior_of_context(self._prior, batch.context).sample((num,)).to(self.device)
