"""What a policy is trained to raise: a bound on the expected information gain of simulated experiments.

`DAD` simulates a batch of experiments under the policy and asks the bound for a loss. Bounds that evaluate the likelihood
are in `pce.py` and `model_gain.py`; those with a net inside, for simulators without a likelihood, in `critics.py` and
`sbi_bounds.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..simulators.experiments import Batch, Experiments, sampler_of
from ..utils.checks import check_count
from .bounds import estimate_bounds
from .losses import drawn_loss, log_prob_of_drawn

__all__ = ["Bound", "NeuralBound"]


class Bound(nn.Module):
    """A bound on the information gain of experiments. A subclass gives `training_loss`, and `check` if it has requirements.

    Args:
        max_design_gradient: Largest norm of the gradient that one history sends into one design, see
            `sbi_bed.inference.trainers.design.bounded_gradients`; None for no limit.
        **config: The subclass's other arguments, plain data. A training that resumes must have the same.

    Attributes:
        config: All arguments, as plain data.
        max_design_gradient: As above; infinite without a limit.
        num_contrastive: Contrastive samples of each history; None for bounds that have no such number.
        detach_outcomes: Whether simulated outcomes pass on no gradient; None for those that are not reparameterised.
        fitting_steps: Steps that a net inside the bound takes alone before each step of the policy.
        scores_choices: Whether `training_loss` takes in the gradient through `batch.log_choices`; where it does not, `DAD`
            adds it, with the batch's mean as control variate.
        unit: Unit of the bound.
        has_aim: Whether it is about something other than all of theta. `held_out` then judges any policy by that aim.
        lookahead: Arguments with which a `GreedyPolicy` has the same aim.

    Example:
        >>> import torch
        >>> from sbi_bed.inference import DAD
        >>> from sbi_bed.objectives import PCE
        >>> from sbi_bed.simulators import LocationFinding
        >>> class Scaled(PCE):  # the same policy is best, with gradients of another size
        ...     def training_loss(self, batch, experiments):
        ...         loss, terms = super().training_loss(batch, experiments)
        ...         return 2 * loss, terms
        >>> trainer = DAD(LocationFinding(), 2, bound=Scaled(num_contrastive=7), show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, seed=0)
    """

    num_contrastive: Any = None
    detach_outcomes: bool | None = None
    fitting_steps: int = 0
    scores_choices: bool = False
    unit: str = "nats"
    has_aim: bool = False
    lookahead: dict[str, Any]

    def __init__(self, max_design_gradient: float | None = None, **config: Any):
        super().__init__()
        if max_design_gradient is not None and not max_design_gradient > 0:
            raise ValueError(f"max_design_gradient must be positive, got {max_design_gradient}.")
        self.max_design_gradient = math.inf if max_design_gradient is None else float(max_design_gradient)
        self.lookahead = {}
        self.config: dict[str, Any] = {**config, "max_design_gradient": self.max_design_gradient}

    def check(self, experiments: Experiments) -> None:
        """Look at the experiments before training begins.

        Raises:
            ValueError: If the bound is not for such experiments.
        """

    def training_loss(self, batch: Batch, experiments: Experiments) -> tuple[Tensor, Tensor]:
        """Loss, a scalar whose gradient trains the policy, and the bound's terms (B,), detached, whose mean is in nats.

        Args:
            batch: Simulated experiments, attached to the policy's weights.
            experiments: Where they come from.
        """
        raise NotImplementedError

    @torch.no_grad()
    def held_out(self, experiments: Experiments, policy: Any, num: int, num_contrastive: int | None = None) -> Tensor:
        """What policies are compared by: terms (num,) of new experiments, whose mean is a lower bound.

        Args:
            experiments: What is simulated.
            policy: Policy, or any callable history -> design.
            num: Number of simulated experiments.
            num_contrastive: Contrastive samples of each, where there are such; as many if None.
        """
        return estimate_bounds(
            experiments.simulator,
            policy,
            experiments.num_trials,
            num,
            num_contrastive or num,
            sample_theta=sampler_of(experiments.prior),
            history=experiments.history,
        ).lower_samples


class NeuralBound(Bound):
    """A lower bound with a net inside, whose weights are trained to raise it; a subclass gives `forward`.

    Args:
        fitting_steps: Steps that the net takes alone, on new histories, before each step of policy and net together. They
            are cheap, since nothing is differentiated through designs.
        max_design_gradient: As for `Bound`; the net's own smoothness is a limit in most cases.

    Example:
        >>> import torch
        >>> from sbi_bed.inference import DAD
        >>> from sbi_bed.simulators import LocationFinding
        >>> class Linear(
        ...     NeuralBound
        ... ):  # Donsker and Varadhan's bound with a bilinear critic, on two trials in the plane
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Linear(8, 2)
        ...
        ...     def forward(self, theta, x):
        ...         scores = self.net(x.flatten(1)) @ theta.T
        ...         return scores.diagonal() - (scores.logsumexp((0, 1)) - 2 * math.log(len(theta)))
        >>> trainer = DAD(LocationFinding(), 2, bound=Linear(), show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, seed=0)
    """

    scores_choices = True

    def __init__(self, fitting_steps: int = 0, max_design_gradient: float | None = None):
        fitting_steps = check_count(fitting_steps, "fitting_steps", 0)
        super().__init__(max_design_gradient, fitting_steps=fitting_steps)
        self._scale = 1.0  # of the terms, so that the unit of a utility does not matter to the training
        self.fitting_steps = fitting_steps

    def check(self, experiments: Experiments) -> None:
        """Nothing: what a net reads is the histories."""

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """Terms (B,) of theta (B, P) and their histories (B, n, D + O + 1), whose mean is the bound in nats."""
        raise NotImplementedError

    @torch.no_grad()
    def held_out(self, experiments: Experiments, policy: Any, num: int, num_contrastive: int | None = None) -> Tensor:
        """Terms (num,) of new experiments, by the net."""
        batch, training = experiments.run(policy, num), self.training
        terms = self.eval()(batch.theta, experiments.histories(batch))
        self.train(training)
        return terms

    def training_loss(self, batch: Batch, experiments: Experiments) -> tuple[Tensor, Tensor]:
        """`loss` of the batch's histories; with the score-function gradient where outcomes are not reparameterised."""
        simulator, trials, scored = experiments.simulator, batch.trials, batch.log_choices
        loss, terms = self.loss(batch.theta, experiments.histories(batch))
        if simulator.has_likelihood and not simulator.pathwise and trials.designs.requires_grad:
            drawn = log_prob_of_drawn(simulator, batch.theta, trials)
            scored = drawn if scored is None else scored + drawn
        if scored is None:
            return loss, terms
        return loss + drawn_loss(terms, scored) / self._scale, terms

    def loss(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, a scalar whose gradient trains net and policy, and the terms (B,), detached."""
        terms = self(theta, x)
        return -terms.mean() / self._scale, terms.detach()

    def fitting_loss(self, theta: Tensor, x: Tensor) -> Tensor:
        """Loss of the net alone, on histories as they are."""
        return -self(theta, x).mean() / self._scale
