r"""Probabilities of models and Bayes factors from log-evidences, which may come from a classifier or from posteriors.

    log p(M_j | x) = ℓ_j + log π_j − log Σ_k exp(ℓ_k + log π_k),    log BF_ij = ℓ_i − ℓ_j,

for a prior π over models and ℓ_j = log p(x | M_j) up to a constant that the models share. All is kept in logs, in float64:
probabilities of 1 − 10^{−30} and Bayes factors of e^{±500} come out as such.

A classifier learns ℓ_i − ℓ_j from simulations of the models i and j. Where a third model wins by far, hardly any of these
look like x, and the Bayes factor between the two losing models is a guess: in one comparison it was off by 5 nats (root mean
square) where both had p < 10⁻⁴. So such a question gets a warning. What is known is a bound, p(M_j | x) < 0.001 for each of
them. Nothing bounds their ratio. Members of an ensemble share the error: ± 2 sd of three members held the exact factor of
none of 31 data sets with two losing models. A classifier of the two models alone has not seen such data either.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...simulators.models.model_family import as_log_prior
from ...utils.checks import check_count
from ...utils.warn_user import warn_user

__all__ = ["ModelProbabilities", "check_models", "losing_models", "warn_of_losing_models"]


_LOSING = 1e-3  # probability below which a classifier has seen too few simulations of a model near x


class ModelProbabilities:
    """Base of posteriors over models: `log_evidences` comes from a subclass, and all else follows from it.

    Attributes:
        from_classifier: Whether the log-evidences come from a classifier.
        num_models: Number J of models.
        model_prior: Prior probabilities (J,).

    Example:
        >>> class Known(ModelProbabilities):
        ...     num_models, model_prior = 2, torch.tensor([0.5, 0.5])
        ...
        ...     def log_evidences(self, x):
        ...         return x.double()
        >>> log_evidences = torch.tensor([[-10.0, -10.0], [-500.0, -10.0]])
        >>> Known().log_bayes_factor(log_evidences, 1, 0).tolist()
        [0.0, 490.0]
        >>> Known().probs(log_evidences, model_prior=[1.0, 3.0])[0]
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """

    from_classifier: bool = False
    num_models: int
    model_prior: Tensor

    def log_evidences(self, x: Tensor) -> Tensor:
        """log p(x | M_j) up to a constant for each x, (B, J), float64."""
        raise NotImplementedError

    def log_probs(self, x: Tensor, model_prior: Any = None) -> Tensor:
        """log p(M_j | x), (B, J), under the prior of training or another `model_prior` (J,)."""
        log_prior = as_log_prior(self.model_prior if model_prior is None else model_prior, self.num_models)
        evidences = self.log_evidences(x)
        return (evidences + log_prior.to(evidences)).log_softmax(-1)

    def probs(self, x: Tensor, model_prior: Any = None) -> Tensor:
        """p(M_j | x), (B, J), under the prior of training or another `model_prior` (J,)."""
        return self.log_probs(x, model_prior).exp()

    def log_bayes_factor(self, x: Tensor, i: int, j: int) -> Tensor:
        """log p(x | M_i) − log p(x | M_j), (B,), nats; no prior enters.

        Raises:
            TypeError: If i or j is not a whole number.
            ValueError: If i or j is no index of a model.

        Warns:
            RuntimeWarning: Of a classifier, where both models have less than 0.001 of the probability: then the number is a
                guess, and `PosteriorEvidence` is the route to take.
        """
        check_models(self.num_models, i=i, j=j)
        evidences = self.log_evidences(x)
        if self.from_classifier:
            warn_of_losing_models(evidences, i, j)
        return evidences[:, i] - evidences[:, j]

    def sample(self, sample_shape: Any, x: Tensor, model_prior: Any = None) -> Tensor:
        """Indices of models drawn from p(M | x), (*sample_shape, B), by torch's global generator."""
        return torch.distributions.Categorical(logits=self.log_probs(x, model_prior)).sample(torch.Size(sample_shape))


def check_models(num_models: int, **indices: Any) -> None:
    """Check indices of models; a `TypeError` or `ValueError` that names the argument otherwise."""
    for name, index in indices.items():
        if check_count(index, name, 0) >= num_models:
            raise ValueError(f"models are numbered from 0 to {num_models - 1}, got {name} = {index}.")


def losing_models(log_probs: Tensor) -> Tensor:
    """Which models (..., J) have less than 0.001 of the probability, by logs of probabilities."""
    return log_probs < math.log(_LOSING)


def warn_of_losing_models(log_evidences: Tensor, i: int, j: int) -> None:
    """Warn if two models are both far behind a third for some data sets, by log-evidences (B, J) of a classifier."""
    losing = losing_models(log_evidences.log_softmax(-1))
    both = losing[:, i] & losing[:, j]
    if i != j and bool(both.any()):
        warn_user(
            f"models {i} and {j} both have less than {_LOSING:g} of the probability for {int(both.sum())} of {len(both)} "
            "data sets. The classifier has hardly seen simulations of either that look like these: their log Bayes factor "
            "can be off by several nats, of either sign, and an ensemble does not show it. Use PosteriorEvidence for it.",
            RuntimeWarning,
        )
