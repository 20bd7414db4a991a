r"""Several nets instead of one: their mixture, and how far they disagree.

For members q_1, …, q_M, trained alike from different weights,

    q(θ | x) = M^{-1} Σ_m q_m(θ | x),

whose draws are those of a member chosen anew, at random, for each draw. Where members agree the answer is that of any of
them; where data are unlike what they were trained on they tend not to (Lakshminarayanan et al. 2017, arXiv 1612.01474).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.files import load_file, save_file
from .model_posterior import ModelPosterior, describe_model_posterior, restore_model_posterior

__all__ = ["DeepEnsemblePosterior"]


class DeepEnsemblePosterior:
    """Mixture, in equal parts, of posteriors of one kind.

    Over parameters, of sbi's posteriors or any with `sample` and `log_prob`: `sample`, `sample_batched`, `log_prob`,
    `log_prob_batched`, whose keywords (`x=`, `context=`, …) are passed on to each member. Over models, of
    `ModelPosterior`: `probs`, `log_probs`, `log_bayes_factor`, `sample`, `spread`.

    Args:
        members: The posteriors.

    Attributes:
        members: The posteriors, a list.

    Raises:
        ValueError: If there is no member, or some are over models and some are not.
    """

    def __init__(self, members: Sequence[Any]):
        self.members = list(members)
        if not self.members:
            raise ValueError("an ensemble needs at least one member.")
        over_models = [isinstance(member, ModelPosterior) for member in self.members]
        if any(over_models) and not all(over_models):
            raise ValueError("members must all be posteriors over models, or all over parameters.")
        self._over_models = over_models[0]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.members)

    # ---- draws and densities, whatever they are over

    def sample(self, sample_shape: Sequence[int] = (), *args: Any, **kwargs: Any) -> Tensor:
        """Draws (*sample_shape, …) of the mixture, members in random order; arguments as for a member's `sample`."""
        return self._mix("sample", sample_shape, args, kwargs)

    def sample_batched(self, sample_shape: Sequence[int], *args: Any, **kwargs: Any) -> Tensor:
        """Draws (*sample_shape, B, …) for each of B data sets; arguments as for a member's `sample_batched`."""
        return self._mix("sample_batched", sample_shape, args, kwargs)

    def log_prob(self, *args: Any, **kwargs: Any) -> Tensor:
        """Log density of the mixture, log M^{-1} Σ_m q_m; arguments and shape as for a member's `log_prob`."""
        return self._mean_of_logs("log_prob", *args, **kwargs)

    def log_prob_batched(self, *args: Any, **kwargs: Any) -> Tensor:
        """The same for several data sets; arguments and shape as for a member's `log_prob_batched`."""
        return self._mean_of_logs("log_prob_batched", *args, **kwargs)

    def set_default_x(self, x: Tensor) -> DeepEnsemblePosterior:
        """Set the default data of each member; returns the ensemble."""
        for member in self.members:
            member.set_default_x(x)
        return self

    def to(self, device: str | torch.device) -> DeepEnsemblePosterior:
        """Move each member; returns the ensemble."""
        for member in self.members:
            member.to(device)
        return self

    # ---- over models

    def log_probs(self, x: Tensor, model_prior: Any = None) -> Tensor:
        """Logs of the members' mean probabilities, (B, J); as for `ModelPosterior.log_probs`."""
        return self._mean_of_logs("log_probs", x, model_prior)

    def probs(self, x: Tensor, model_prior: Any = None) -> Tensor:
        """The members' mean probabilities, (B, J); as for `ModelPosterior.probs`."""
        return self.log_probs(x, model_prior).exp()

    def log_bayes_factor(self, x: Tensor, i: int, j: int) -> Tensor:
        """The members' mean of log p(x | M_i) − log p(x | M_j), (B,), nats; no prior enters."""
        self._check_over_models("log_bayes_factor")
        return torch.stack([member.log_bayes_factor(x, i, j) for member in self.members]).mean(0)

    def spread(self, x: Tensor, model_prior: Any = None) -> Tensor:
        """Standard deviation of the members' probabilities, (B, J)."""
        self._check_over_models("spread")
        return torch.stack([member.probs(x, model_prior) for member in self.members]).std(0, unbiased=False)

    def save(self, path: str | Path) -> None:
        """Save all members, which must be over models, in one file, for `load`.

        Raises:
            TypeError: If they are not.
        """
        self._check_over_models("save")
        save_file(path, "deep_ensemble", {"members": [describe_model_posterior(member) for member in self.members]})

    @classmethod
    def load(cls, path: str | Path, embedding_net: torch.nn.Module | None = None) -> DeepEnsemblePosterior:
        """Load what `save` wrote; arguments and errors as for `ModelPosterior.load`."""
        content = load_file(path, "deep_ensemble")
        return cls([restore_model_posterior(member, embedding_net) for member in content.get("members", ())])

    # ---- pieces

    def _check_over_models(self, name: str) -> None:
        if not self._over_models:
            raise TypeError(f"{name} needs posteriors over models, got {type(self.members[0]).__name__}.")

    def _mean_of_logs(self, name: str, *args: Any, **kwargs: Any) -> Tensor:
        if name == "log_probs":
            self._check_over_models(name)
        logs = torch.stack([getattr(member, name)(*args, **kwargs) for member in self.members])
        return logs.logsumexp(0) - math.log(len(self.members))

    def _mix(self, name: str, sample_shape: Sequence[int], args: tuple, kwargs: dict[str, Any]) -> Tensor:
        num = torch.Size(sample_shape).numel()
        chosen = torch.randint(len(self.members), (num,))
        mixed = None
        for number, member in enumerate(self.members):
            places = (chosen == number).nonzero().squeeze(-1)
            if len(places) == 0:
                continue
            draws = getattr(member, name)((len(places),), *args, **kwargs)
            mixed = draws.new_empty(num, *draws.shape[1:]) if mixed is None else mixed
            mixed[places.to(draws.device)] = draws
        if mixed is None:
            return getattr(self.members[0], name)(sample_shape, *args, **kwargs)  # no draws at all
        return mixed.reshape(*sample_shape, *mixed.shape[1:])
