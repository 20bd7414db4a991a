r"""Posterior over models by a classifier: probabilities and Bayes factors from one forward pass.

A net gives ℓ_j(x) = log p(x | M_j) + const; `model_probabilities` has the mathematics that follows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...neural_nets.classifiers import EvidenceClassifier
from ...simulators.models.model_family import as_log_prior
from ...utils.checks import as_finite_tensor
from ...utils.files import load_file, load_weights, rebuilding, save_file
from ...utils.packing.sizes import watch_sizes
from .model_probabilities import ModelProbabilities

__all__ = ["ModelPosterior", "describe_model_posterior", "restore_model_posterior"]

_CHUNK = 2**19  # numbers of x that go through the net at once


class ModelPosterior(ModelProbabilities):
    """Posterior over J models, amortised: for any x of the kind that the net was trained on.

    x is (B, *event), or one data set (*event), which counts as a batch of one. An embedding net of grouped data knows the
    sizes that it was trained on: each method gives one warning when data leave them.

    Args:
        classifier: Net x → log evidences up to a constant.
        model_prior: Prior weights of the models, (J,), positive.
        event_shape: Shape of one data set in training; sizes may differ where the embedding net lets them.

    Attributes:
        num_models: Number J of models.
        model_prior: Prior probabilities (J,).
        from_classifier: True.

    Example:
        >>> classifier = EvidenceClassifier(torch.nn.Identity(), num_models=3, summary_dim=2)
        >>> posterior = ModelPosterior(classifier, torch.ones(3) / 3, (2,))
        >>> posterior.probs(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    from_classifier = True

    def __init__(self, classifier: EvidenceClassifier, model_prior: Tensor, event_shape: Sequence[int]):
        self.classifier = classifier.eval()
        self.num_models = classifier.num_models
        self.model_prior = as_log_prior(model_prior, self.num_models).exp()
        self.event_shape = tuple(event_shape)

    def log_evidences(self, x: Tensor) -> Tensor:
        """log p(x | M_j) − log p(x | M_0), (B, J), float64.

        Raises:
            ValueError: If x is not finite, has other dimensions than in training, or the embedding net refuses it.
        """
        return self._through(self.classifier, x).double()

    def summary(self, x: Tensor) -> Tensor:
        """Output of the embedding net for x, (B, S): data sets unlike the simulated ones stand out there."""
        return self._through(self.classifier.embedding_net, x)

    def to(self, device: str | torch.device) -> ModelPosterior:
        """Move the net; returns the posterior itself. x may be anywhere, answers are on `device`."""
        self.classifier.to(device)
        return self

    def save(self, path: str | Path) -> None:
        """Save weights and description in one file, for `load`."""
        save_file(path, "model_posterior", describe_model_posterior(self))

    @classmethod
    def load(cls, path: str | Path, embedding_net: nn.Module | None = None) -> ModelPosterior:
        """Load what `save` wrote.

        Args:
            path: The file.
            embedding_net: A net like the one saved, whose weights are replaced; needed where it is not an embedding net of
                this package, or has an `encoder`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated or foreign, or the net needed or of another kind.
        """
        content = load_file(path, "model_posterior")
        with rebuilding(path):
            return restore_model_posterior(content, embedding_net)

    @torch.no_grad()
    def _through(self, net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        x = as_finite_tensor(x, "x")
        if x.ndim == len(self.event_shape):
            x = x.unsqueeze(0)
        if x.ndim != len(self.event_shape) + 1 or x.shape[-1] != self.event_shape[-1] or len(x) == 0:
            raise ValueError(
                f"x must be data sets like those of training, (B, {', '.join(map(str, self.event_shape))}), "
                f"got {tuple(x.shape)}."
            )
        like = next(self.classifier.head.parameters())
        chunks = x.split(max(1, _CHUNK // math.prod(x.shape[1:])))
        with watch_sizes():
            return torch.cat([net(chunk.to(like)) for chunk in chunks]).to(x.device)


def describe_model_posterior(posterior: ModelPosterior) -> dict[str, Any]:
    """A posterior as plain data and tensors."""
    embedding = posterior.classifier.embedding_net
    return {
        "embedding": type(embedding).__name__,
        "embedding_config": getattr(embedding, "config", None),
        "classifier": posterior.classifier.config,
        "weights": {name: value.cpu() for name, value in posterior.classifier.state_dict().items()},
        "model_prior": posterior.model_prior,
        "event_shape": list(posterior.event_shape),
    }


def restore_model_posterior(description: dict[str, Any], embedding_net: nn.Module | None = None) -> ModelPosterior:
    """A posterior from what `describe_model_posterior` gave; errors as for `ModelPosterior.load`."""
    import sbi_bed.neural_nets as room

    if (
        not {"embedding", "embedding_config", "classifier", "weights", "model_prior", "event_shape"}
        <= description.keys()
    ):
        raise ValueError("the file lacks parts of a model posterior.")
    name, config = description["embedding"], description["embedding_config"]
    if embedding_net is None:
        if config is None or name not in room.__all__:
            raise ValueError(f"the saved {name} cannot be rebuilt from plain data: give embedding_net=, one like it.")
        net: nn.Module = getattr(room, name)(**config)
    else:
        net = copy.deepcopy(embedding_net)
    classifier = EvidenceClassifier(net, **description["classifier"])
    load_weights(classifier, description["weights"], embedding_net)
    return ModelPosterior(classifier, description["model_prior"], description["event_shape"])
