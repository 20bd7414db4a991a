r"""Several nets instead of one: their mixture, and how far they disagree.

For members q_1, …, q_M, trained alike from different weights,

    q(θ | x) = Σ_m w_m q_m(θ | x),   w_m = 1/M unless said otherwise,

whose draws are those of a member chosen anew, at random, for each draw. Where members agree the answer is that of any of
them; where data are unlike what they were trained on they tend not to (Lakshminarayanan et al. 2017, arXiv 1612.01474).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...utils.checks import as_finite_tensor
from ...utils.files import load_file, rebuilding, save_file
from ...utils.packing.sizes import watch_sizes
from ...utils.seeding import seeded
from ...utils.warn_user import without_sbi_notes
from .model_posterior import ModelPosterior, describe_model_posterior, restore_model_posterior
from .model_probabilities import ModelProbabilities, check_models, warn_of_losing_models

__all__ = ["DeepEnsemblePosterior", "prior_of"]

_DRAWS = 100  # of a prior, where it is compared with another


class DeepEnsemblePosterior:
    """Mixture of posteriors of one kind.

    Over parameters, of sbi's posteriors or any with `sample` and `log_prob`: `sample`, `sample_batched`, `log_prob`,
    `log_prob_batched`, whose keywords (`x=`, `context=`, …) are passed on to each member; sbi's diagnostics (`run_sbc`,
    `run_tarp`) take it as they take a member. Over models, of `ModelPosterior`: `probs`, `log_probs`, `log_bayes_factor`,
    `sample`, `spread`.

    Args:
        members: The posteriors.
        weights: Weights (M,) of the members, not negative, of any sum; equal if None.
        held_out_losses: Losses (M, N) of the members for simulations that none was trained on, for sbi's NPE −log q_m(θ | x)
            in nats; `train_ensemble` gives them where trainers tell.

    Attributes:
        members: The posteriors, a list; the ensemble itself can be iterated over, too.
        weights: Shape (M,), float64, summing to one.
        held_out_losses: As given, or None.

    Raises:
        ValueError: If there is no member, some are over models and some are not, their priors differ, or there is not one
            weight for each.

    Example:
        >>> ensemble = DeepEnsemblePosterior([torch.distributions.Normal(m, torch.ones(1)) for m in (-9.0, 9.0)])
        >>> ensemble.sample((1000,)).abs().mean() > 8, ensemble.log_prob(torch.tensor([9.0])).exp().item() < 0.2
        (tensor(True), True)
    """

    def __init__(self, members: Sequence[Any], weights: Any = None, held_out_losses: Tensor | None = None):
        self.members, self.held_out_losses = list(members), held_out_losses
        if not self.members:
            raise ValueError("an ensemble needs at least one member.")
        over_models = [isinstance(member, ModelProbabilities) for member in self.members]
        if any(over_models) and not all(over_models):
            raise ValueError("members must all be posteriors over models, or all over parameters.")
        self._over_models = over_models[0]
        self.weights = _as_weights(weights, len(self.members))
        _check_same_prior(self.members)

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
        """Log density of the mixture, log Σ_m w_m q_m; arguments and shape as for a member's `log_prob`."""
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

    @property
    def prior(self) -> Any:
        """The members' prior over parameters; None if they do not tell."""
        return prior_of(self.members[0])

    def condition_on(self, context: Any) -> DeepEnsemblePosterior:
        """The ensemble of `member.condition_on(context)`, for members that have it, such as `ContextPosterior`."""
        return DeepEnsemblePosterior([member.condition_on(context) for member in self.members], self.weights)

    # ---- over models

    def log_probs(self, x: Tensor, model_prior: Any = None) -> Tensor:
        """Logs of the members' mean probabilities, (B, J); as for `ModelPosterior.log_probs`."""
        return self._mean_of_logs("log_probs", x, model_prior)

    def probs(self, x: Tensor, model_prior: Any = None) -> Tensor:
        """The members' mean probabilities, (B, J); as for `ModelPosterior.probs`."""
        return self.log_probs(x, model_prior).exp()

    def log_bayes_factor(self, x: Tensor, i: int, j: int) -> Tensor:
        """The members' mean of log p(x | M_i) − log p(x | M_j), (B,), nats; errors and warnings as for a member."""
        self._check_over_models("log_bayes_factor")
        num_models = self.members[0].num_models
        check_models(num_models, i=i, j=j)
        with watch_sizes():
            evidences = torch.stack([member.log_evidences(x) for member in self.members])
        evidences = torch.einsum("m,m...->...", self.weights.to(evidences), evidences)
        if any(member.from_classifier for member in self.members):
            warn_of_losing_models(evidences, i, j)
        return evidences[:, i] - evidences[:, j]

    def spread(self, x: Tensor, model_prior: Any = None) -> Tensor:
        """Standard deviation of the members' probabilities, (B, J)."""
        self._check_over_models("spread")
        with watch_sizes():
            probs = torch.stack([member.probs(x, model_prior) for member in self.members])
        weights = self.weights.to(probs).view(-1, 1, 1)
        return (weights * (probs - (weights * probs).sum(0)).square()).sum(0).sqrt()

    def save(self, path: str | Path) -> None:
        """Save all members, which must be `ModelPosterior`s, in one file, for `load`.

        Raises:
            TypeError: If they are not.
        """
        if not all(isinstance(member, ModelPosterior) for member in self.members):
            raise TypeError(f"save needs members that are ModelPosterior, got {type(self.members[0]).__name__}.")
        members = [describe_model_posterior(member) for member in self.members]
        save_file(
            path,
            "deep_ensemble",
            {"members": members, "weights": self.weights, "held_out_losses": self.held_out_losses},
        )

    @classmethod
    def load(cls, path: str | Path, embedding_net: torch.nn.Module | None = None) -> DeepEnsemblePosterior:
        """Load what `save` wrote; arguments and errors as for `ModelPosterior.load`."""
        content = load_file(path, "deep_ensemble")
        with rebuilding(path):
            members = [restore_model_posterior(member, embedding_net) for member in content["members"]]
            return cls(members, content["weights"], content["held_out_losses"])

    # ---- pieces

    def _check_over_models(self, name: str) -> None:
        if not self._over_models:
            raise TypeError(f"{name} needs posteriors over models, got {type(self.members[0]).__name__}.")

    def _mean_of_logs(self, name: str, *args: Any, **kwargs: Any) -> Tensor:
        if name == "log_probs":
            self._check_over_models(name)
        with watch_sizes():
            logs = torch.stack([getattr(member, name)(*args, **kwargs) for member in self.members])
        return (logs + self.weights.log().to(logs).view(-1, *[1] * (logs.ndim - 1))).logsumexp(0)

    def _mix(self, name: str, sample_shape: Sequence[int], args: tuple, kwargs: dict[str, Any]) -> Tensor:
        num = torch.Size(sample_shape).numel()
        chosen = self.weights.multinomial(num, replacement=True) if num else torch.zeros(0)
        mixed = None
        with watch_sizes(), without_sbi_notes():
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


