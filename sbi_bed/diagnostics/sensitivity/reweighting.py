"""Importance weights that carry draws of a posterior in a baseline to another context or another prior."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...inference.posteriors.deep_ensemble import prior_of
from ...simulators.sensitivity.contexts import Contexts, prior_of_context
from ...simulators.sensitivity.power_scaled_prior import PowerScaledPrior
from ...utils.checks import as_finite_tensor
from .pareto_smoothing import largest_pareto_k, smoothed_weights, weighted_moments, weighted_quantiles

__all__ = ["Baseline", "WeightedChange", "weighted_change"]

_PRIOR_DRAWS, _LARGEST_SHARE = 1000, 0.01  # of a named prior that may lie where the posterior's own prior is 0

_GOOD_K = 0.5  # above, smoothing of the largest weights is a bias of up to a standard error


class Baseline:
    """Draws and densities of one posterior given one data set, in any context or, where it knows none, as it is.

    Args:
        posterior: The posterior, or an ensemble.
        x: Its data; the default data of the posterior if None.
        baseline: The context of the baseline, (C,); empty for a posterior without contexts.
        log_likelihood: As for `prior_sensitivity`.
        known: The contexts of training, if they are known.

    Attributes:
        members: Members of the ensemble, or the posterior alone.
    """

    def __init__(
        self,
        posterior: Any,
        x: Any,
        baseline: Tensor,
        log_likelihood: Callable[..., Tensor] | None,
        known: Contexts | None,
    ):
        self.posterior, self.baseline, self.known = posterior, baseline, known
        self.members = list(getattr(posterior, "members", [posterior]))
        self._log_likelihood_of, self.has_likelihood = log_likelihood, log_likelihood is not None
        x = getattr(self.members[0], "default_x", None) if x is None else x
        if x is None:
            raise ValueError("x must be given, or set with set_default_x.")
        self.x = as_finite_tensor(x, "x")
        event_shape = getattr(self.members[0], "event_shape", None)
        if event_shape is not None and tuple(self.x.shape) == (1, *event_shape):
            self.x = self.x.squeeze(0)

    def draws(self, num: int, contexts: Tensor | None = None, member: Any = None) -> Tensor:
        """Draws (num, G, P) in contexts (G, C), or (num, 1, P) in the baseline; of the mixture if no member is given."""
        source = self.posterior if member is None else member
        if len(self.baseline) == 0:
            settings = {}
            if "show_progress_bars" in inspect.signature(self.members[0].sample).parameters:
                settings["show_progress_bars"] = False
            return source.sample((num,), x=self.x, **settings).detach().double().reshape(num, 1, -1)
        contexts = self.baseline.unsqueeze(0) if contexts is None else contexts
        x = self.x.unsqueeze(0)
        return source.sample_batched((num,), x.expand(len(contexts), *x.shape[1:]), contexts).double()

    def two_members(self) -> list[int]:
        """Places of two different members of an ensemble, drawn at random; or of the one posterior, twice."""
        return torch.randperm(len(self.members))[:2].tolist() if len(self.members) > 1 else [0, 0]

    def prior(self, context: Tensor) -> Any:
        """The prior in a context; None if the posterior has none."""
        prior = prior_of(self.members[0])
        return prior if prior is None or len(self.baseline) == 0 else prior_of_context(prior, context)

    def log_weights(self, theta: Tensor, context: Tensor, origin: Tensor | None = None) -> Tensor | None:
        """Logs of weights (S,) that carry draws (S, P) of one context (the baseline) to another; None if not known."""
        origin = self.baseline if origin is None else origin
        own, other = self.prior(origin), self.prior(context)
        if own is None or other is None:
            return None
        if self.has_likelihood:
            return self._log_likelihood(theta, context) + _log_prob(other, theta) - self._log_density(theta, origin)
        num_gammas = getattr(prior_of(self.members[0]), "num_gammas", 0)
        is_of_prior = isinstance(prior_of(self.members[0]), PowerScaledPrior)
        if not is_of_prior or not torch.equal(context[num_gammas:], origin[num_gammas:]):
            return None
        return _log_prob(other, theta) - _log_prob(own, theta)

    def weighted_change_to(self, context: Tensor, pool: Tensor) -> WeightedChange:
        """Change to a context by weights on draws of the baseline (S, P) or, where k̂ is smaller, on draws of the context.

        A wider prior is not reached from a narrower one, but the other way round.
        """
        change = self._change(self.baseline, context, pool)
        if not change.pareto_k > _GOOD_K:
            return change
        draws = self.draws(len(pool), context.unsqueeze(0))[:, 0]
        back = self._change(context, self.baseline, draws)
        if not back.pareto_k < change.pareto_k:
            return change
        ratio = 1 / back.sd_ratio
        return replace(back, mean_shift=-back.mean_shift * ratio, stderr=back.stderr * ratio, sd_ratio=ratio)

    def _change(self, origin: Tensor, goal: Tensor, theta: Tensor) -> WeightedChange:
        before = self.log_weights(theta, origin, origin) if self.has_likelihood else None
        scaled = (theta - theta.mean(0)) / theta.std(0)
        return weighted_change(scaled, self.log_weights(theta, goal, origin), before)

    def log_weights_of_prior(self, theta: Tensor, prior: Any, name: str) -> Tensor:
        """Logs of weights (S,) that carry draws (S, P) of the baseline to a named prior; checks the prior."""
        own = self.prior(self.baseline)
        if own is None:
            raise TypeError(f"priors= needs a posterior with a prior, got {type(self.members[0]).__name__}.")
        if not (hasattr(prior, "log_prob") and hasattr(prior, "sample")):
            raise TypeError(f"priors[{name!r}] must be a distribution, got {prior!r}.")
        new = prior.sample((_PRIOR_DRAWS,))
        if new.shape != (_PRIOR_DRAWS, theta.shape[1]) or _log_prob(prior, new).shape != new.shape[:1]:
            raise ValueError(
                f"priors[{name!r}] must be a distribution of vectors ({theta.shape[1]},), such as Independent(..., 1); its "
                f"draws have shape {tuple(new.shape[1:])} and its log_prob {tuple(_log_prob(prior, new).shape[1:])}."
            )
        if float(_log_prob(own, new).isneginf().double().mean()) > _LARGEST_SHARE:
            return torch.full_like(theta[:, 0], torch.nan)
        if not self.has_likelihood:
            return _log_prob(prior, theta) - _log_prob(own, theta)
        return (
            self._log_likelihood(theta, self.baseline)
            + _log_prob(prior, theta)
            - self._log_density(theta, self.baseline)
        )

    def _log_likelihood(self, theta: Tensor, context: Tensor) -> Tensor:
        function: Any = self._log_likelihood_of
        arguments: list[Any] = [theta.to(torch.get_default_dtype()), self.x]
        if self.known is not None and len(inspect.signature(function).parameters) >= 3:
            arguments.append(self.known.split(context))
        found = torch.as_tensor(function(*arguments)).double()
        if found.shape != theta.shape[:1] or bool((found.isnan() | found.isposinf()).any()):
            raise ValueError(
                f"log_likelihood must return log p(x | θ) (S,), not NaN and below infinity, for theta {tuple(theta.shape)}; "
                f"got shape {tuple(found.shape)}."
            )
        return found

    def _log_density(self, theta: Tensor, context: Tensor) -> Tensor:
        settings = {} if len(context) == 0 else {"context": context}
        return self.posterior.log_prob(theta.float(), x=self.x, **settings).double()


@dataclass(frozen=True)
class WeightedChange:
    """Change of a posterior by importance weights; NaN if k̂ is too large, or if there are no weights.

    Attributes:
        mean_shift: Change of means, (P,), in standard deviations of the baseline, corrected if weights correct it.
        stderr: Standard errors of `mean_shift`, (P,); draws count as independent.
        sd_ratio: Standard deviations over the baseline's, (P,).
        quantile_shift: Change of quantiles, (Q, P).
        pareto_k: k̂; NaN if there are no weights.
    """

    mean_shift: Tensor
    stderr: Tensor
    sd_ratio: Tensor
    quantile_shift: Tensor
    pareto_k: float


def weighted_change(
    scaled: Tensor, log_weights: Tensor | None, before: Tensor | None = None, levels: Sequence[float] = (0.5,)
) -> WeightedChange:
    """Change from a baseline to what importance weights make of its draws.

    Args:
        scaled: Draws of the baseline (S, P), standardised.
        log_weights: Logarithms of weights, (S,); None or NaN if there are none.
        before: Logarithms of weights that correct the baseline itself, (S,); equal weights if None.
        levels: Levels of quantiles.
    """
    nan = torch.full_like(scaled[0], torch.nan)
    nothing = nan, nan, nan, nan.expand(len(levels), -1)
    if log_weights is None or bool(log_weights.isnan().any()):
        return WeightedChange(*nothing, math.nan)
    after, pareto_k = smoothed_weights(log_weights)
    still, own_k = (torch.full_like(after, 1 / len(after)), -math.inf) if before is None else smoothed_weights(before)
    pareto_k = max(pareto_k, own_k)
    if not pareto_k < largest_pareto_k(len(scaled)):
        return WeightedChange(*nothing, pareto_k)
    (mean, sd), (own_mean, own_sd) = weighted_moments(scaled, after), weighted_moments(scaled, still)
    each = after[:, None] * (scaled - mean) - still[:, None] * (scaled - own_mean)
    at = torch.tensor(levels, dtype=torch.float64)
    quantiles = weighted_quantiles(scaled, after, at) - weighted_quantiles(scaled, still, at)
    stderr = each.square().sum(0).sqrt()
    return WeightedChange((mean - own_mean) / own_sd, stderr / own_sd, sd / own_sd, quantiles / own_sd, pareto_k)


def _log_prob(prior: Any, theta: Tensor) -> Tensor:
    """Log prior density (S,), −∞ outside of its support."""
    try:
        return prior.log_prob(theta.to(torch.get_default_dtype())).double()
    except ValueError:  # a distribution that refuses values outside
        inside = prior.support.check(theta)
        somewhere = prior.sample().expand(theta.shape)
        value = prior.log_prob(torch.where(inside.unsqueeze(-1), theta.to(somewhere), somewhere)).double()
        return torch.where(inside, value, -torch.inf)
