r"""Expected information gain about which of several models is true, with all parameters unknown.

With J models, the gain about the index m is I(M; h) = E[ log p(m_0 | h) − log p(m_0) ], m_0 the model that made h. Any
distribution q(m | h) in place of the posterior makes that smaller (Barber and Agakov 2003). Here

    q(m | h) = p(m) p̂(h | m) / Σ_j p(j) p̂(h | j),    p̂(h | m) = 1/L Σ_{l=1..L} p(h | θ_l, m),   θ_l ~ p(θ | m),

which is a distribution over models for any contrastive samples that do not depend on h. So

    E[ log q(m_0 | h) − log p(m_0) ] ≤ I(M; h)   for every L, and = for L → ∞,

and the left side, minus the entropy of p(m), is the expected log probability that an analyst with these samples gives to
the model that is true.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..simulators.experiments import Batch, Experiments
from ..simulators.models.model_mixture import ModelMixture
from ..simulators.rollout import Rollout
from ..utils.checks import check_choice, check_count
from .base import Bound
from .contrastive import log_sum_likelihood
from .losses import Baseline, log_prob_of_drawn, score_function_surrogate

__all__ = ["ModelPCE", "gain_about_model", "log_model_probs", "model_gain_loss", "sample_of_each_model"]


def sample_of_each_model(mixture: ModelMixture, num: int) -> list[Tensor]:
    """Parameters of each model from its own prior, J tensors (num, P_j)."""
    return [simulator.prior.sample((num,)) for simulator in mixture.simulators]


def log_model_probs(
    mixture: ModelMixture,
    designs: Tensor,
    outcomes: Tensor,
    contrastive: list[Tensor],
    *,
    every_trial: bool = False,
    compile: bool = False,
) -> Tensor:
    """log q(m | h), shape (B, J), or (T, B, J) after each trial; differentiable in designs and outcomes.

    Args:
        mixture: The models.
        designs: Shape (B, T, D).
        outcomes: Shape (B, T, O).
        contrastive: Parameters of each model from its prior, J tensors (L_j, P_j).
        every_trial: Whether to return the probabilities after each trial.
        compile: As for `log_sum_likelihood`.

    Example:
        >>> from sbi_bed.simulators import ExponentialDiscounting, HyperbolicDiscounting
        >>> mixture = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()], model_prior=[0.7, 0.3])
        >>> designs, outcomes = torch.tensor([[[50.0, 30.0], [50.0, 300.0]]]), torch.tensor([[[1.0], [0.0]]])
        >>> log_probs = log_model_probs(mixture, designs, outcomes, sample_of_each_model(mixture, 1000))
        >>> bool(torch.isclose(log_probs.exp().sum(), torch.tensor(1.0)))
        True
    """
    evidences = [
        log_sum_likelihood(simulator, theta, designs, outcomes, every_trial=every_trial, compile=compile)
        - math.log(len(theta))
        for simulator, theta in zip(mixture.simulators, contrastive, strict=True)
    ]
    evidence = torch.stack(evidences, dim=-1)
    return (evidence + mixture.log_model_prior.to(evidence)).log_softmax(-1)


def model_gain_loss(
    mixture: ModelMixture,
    theta: Tensor,
    trials: Rollout,
    contrastive: list[Tensor],
    baseline: Baseline = "prefix",
    *,
    compile: bool = False,
) -> tuple[Tensor, Tensor]:
    """Loss whose gradient is that of −(gain about the model), pathwise or by the score function as outcomes need.

    Args:
        mixture: The models.
        theta: Index and parameters that the trials were simulated from, (B, 1 + P).
        trials: Designs (B, T, D) and outcomes (B, T, O), attached to the policy's weights.
        contrastive: Parameters of each model from its prior, J tensors (L_j, P_j).
        baseline: As for `score_function_loss`.
        compile: As for `log_sum_likelihood`.

    Returns:
        The loss, a scalar, and the terms (B,) whose mean is the lower bound in nats, detached.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import ExponentialDiscounting, HyperbolicDiscounting, rollout
        >>> mixture = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()])
        >>> theta = mixture.prior.sample((64,))
        >>> trials = rollout(mixture, RandomPolicy(mixture), theta, 5)
        >>> loss, terms = model_gain_loss(mixture, theta, trials, sample_of_each_model(mixture, 200))
        >>> bool((terms <= math.log(2)).all())  # of two models that are equally probable before
        True
    """
    index = mixture.model_index(theta)
    if mixture.pathwise:
        terms = gain_about_model(mixture, log_model_probs(mixture, *trials, contrastive, compile=compile), index)
        return -terms.mean(), terms.detach()
    log_probs = log_model_probs(mixture, *trials, contrastive, every_trial=True, compile=compile)
    bounds = gain_about_model(mixture, log_probs, index).transpose(0, 1)
    scored = log_prob_of_drawn(mixture, theta, trials)
    return score_function_surrogate(bounds, scored, baseline), bounds[:, -1].detach()


def gain_about_model(mixture: ModelMixture, log_probs: Tensor, index: Tensor) -> Tensor:
    """log q(m_0 | h) − log p(m_0), (..., B), of probabilities (..., B, J) and the models (B,) that made the histories."""
    own = log_probs.gather(-1, index.expand(log_probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return own - mixture.log_model_prior.to(own)[index]


class ModelPCE(Bound):
    """Contrastive bound on the gain about which model of a `ModelMixture` is true, with all parameters unknown.

    Train from scratch, with several starts (`DAD.train(num_starts=4)`). Do not start from a policy that was trained about
    theta and refine it with a few small steps: its designs can tell less about the model than random ones, and are hard to
    leave. With hyperbolic and exponential discounting and 6 trials, such a policy gained .01 to .02 nats and random designs
    .06. Of 48 default policies, nine told nothing about the model (.01 nats) after 20 steps at 1e-3, and hardly leave; the
    best of four had a bound of .31 to .57 nats after 150 more steps, for 12 seeds. A `DeepSetsPolicy` needs more steps (.01
    after 100 at 3e-3, .57 after 400): it starts with nearly the same design in every trial.

    Args:
        num_contrastive: Contrastive samples, shared out among the models.
        baseline: Control variate where outcomes are discrete; see `score_function_loss`.
        max_design_gradient: As for `Bound`.
        compile: As for `log_sum_likelihood`.

    Attributes:
        num_contrastive: As above.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from sbi_bed.inference import DAD
        >>> from sbi_bed.simulators import ExponentialDiscounting, HyperbolicDiscounting
        >>> mixture = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()])
        >>> trainer = DAD(mixture, 2, bound=ModelPCE(16), show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, seed=0)
    """

    def __init__(
        self,
        num_contrastive: int = 1023,
        baseline: Baseline = "prefix",
        max_design_gradient: float | None = 1.0,
        compile: bool = False,
    ):
        check_choice(baseline, "baseline", ("prefix", "mean", "none"))
        super().__init__(max_design_gradient, baseline=baseline, compile=bool(compile))
        self.num_contrastive = check_count(num_contrastive, "num_contrastive")
        self._options = {"baseline": baseline, "compile": bool(compile)}

    def check(self, experiments: Experiments) -> None:
        """Check that there are models to compare, and that whole experiments are planned.

        Raises:
            ValueError: If not.
        """
        mixture = experiments.simulator
        if not isinstance(mixture, ModelMixture) or not mixture.has_likelihood:
            raise ValueError(f"ModelPCE needs a ModelMixture of models with a log_likelihood, got {mixture!r}.")
        if experiments.has_own_prior or experiments.history is not None:
            raise ValueError("ModelPCE plans whole experiments: it takes no prior and no history.")

    def training_loss(self, batch: Batch, experiments: Experiments) -> tuple[Tensor, Tensor]:
        """As for `model_gain_loss`."""
        mixture: ModelMixture = experiments.simulator  # pyright: ignore[reportAssignmentType]
        num = max(1, self.num_contrastive // len(mixture.simulators))
        contrastive = [draws.to(batch.theta) for draws in sample_of_each_model(mixture, num)]
        return model_gain_loss(mixture, batch.theta, batch.trials, contrastive, **self._options)
