r"""Model probabilities in a context: p(M | x, c), and in one context as an ordinary posterior over models.

Which prior the parameters have decides evidences, and so model probabilities, more than anything else. `ModelComparison`
with a `ContextEmbedding` learns ℓ_j(x, c) = log p(x | M_j, c) + const for all contexts at once (arXiv 2310.11122).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...simulators.sensitivity.contexts import Contexts
from ...utils.checks import as_finite_tensor
from ...utils.packing.contexts import pack_context
from .deep_ensemble import DeepEnsemblePosterior
from .model_posterior import ModelPosterior
from .model_probabilities import ModelProbabilities

__all__ = ["ContextModelPosterior"]


class ContextModelPosterior:
    """Posterior over models in a context; contexts outside what the net was trained on are refused.

    Args:
        posterior: `ModelPosterior` of a `ModelComparison` whose x was packed with contexts, or an ensemble of them.
        contexts: What contexts were drawn from.

    Example:
        >>> import torch
        >>> from sbi_bed.inference import ModelPosterior
        >>> from sbi_bed.neural_nets import ContextEmbedding, EvidenceClassifier
        >>> from sbi_bed.simulators import LogUniform
        >>> net = EvidenceClassifier(ContextEmbedding((4,), 1, log_columns=[True]), num_models=2, summary_dim=37)
        >>> of_both = ModelPosterior(net, torch.tensor([0.5, 0.5]), (5,))  # as `ModelComparison` would train it
        >>> posterior, x = ContextModelPosterior(of_both, Contexts(gamma=LogUniform(0.5, 2.0))), torch.randn(6, 4)
        >>> bool(torch.allclose(posterior.probs(x, [1.5]), posterior.condition_on([1.5]).probs(x)))
        True
        >>> posterior.probs(x, [5.0])
        Traceback (most recent call last):
        ...
        ValueError: gamma = 5 lies outside what the net was trained on, [0.5, 2]: ...
    """

    def __init__(self, posterior: Any, contexts: Contexts):
        self.posterior, self.contexts = posterior, contexts

    def condition_on(self, context: Any) -> Any:
        """The posterior over models in one context (C,), of data alone: `probs(x)`, `log_bayes_factor(x, i, j)`, ….

        `model_report` and `atypicality` take it, and `simulation_gap` where it is of an ensemble.

        Raises:
            ValueError: If the context is none, or outside what the net was trained on.
        """
        context = self._check(context)
        if context.ndim != 1:
            raise ValueError(f"condition_on takes one context (C,), got {tuple(context.shape)}.")
        if not isinstance(self.posterior, DeepEnsemblePosterior):
            return _InContext(self.posterior, context)
        members = [_InContext(member, context) for member in self.posterior.members]
        return DeepEnsemblePosterior(members, self.posterior.weights)

    def log_probs(self, x: Any, context: Any, model_prior: Any = None) -> Tensor:
        """log p(M_j | x, c), (B, J), for data x (B, *event) and contexts (B, C), or one (C,).

        Raises:
            ValueError: If data or contexts are of another shape, or a context is outside what the net was trained on.
        """
        return self.posterior.log_probs(pack_context(x, self._check(context)), model_prior)

    def probs(self, x: Any, context: Any, model_prior: Any = None) -> Tensor:
        """p(M_j | x, c), (B, J); arguments and errors as for `log_probs`."""
        return self.log_probs(x, context, model_prior).exp()

    def log_bayes_factor(self, x: Any, i: int, j: int, context: Any) -> Tensor:
        """log p(x | M_i, c) − log p(x | M_j, c), (B,), nats; errors as for `log_probs`."""
        return self.posterior.log_bayes_factor(pack_context(x, self._check(context)), i, j)

    def _check(self, context: Any) -> Tensor:
        return self.contexts.check_inside(as_finite_tensor(context, "context"))


class _InContext(ModelProbabilities):
    """A posterior over models of packed data as one of data alone."""

    def __init__(self, posterior: ModelPosterior, context: Tensor):
        self._posterior, self.context = posterior, context
        self.from_classifier = posterior.from_classifier
        self.num_models, self.model_prior = posterior.num_models, posterior.model_prior

    def log_evidences(self, x: Tensor) -> Tensor:
        return self._posterior.log_evidences(pack_context(x, self.context))

    def summary(self, x: Tensor) -> Tensor:
        """Output of the embedding net for data (B, *event) in the context, (B, S)."""
        return self._posterior.summary(pack_context(x, self.context))
