r"""From log-evidences to probabilities of models, by whichever route the evidences came.

    log p(M_j | x) = ℓ_j + log π_j − log Σ_k exp(ℓ_k + log π_k),    log BF_ij = ℓ_i − ℓ_j,

for a prior π over models and ℓ_j = log p(x | M_j) up to a constant that the models share. All is kept in logs, in float64:
probabilities of 1 − 10^{−30} and Bayes factors of e^{±500} come out as such.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...simulators.models.model_family import as_log_prior

__all__ = ["ModelProbabilities"]


class ModelProbabilities:
    """What a route to the evidence offers: `log_evidences`, and all that follows from them.

    Attributes:
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
            ValueError: If i or j is no index of a model.
        """
        for index in (i, j):
            if not 0 <= index < self.num_models:
                raise ValueError(f"models are numbered from 0 to {self.num_models - 1}, got {index}.")
        evidences = self.log_evidences(x)
        return evidences[:, i] - evidences[:, j]

    def sample(self, sample_shape: Any, x: Tensor, model_prior: Any = None) -> Tensor:
        """Indices of models drawn from p(M | x), (*sample_shape, B), by torch's global generator."""
        return torch.distributions.Categorical(logits=self.log_probs(x, model_prior)).sample(torch.Size(sample_shape))
