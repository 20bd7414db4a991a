r"""Deep adaptive design for every prior at once: contexts c ~ p(c), and in each the gain under the prior of that context.

    max_policy  E_c E_{θ_0 ~ p(θ|c), h} [ log p(h | θ_0) − log 1/(L+1) Σ_{l=0..L} p(h | θ_l) ],    θ_1, …, θ_L ~ p(θ | c).

Given c it is the bound of `objectives/contrastive.py`, so the mean is a bound on I(θ; h | c): contrastive samples are each
history's own, from the prior of its own context.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....objectives.losses import pathwise_loss, score_function_loss
from ....policies.design.bounded_gradients import BoundedGradients
from ....policies.sensitivity.context import ContextPolicy
from ....simulators.base import DesignSimulator
from ....simulators.rollout import rollout
from ....simulators.sensitivity.contexts import Contexts, prior_of_context
from ....simulators.sensitivity.power_scaled_prior import PowerScaledPrior
from ....simulators.sensitivity.simulate_with_context import sample_prior_in_contexts
from ....utils.checks import check_count, check_positive
from ....utils.seeding import seeded
from ..settings import cosine_decay
from ..steps import Steps

__all__ = ["ContextDAD"]


class ContextDAD:
    """Trains a policy that is told the context, such as the powers of the prior.

    Args:
        simulator: Experiment with a likelihood; its own prior is not used.
        prior: `PowerScaledPrior`, or an object with `condition(context)`, contexts (B, C) → distribution of batch (B,).
        horizon: Trials of an experiment.
        contexts: What contexts are drawn from; γ in [0.5, 2] if None, for a `PowerScaledPrior`.
        policy: What is trained; a new `ContextPolicy` if None.
        show_progress_bars: Whether to show progress with the bound.

    Attributes:
        policy: The policy, also while it trains.
        bounds: The training bound at every twentieth step, nats.

    Raises:
        TypeError: If there are no contexts, or the policy is no `ContextPolicy`.
        ValueError: If the simulator has no likelihood.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> trainer = ContextDAD(simulator, PowerScaledPrior(simulator.prior), horizon=3, show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, num_contrastive=7, seed=0)
        >>> policy.in_context([0.5, 2.0])(torch.zeros(0, 4)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        prior: Any,
        horizon: int,
        contexts: Contexts | None = None,
        policy: ContextPolicy | None = None,
        show_progress_bars: bool = True,
    ):
        if contexts is None and policy is None and isinstance(prior, PowerScaledPrior):
            contexts = Contexts.power_scaling(prior)
        if policy is None and not isinstance(contexts, Contexts):
            raise TypeError(f"contexts must be Contexts(...), which contexts are drawn from, got {contexts!r}.")
        if not (policy is None or isinstance(policy, ContextPolicy)):
            raise TypeError(f"policy must be a ContextPolicy, got {policy!r}.")
        if not simulator.has_likelihood:
            raise ValueError("ContextDAD needs a simulator with a log_likelihood.")
        self.simulator, self.prior, self.horizon = simulator, prior, check_count(horizon, "horizon")
        self._policy, self._contexts, self._show_progress_bars = policy, contexts, show_progress_bars
        self.bounds: list[float] = []

    @property
    def policy(self) -> ContextPolicy | None:
        """What is trained, once training has begun or where it was given."""
        return self._policy

    def train(
        self,
        num_steps: int = 5000,
        batch_size: int = 256,
        num_contrastive: int = 255,
        learning_rate: float = 1e-3,
        seed: int | None = None,
    ) -> ContextPolicy:
        """Train, on from the policy's present weights; the learning rate falls along a cosine.

        Args:
            num_steps: Steps of Adam.
            batch_size: Experiments simulated for each, each in a context of its own.
            num_contrastive: L, for each experiment; memory grows with `batch_size` times L times the horizon.
            learning_rate: At first.
            seed: Seed; the global generator if None.

        Raises:
            ValueError: If a number is out of range, or the gradient becomes NaN.
        """
        num_steps, batch_size = check_count(num_steps, "num_steps"), check_count(batch_size, "batch_size", 2)
        num_contrastive = check_count(num_contrastive, "num_contrastive")
        learning_rate = check_positive(learning_rate, "learning_rate")
        with seeded(seed):
            if self._policy is None:
                self._policy = ContextPolicy(self.simulator, self._contexts)  # pyright: ignore[reportArgumentType]
            policy = self._policy.train()
            optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
            steps = Steps(num_steps, "training policy in contexts", show=self._show_progress_bars)
            for step, done in steps:
                optimizer.param_groups[0]["lr"] = learning_rate * cosine_decay(done)
                loss, terms = self._loss(policy, batch_size, num_contrastive)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                if not torch.isfinite(norm):
                    raise ValueError(
                        "the gradient became NaN or infinite: check log_likelihood over all contexts' priors."
                    )
                optimizer.step()
                if step % 20 == 19:
                    self.bounds.append(float(terms.mean()))
                    steps.say("bound (nats)", self.bounds)
        return policy.eval()

    def _loss(self, policy: ContextPolicy, num: int, num_contrastive: int) -> tuple[Tensor, Tensor]:
        """Loss and terms of the bound of `num` experiments, each in a context of its own."""
        context = policy.contexts.sample((num,))
        theta = sample_prior_in_contexts(self.prior, context)
        contrastive = prior_of_context(self.prior, context).sample((num_contrastive,))
        bounded = BoundedGradients(policy.in_context(context), self.simulator.design_space, 1.0)
        trials = rollout(self.simulator, bounded, theta, self.horizon)
        loss_of = pathwise_loss if self.simulator.pathwise else score_function_loss
        return loss_of(self.simulator, theta, trials, contrastive)
