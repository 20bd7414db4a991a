"""How well a policy's experiments tell models apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...objectives.bounds import stderr_over_blocks
from ...objectives.model_gain import gain_about_model, log_model_probs, sample_of_each_model
from ...simulators.models.model_mixture import ModelMixture
from ...simulators.rollout import rollout
from ...utils.checks import check_count
from ...utils.seeding import seeded

__all__ = ["ModelInformationGain", "model_information_gain"]

_NUM_BLOCKS = 32


@dataclass(frozen=True)
class ModelInformationGain:
    """What experiments tell about which model holds.

    Attributes:
        lower: Lower bound on the gain about the model index, nats; at most the entropy of the prior over models.
        lower_stderr: Its standard error, over blocks of rollouts that share contrastive samples.
        log_prob: Mean log probability given to the model that is true.
        accuracy: Share of experiments after which the true model is the most probable one.
        num_contrastive: Draws behind each model's evidence.
        log_probs: log q(m | h) of each experiment, (num_rollouts, J).
        model_index: The true model of each, (num_rollouts,).
    """

    lower: float
    lower_stderr: float
    log_prob: float
    accuracy: float
    num_contrastive: int
    log_probs: Tensor
    model_index: Tensor

    def __str__(self) -> str:
        return (
            f"{self.lower:.3f} ± {self.lower_stderr:.3f} nats about the model, log probability of the true one "
            f"{self.log_prob:.3f}, accuracy {self.accuracy:.1%} ({len(self.model_index)} experiments)"
        )


@torch.no_grad()
def model_information_gain(
    mixture: ModelMixture,
    policy: Any,
    horizon: int,
    num_rollouts: int = 2000,
    num_contrastive: int = 10_000,
    *,
    seed: int | None = None,
) -> ModelInformationGain:
    """Simulate experiments under a policy, and see how well they tell the models apart.

    Args:
        mixture: The models and their prior.
        policy: Policy, or any callable history -> design.
        horizon: Number T of trials.
        num_rollouts: Simulated experiments.
        num_contrastive: Prior draws behind each model's evidence p(h | m).
        seed: Seed; the global generator if None.

    Raises:
        TypeError: If `mixture` is not a `ModelMixture`.
        ValueError: If a model has no likelihood, or a number is out of range.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import ExponentialDiscounting, HyperbolicDiscounting
        >>> mixture = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()])
        >>> gain = model_information_gain(mixture, RandomPolicy(mixture), 3, 64, 200, seed=0)
        >>> gain.lower < 0.694  # log 2
        True
    """
    if not isinstance(mixture, ModelMixture):
        raise TypeError(f"model_information_gain needs a ModelMixture, got {type(mixture).__name__}.")
    if not mixture.has_likelihood:
        raise ValueError("model_information_gain needs models with a log_likelihood.")
    num_rollouts = check_count(num_rollouts, "num_rollouts", 2)
    num_contrastive, horizon = check_count(num_contrastive, "num_contrastive"), check_count(horizon, "horizon")
    with seeded(seed):
        theta = mixture.prior.sample((num_rollouts,))
        designs, outcomes = rollout(mixture, policy, theta, horizon)
        blocks = torch.arange(num_rollouts).tensor_split(min(_NUM_BLOCKS, num_rollouts))
        log_probs = torch.cat(
            [
                log_model_probs(mixture, designs[b], outcomes[b], sample_of_each_model(mixture, num_contrastive))
                for b in blocks
            ]
        )
    index = mixture.model_index(theta)
    terms = gain_about_model(mixture, log_probs, index)
    log_prob = (terms + mixture.log_model_prior.to(terms)[index]).mean()
    accuracy = (log_probs.argmax(-1) == index).double().mean()
    return ModelInformationGain(
        float(terms.mean()),
        stderr_over_blocks(terms, blocks),
        float(log_prob),
        float(accuracy),
        num_contrastive,
        log_probs,
        index,
    )
