r"""Evidences of models from a fitted posterior of each, without a classifier.

For a model with a likelihood, a prior and a posterior q(θ | x) from sbi,

    log p(x) = log p(x | θ) + log p(θ) − log p(θ | x)      for every θ.

With q in place of p(θ | x) there are two estimates. With w(θ) = p(x | θ) p(θ) / q(θ | x) and draws θ_s ~ q,

- ``"importance"``: log S⁻¹ Σ_s w(θ_s). p̂ is unbiased for any q that reaches as far as the posterior; the effective sample
  size (Σ w)² / Σ w² tells how well it fits;
- ``"identity"``: S⁻¹ Σ_s log w(θ_s), a lower bound on log p(x), short of it by KL(q ‖ posterior). All terms are equal where
  q is exact: their spread shows what q gets wrong, however large S.

Where q is poor, few draws carry all the weight. So importance sampling adapts to each data set: a multivariate t in
unconstrained coordinates is fitted to the weighted draws so far, with the largest weights made equal (Koblents & Míguez
2015, doi 10.1007/s11222-013-9440-2), and the next round draws from it. Given the earlier rounds, the last one is unbiased.

The likelihood may be exact, one in which some parameters are integrated out, or a fitted one of sbi's (NLE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...simulators.base import prior_log_prob
from ...simulators.models.model_family import as_log_prior
from ...utils.checks import as_finite_tensor, check_choice, check_count
from ...utils.seeding import seeded
from ...utils.smc import weights_sample_size
from ...utils.student_t import log_student_t
from ...utils.transforms import to_unconstrained
from ...utils.warn_user import without_sbi_notes
from .model_probabilities import ModelProbabilities

__all__ = ["Evidence", "PosteriorEvidence", "posterior_evidence"]

_AT_ONCE = 2**17  # draws whose likelihoods are computed together
_PATIENCE = 4  # times `num_rounds` for data sets that are hard to find
_FROM_PRIOR = 10  # times `num_samples` draws from the prior, where the posterior given does not lead to the true one


@dataclass(frozen=True)
class Evidence:
    """Log-evidences of B data sets under one model.

    Attributes:
        log_evidence: log p(x), (B,), float64.
        stderr: Standard errors (B,) from the finite number of draws.
        effective_sample_size: Independent posterior draws that the draws of q are worth, (B,).
    """

    log_evidence: Tensor
    stderr: Tensor
    effective_sample_size: Tensor


@torch.no_grad()
def posterior_evidence(
    posterior: Any,
    log_likelihood: Callable[[Tensor, Tensor], Tensor],
    prior: Any,
    x: Tensor,
    num_samples: int = 1000,
    method: Literal["importance", "identity"] = "importance",
    num_rounds: int = 5,
    *,
    seed: int | None = None,
) -> Evidence:
    """Log-evidences of data sets from a posterior fitted to one model.

    Args:
        posterior: An amortised posterior of sbi, such as NPE's `DirectPosterior`, or any with `sample_batched` and
            `log_prob_batched`.
        log_likelihood: (theta (S, B, P), x (1, B, *event)) -> log p(x | theta), (S, B).
        prior: The model's prior over theta, with `log_prob`.
        x: Data sets (B, *event).
        num_samples: Draws S for each data set, in each round.
        method: "importance" or "identity", as above.
        num_rounds: Rounds of importance sampling; the first draws from the posterior given, and with 1 there is no other.
            Data sets whose effective sample size is then below a tenth of the draws, or whose evidence has not settled, go
            on, up to four times as long, and then begin again from the prior.
        seed: Seed; the global generator if None.

    Raises:
        ValueError: If x is not finite, an argument is out of range, or no draw of a data set has a positive weight.

    Source: for the identity Chib 1995, doi 10.1080/01621459.1995.10476635.

    Example:
        >>> from torch.distributions import MultivariateNormal, Normal
        >>> class Exact:  # posterior of θ ~ N(0, 1) given one observation x ~ N(θ, 1); else a fitted one
        ...     def sample_batched(self, shape, x, **_):
        ...         return (x / 2 + 0.5**0.5 * torch.randn(*shape, *x.shape)).float()
        ...
        ...     def log_prob_batched(self, theta, x, **_):
        ...         return Normal(x / 2, 0.5**0.5).log_prob(theta).sum(-1)
        >>> prior, x = MultivariateNormal(torch.zeros(1), torch.eye(1)), torch.tensor([[0.0], [2.0]])
        >>> def log_likelihood(theta, x):
        ...     return Normal(theta, 1.0).log_prob(x).sum(-1)
        >>> evidence = posterior_evidence(Exact(), log_likelihood, prior, x, num_samples=100, num_rounds=1, seed=0)
        >>> exact = Normal(0.0, 2**0.5).log_prob(x[:, 0]).double()
        >>> torch.allclose(evidence.log_evidence, exact, atol=1e-4)
        True
    """
    check_choice(method, "method", ("importance", "identity"))
    x, num_samples = as_finite_tensor(x, "x"), check_count(num_samples, "num_samples", 2)
    size = max(1, _AT_ONCE // num_samples)
    with seeded(seed):
        rounds = check_count(num_rounds, "num_rounds") if method == "importance" else 1
        target = _Target(log_likelihood, prior)
        parts = [_log_weights(posterior, target, part, num_samples, rounds) for part in x.split(size)]
    log_weights = torch.cat(parts, dim=1)
    nothing = log_weights.amax(0).isneginf()
    if nothing.any():
        raise ValueError(
            f"no posterior draw of x[{int(nothing.nonzero()[0])}] has a positive likelihood and prior: the posterior "
            "does not belong to this model, or its training did not reach such data."
        )
    log_mean = log_weights.logsumexp(0) - math.log(num_samples)
    weights, sizes = (log_weights - log_mean).exp(), weights_sample_size(log_weights.T)
    if method == "importance":
        return Evidence(log_mean, weights.std(0) / math.sqrt(num_samples), sizes)
    return Evidence(log_weights.mean(0), log_weights.std(0) / math.sqrt(num_samples), sizes)


class _Target:
    """log p(x | θ) + log p(θ), −inf outside the prior."""

    def __init__(self, log_likelihood: Callable[[Tensor, Tensor], Tensor], prior: Any):
        self._log_likelihood, self.prior = log_likelihood, prior
        self.transform = to_unconstrained(prior)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        log_prior = prior_log_prob(self.prior, theta).double()
        inside = log_prior.isfinite()
        safe = torch.where(inside.unsqueeze(-1), theta, theta[inside][:1] if bool(inside.any()) else theta)
        value = self._log_likelihood(safe, x.unsqueeze(0)).double() + log_prior
        return torch.where(inside & ~value.isnan(), value, -torch.inf)


def _log_weights(posterior: Any, target: _Target, x: Tensor, num: int, num_rounds: int) -> Tensor:
    """log w(θ_s) of the last round, shape (S, B), float64; −inf outside the prior."""
    estimator = getattr(posterior, "posterior_estimator", None)
    if estimator is None:
        with without_sbi_notes():
            theta = posterior.sample_batched((num,), x=x, show_progress_bars=False)
        log_q = posterior.log_prob_batched(theta, x=x)
    else:  # q as it is, with what leaks out of the prior: such draws count with weight 0
        theta = estimator.sample((num,), condition=x)
        log_q = estimator.log_prob(theta, condition=x)
    log_weights = target(theta, x) - log_q.double()
    if num_rounds == 1:
        return log_weights
    found, lost = _adapted(target, x, theta, log_weights, num, num_rounds)
    # Where q lies too far away to find the posterior from there, from the prior.
    for rows in lost.nonzero().flatten().split(max(1, len(x) // _FROM_PRIOR)) if lost.any() else ():
        theta = target.prior.sample((_FROM_PRIOR * num, len(rows)))
        likelihood = target(theta, x[rows]) - prior_log_prob(target.prior, theta).double()
        found[:, rows] = _adapted(target, x[rows], theta, likelihood, num, num_rounds)[0]
    return found


def _adapted(
    target: _Target, x: Tensor, theta: Tensor, log_weights: Tensor, num: int, num_rounds: int
) -> tuple[Tensor, Tensor]:
    """Log weights (S, B) of the last of the rounds that start from weighted draws (S_0, B, P), and whether it got lost."""
    transform, found = target.transform, log_weights[:num].clone()
    draws, weights, rows = [], [], torch.arange(len(x))
    lost = torch.zeros(len(x), dtype=torch.bool)
    for number in range(1, _PATIENCE * num_rounds):
        draws.append(torch.where(log_weights.isneginf().unsqueeze(-1), torch.nan, transform(theta).double()))
        weights.append(log_weights)
        proposal = _fitted_t(torch.cat(draws), torch.cat(weights))
        free = proposal.sample((num,))
        theta = transform.inv(free).to(theta)
        volume = transform.log_abs_det_jacobian(theta, transform(theta)).double()
        volume = volume.sum(-1) if volume.ndim == free.ndim else volume
        log_weights = target(theta, x) - proposal.log_prob(free) - volume
        log_weights = torch.where(log_weights.isnan(), -torch.inf, log_weights)
        found[:, rows] = log_weights
        if number < num_rounds - 1:
            continue
        # Far from the posterior, weights can be alike and the size large; but then the evidence still grows.
        change = (log_weights.logsumexp(0) - weights[-1].logsumexp(0)).abs()
        small = weights_sample_size(log_weights.T) < num / 10
        poor = small | ~(change < 0.2)
        lost[rows] = small | ~(change < 2)
        if not poor.any():
            break
        rows, x, theta, log_weights = rows[poor], x[poor], theta[:, poor], log_weights[:, poor]
        draws, weights = [part[:, poor] for part in draws], [part[:, poor] for part in weights]
    return found, lost


def _fitted_t(free: Tensor, log_weights: Tensor, df: float = 5.0) -> _MultivariateT:
    """A t (B, P) with mean and covariance of weighted draws (S, B, P), whose largest weights are made equal."""
    num, _, dim = free.shape
    largest = log_weights.topk(min(3 * (dim + 1), num), dim=0).values
    log_weights = torch.minimum(log_weights, largest[-1])
    weights = torch.where(log_weights.isneginf(), 0.0, (log_weights - log_weights.amax(0)).exp())
    lost = weights.sum(0) == 0  # fewer draws than that inside the prior: all of these count alike
    weights = torch.where(lost, free.isfinite().all(-1).double(), weights)
    weights = weights / weights.sum(0).clamp_min(1e-300)
    free = free.nan_to_num(0.0)
    mean = (weights.unsqueeze(-1) * free).sum(0)
    centred = free - mean
    # Rather too wide than too narrow: it also has to find its way where the draws so far lie beside the posterior.
    covariance = 1.5 * torch.einsum("sb,sbi,sbj->bij", weights, centred, centred)
    ridge = 1e-6 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-9)
    return _MultivariateT(mean, torch.linalg.cholesky(covariance + ridge[:, None, None] * torch.eye(dim).double()), df)


class _MultivariateT:
    """Multivariate t with location (B, P) and lower scale matrix (B, P, P)."""

    def __init__(self, mean: Tensor, scale: Tensor, df: float):
        self._mean, self._scale, self._df = mean, scale, df

    def sample(self, shape: tuple[int, ...]) -> Tensor:
        normal = torch.randn(*shape, *self._mean.shape, dtype=self._mean.dtype)
        chi2 = torch.distributions.Chi2(torch.tensor(self._df, dtype=self._mean.dtype))
        spread = (self._df / chi2.sample(normal.shape[:-1])).sqrt().unsqueeze(-1)
        return self._mean + spread * (self._scale @ normal.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        centred = (value - self._mean).unsqueeze(-1)
        scaled = torch.linalg.solve_triangular(self._scale, centred, upper=False).squeeze(-1)
        return log_student_t(scaled.square().sum(-1), self._scale, self._df)


class PosteriorEvidence(ModelProbabilities):
    """Probabilities of models from a fitted posterior of each, with the interface of `ModelPosterior`.

    Args:
        posteriors: One posterior for each of J models, as for `posterior_evidence`.
        log_likelihoods: One likelihood for each.
        priors: One prior over parameters for each.
        model_prior: Positive weights (J,) of the models; equal ones if None.
        num_samples: Draws for each data set and model.
        method: As for `posterior_evidence`.
        num_rounds: As for `posterior_evidence`.
        seed: Seed of the draws; the global generator if None.

    Attributes:
        models: Posterior, log-likelihood and prior of each model.

    Raises:
        ValueError: If there is not one of each for each model.

    Example:
        >>> from torch.distributions import MultivariateNormal
        >>> class Exact:  # posterior of θ ~ N(0, v) given one observation x ~ N(θ, 1); else a fitted one
        ...     def __init__(self, variance):
        ...         self.prior = MultivariateNormal(torch.zeros(1), variance * torch.eye(1))
        ...         self.share = variance / (1 + variance)
        ...
        ...     def belief(self, x):
        ...         return MultivariateNormal(self.share * x, self.share * torch.eye(1))
        ...
        ...     def sample_batched(self, shape, x, **_):
        ...         return self.belief(x).sample(shape)
        ...
        ...     def log_prob_batched(self, theta, x, **_):
        ...         return self.belief(x).log_prob(theta)
        >>> models = [Exact(1.0), Exact(9.0)]
        >>> def log_likelihood(theta, x):
        ...     return torch.distributions.Normal(theta, 1.0).log_prob(x).sum(-1)
        >>> route = PosteriorEvidence(
        ...     models, [log_likelihood] * 2, [model.prior for model in models], num_rounds=1, seed=0
        ... )
        >>> (route.probs(torch.tensor([[0.0], [5.0]]))[:, 1] > 0.5).tolist()
        [False, True]
    """

    def __init__(
        self,
        posteriors: Sequence[Any],
        log_likelihoods: Sequence[Callable[[Tensor, Tensor], Tensor]],
        priors: Sequence[Any],
        model_prior: Any = None,
        num_samples: int = 1000,
        method: Literal["importance", "identity"] = "importance",
        num_rounds: int = 5,
        *,
        seed: int | None = None,
    ):
        lengths = len(posteriors), len(log_likelihoods), len(priors)
        if len(set(lengths)) > 1 or lengths[0] < 2:
            raise ValueError(
                f"one posterior, likelihood and prior is needed for each of two or more models, got {lengths}."
            )
        self.models = list(zip(posteriors, log_likelihoods, priors, strict=True))
        self.num_models = len(self.models)
        self.model_prior = as_log_prior(model_prior, self.num_models).exp()
        self._settings: dict[str, Any] = {
            "num_samples": num_samples,
            "method": method,
            "num_rounds": num_rounds,
            "seed": seed,
        }

    def evidences(self, x: Tensor) -> list[Evidence]:
        """Log-evidences of data sets x (B, *event) under each model, with standard errors and effective sample sizes."""
        return [posterior_evidence(*model, x, **self._settings) for model in self.models]

    def log_evidences(self, x: Tensor) -> Tensor:
        """log p(x | M_j), (B, J), float64."""
        return torch.stack([evidence.log_evidence for evidence in self.evidences(x)], dim=-1)