def _as_weights(weights: Any, num: int) -> Tensor:
    if weights is None:
        return torch.full((num,), 1 / num, dtype=torch.float64)
    given = as_finite_tensor(weights, "weights").detach().double().cpu()
    if given.shape != (num,) or bool((given < 0).any()) or not given.sum() > 0:
        raise ValueError(
            f"weights must be {num} numbers, one for each member, none negative, not all 0, got {weights}."
        )
    return given / given.sum()


def prior_of(member: Any) -> Any:
    """The prior of a posterior over parameters, None if it does not tell."""
    prior = getattr(member, "prior", None)
    return getattr(getattr(member, "potential_fn", None), "prior", None) if prior is None else prior


def _check_same_prior(members: list[Any]) -> None:
    """Priors are the same if their densities are, at draws of the first."""
    priors = [prior_of(member) for member in members]
    others = [prior for prior in priors[1:] if prior is not priors[0]]
    if not others or not all(isinstance(prior, Distribution) for prior in priors):
        return
    with seeded(0):
        theta = priors[0].sample((_DRAWS,))
    expected = priors[0].log_prob(theta)
    for number, prior in enumerate(priors):
        found = prior.log_prob(theta)
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            raise ValueError(f"members must have one prior: that of member {number} is not that of member 0.")
