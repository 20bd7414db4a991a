r"""How far conclusions move with the prior, or another choice: contexts and named priors against a baseline.

Over parameters, with draws θ^c of the posterior in context c and θ^0 in the baseline, standardised by the baseline's means
and standard deviations,

    √MMD(c) = √max(0, MMD²_u(θ^c, θ^0)),    shift(c) = mean θ^c − mean θ^0,    ratio(c) = sd θ^c / sd θ^0,

with MMD²_u the unbiased estimate (`mmd.py`) and a bandwidth from the baseline. Two samples of one posterior also differ: the
null is √MMD of R **pairs of independent samples of the baseline**. If c changes nothing, the pair (θ^c, θ^0) is exchangeable
with them, so its rank gives an exact p-value. (A null that resamples one reference calls 42 % of unchanged posteriors
changed.)

This p-value contains Monte Carlo error alone. The error of the net shows in two ways:

- In an ensemble, each pair of the null is of two members, √MMD(c) is the mean over pairs of two members, and the standard
  error of a shift contains the standard deviation of the members' shifts. An error that all members share stays hidden.
- Draws of the baseline with importance weights give the same shift, without the net's answer in context c:

      w(θ) ∝ p(θ | c) / p(θ | c_0),   or with a likelihood   w_c(θ) ∝ p(x | θ) p(θ | c) / q(θ | x, c_0),

  where the second corrects the baseline, too. Where the prior of c is wider than that of c_0, draws of c are carried to the
  baseline instead. A Pareto k̂ says whether the weights are reliable (`pareto_smoothing.py`).
  Named priors, on which no net was trained, are compared by such weights alone.

Over models, KL(p(M | x, c) ‖ p(M | x, c_0)) = Σ_j p_j (log p_j − log p⁰_j) for each data set. After arXiv 2310.11122.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...simulators.sensitivity.contexts import Choice, Contexts
from ...utils.checks import as_finite_tensor, check_count
from ...utils.packing.sizes import watch_sizes
from ...utils.seeding import seeded
from ...utils.warn_user import warn_user
from ..mmd import mmd_squared
from ..models.recovery import kl_to_exact
from .pareto_smoothing import largest_pareto_k
from .prior_sensitivity_results import ModelSensitivity, PriorSensitivity
from .reweighting import Baseline, weighted_change

__all__ = ["prior_sensitivity"]

_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_WEIGHTED, _FOR_MOMENTS = 20, 5  # draws with weights, and for moments in a context, for each draw that is compared


def prior_sensitivity(
    posterior: Any,
    x: Any = None,
    contexts: Any = None,
    *,
    priors: Mapping[str, Any] | None = None,
    log_likelihood: Callable[..., Tensor] | None = None,
    baseline: Any = None,
    num_samples: int = 500,
    num_null: int = 100,
    names: Sequence[str] | None = None,
    seed: int | None = None,
) -> PriorSensitivity | ModelSensitivity:
    """Compare the posterior in some contexts, or with other priors, with that in a baseline.

    Args:
        posterior: `ContextPosterior`, or an ensemble of them; over models `ContextModelPosterior`. For `priors` alone, any
            posterior with a prior and draws: sbi's, `likelihood_posterior(...)`, or an ensemble.
        x: One data set, (*event) or (1, *event); over models one or several, (B, *event). The posterior's default if None.
        contexts: Contexts, (G, C).
        priors: Name → distribution of vectors (P,). The posterior with this prior is found by importance weights, without
            training. Where k̂ forbids them, the result is NaN, with one warning.
        log_likelihood: Callable (theta (S, P), x (*event)) → log p(x | θ) (S,), nats; with a third argument it also gets
            the context's parts by name. Importance weights with it check shifts in contexts, the baseline included. Without
            it weights check shifts in contexts that differ only in powers of a `PowerScaledPrior`.
        baseline: Context (C,). If None, 1 for each range that contains 1 (the analyst's own prior if the context is γ) or
            its middle, and the first option of each choice.
        num_samples: Draws from each posterior; time and memory grow with their square. Weights use 20 times as many.
        num_null: Number R of pairs for the null.
        names: Names of the parameters, or of the models; "θ0", … or "M0", … if None.
        seed: Seed; the global generator if None.

    Returns:
        `PriorSensitivity`, or `ModelSensitivity` over models; `str` of it is a table.

    Raises:
        TypeError: If contexts or priors are given that this posterior cannot take, or a prior is not a distribution.
        ValueError: If a shape does not fit, contexts or baseline lie outside the range of training, the likelihood is not
            finite, or the number of names is wrong.

    Warns:
        UserWarning: If weights with a named prior are not reliable, they contradict the net, or the error of a single net
            is not known, because there are no weights or they are not reliable.

    Example:
        >>> class Exact:  # of x ~ N(θ, 1) with θ ~ N(0, 1/γ), in place of a `ContextPosterior`
        ...     def sample_batched(self, sample_shape, x, context):
        ...         return x / (1 + context) + torch.randn(*sample_shape, *x.shape) / (1 + context).sqrt()
        >>> found = prior_sensitivity(Exact(), torch.tensor([4.0]), [[0.5], [1.0], [2.0]], seed=0)
        >>> found.p_value < 0.05
        tensor([ True, False,  True])
        >>> exact = 4 * torch.tensor([1 / 1.5 - 1 / 2, 0.0, 1 / 3 - 1 / 2]) * 2**0.5  # in sd of γ = 1
        >>> bool(((found.mean_shift[:, 0] - exact).abs() < 0.2).all())
        True
    """
    if contexts is None and not priors:
        raise ValueError("give contexts= (G, C), or priors={name: distribution}, or both.")
    over_models = hasattr(posterior, "log_bayes_factor") and not hasattr(posterior, "sample_batched")
    if over_models and (contexts is None or priors or log_likelihood is not None):
        raise TypeError("over models give contexts=; priors= and log_likelihood= are for posteriors over parameters.")
    known = _known_contexts(posterior)
    if contexts is not None:
        contexts = as_finite_tensor(contexts, "contexts").float()
        if contexts.ndim != 2 or len(contexts) == 0:
            raise ValueError(f"contexts must have shape (G, C), got {tuple(contexts.shape)}.")
        if known is not None:
            contexts = known.check_inside(contexts, "contexts")
    width = known.dim if known is not None else 0 if contexts is None else contexts.shape[1]
    baseline = _baseline(baseline, known, width)
    columns = tuple(f"context[{i}]" for i in range(width)) if known is None else tuple(known.columns)
    with seeded(seed), torch.no_grad(), watch_sizes():
        if over_models:
            return _of_models(posterior, x, contexts, columns, baseline, names)  # pyright: ignore[reportArgumentType]
        num, pairs = check_count(num_samples, "num_samples", 20), check_count(num_null, "num_null", 20)
        source = Baseline(posterior, x, baseline, log_likelihood, known)
        return _of_parameters(source, contexts, columns, dict(priors or {}), num, pairs, names)


# ---- over parameters


def _of_parameters(
    source: Baseline,
    contexts: Tensor | None,
    columns: tuple[str, ...],
    priors: dict[str, Any],
    num: int,
    num_null: int,
    names: Sequence[str] | None,
) -> PriorSensitivity:
    pool = source.draws(num * _WEIGHTED)[:, 0]
    names = _check_names(names, pool.shape[-1], "θ", "parameter")
    moments = pool.mean(0), pool.std(0).clamp_min(torch.finfo(pool.dtype).tiny)
    scaled = (pool - moments[0]) / moments[1]
    parts = [] if contexts is None else [_in_contexts(source, contexts, pool, moments, num, num_null)]
    parts += [_with_prior(source, pool, scaled, prior, name) for name, prior in priors.items()]
    is_ensemble = len(source.members) > 1 and contexts is not None
    spread = f"Monte Carlo error and the spread of {len(source.members)} members"
    found = PriorSensitivity(
        contexts=pool.new_zeros(0, len(source.baseline)) if contexts is None else contexts,
        columns=columns,
        baseline=source.baseline,
        priors=tuple(priors),
        null=parts[0].pop("null", pool.new_zeros(0)),
        error_sources=spread if is_ensemble else "Monte Carlo error alone, without the error of the net",
        levels=_LEVELS,
        names=names,
        **{key: torch.cat([part[key] for part in parts]) for key in parts[0]},
    )
    _warn(found, len(pool), is_ensemble)
    return found


def _in_contexts(
    source: Baseline, contexts: Tensor, pool: Tensor, moments: tuple[Tensor, Tensor], num: int, num_null: int
) -> dict[str, Tensor]:
    """Values for G contexts, by name, and the null."""
    (mean, sd), num_members = moments, len(source.members)
    levels, scaled = torch.tensor(_LEVELS, dtype=torch.float64), (pool - mean) / sd
    bandwidth = float(torch.pdist(scaled[:num]).median())

    def sample(in_contexts: Tensor | None = None, member: Any = None, times: int = 1) -> Tensor:
        return (source.draws(num * times, in_contexts, member) - mean) / sd

    own = [sample(None, member)[:, 0] for member in source.members]
    of_members = [sample(contexts, member) for member in source.members]
    draws = sample(contexts, times=_FOR_MOMENTS)
    variance = draws.var(0) / len(draws) + 1 / len(scaled)
    if num_members > 1:
        shifts = [moved.mean(0) - still.mean(0) for moved, still in zip(of_members, own, strict=True)]
        variance = variance + torch.stack(shifts).var(0)
    root = [
        torch.stack([_root_mmd(one, own[(m + 1) % num_members], bandwidth) for one in moved.unbind(1)])
        for m, moved in enumerate(of_members)
    ]
    root = torch.stack(root).mean(0)
    pairs = [source.two_members() for _ in range(num_null)]
    parts = []
    for m, member in enumerate(source.members):  # all draws of a member in one call
        count = sum(pair.count(m) for pair in pairs)
        drawn = source.draws(num * count, member=member)[:, 0] if count else pool[:0]
        parts.append(iter(((drawn - mean) / sd).split(num)))
    null = torch.stack([_root_mmd(next(parts[one]), next(parts[other]), bandwidth) for one, other in pairs])
    weighted = [source.weighted_change_to(context, pool) for context in contexts]
    return {
        "root_mmd": root,
        "null": null,
        "p_value": (1 + (null >= root.unsqueeze(-1)).sum(-1)).double() / (1 + num_null),
        "mean_shift": draws.mean(0),
        "mean_shift_stderr": variance.sqrt(),
        "sd_ratio": draws.std(0),
        "quantile_shift": draws.quantile(levels, dim=0).transpose(0, 1) - scaled.quantile(levels, dim=0),
        "weighted_shift": torch.stack([change.mean_shift for change in weighted]),
        "weighted_shift_stderr": torch.stack([change.stderr for change in weighted]),
        "pareto_k": torch.tensor([change.pareto_k for change in weighted], dtype=torch.float64),
    }


def _with_prior(source: Baseline, pool: Tensor, scaled: Tensor, prior: Any, name: str) -> dict[str, Tensor]:
    """Values for one named prior, by name, each with one row."""
    before = source.log_weights(pool, source.baseline) if source.has_likelihood else None
    change = weighted_change(scaled, source.log_weights_of_prior(pool, prior, name), before, _LEVELS)
    nan = torch.full((1,), torch.nan, dtype=torch.float64)
    shift, stderr = change.mean_shift.unsqueeze(0), change.stderr.unsqueeze(0)
    return {
        "null": scaled.new_zeros(0),
        "root_mmd": nan,
        "p_value": nan,
        "mean_shift": shift,
        "mean_shift_stderr": stderr,
        "sd_ratio": change.sd_ratio.unsqueeze(0),
        "quantile_shift": change.quantile_shift.unsqueeze(0),
        "weighted_shift": shift,
        "weighted_shift_stderr": stderr,
        "pareto_k": nan.new_tensor([change.pareto_k]),
    }


def _warn(found: PriorSensitivity, num: int, is_ensemble: bool) -> None:
    """One warning for priors that weights do not reach, and for contexts where they contradict the net, or cannot tell."""
    problems, first = [], len(found.contexts)
    for name, k in zip(found.priors, found.pareto_k[first:].tolist(), strict=True):
        if k != k:
            problems.append(
                f"over 1 % of the prior {name!r} lies where the posterior's own prior is 0, which weights cannot reach: NaN"
            )
        elif not k < largest_pareto_k(num):
            problems.append(f"weights for the prior {name!r} are not reliable (k̂ = {k:.2f}): NaN")
    for g, label in enumerate(found.labels[:first]):
        for j in found.disagrees[g].nonzero().flatten().tolist():
            problems.append(
                f"at {label} the net moves the mean of {found.names[j]} by {float(found.mean_shift[g, j]):+.2f} ± "
                f"{float(found.mean_shift_stderr[g, j]):.2f} sd, importance weights by "
                f"{float(found.weighted_shift[g, j]):+.2f} ± {float(found.weighted_shift_stderr[g, j]):.2f}"
            )
    unknown = [] if is_ensemble else found.unchecked[:first].nonzero().flatten().tolist()
    if unknown:
        named = "; ".join(found.labels[g] for g in unknown[:2]) + ("; …" if len(unknown) > 2 else "")
        problems.append(
            f"p-values and ± contain Monte Carlo error alone: nothing tells the error of a single net at {len(unknown)} of "
            f"{first} contexts ({named}), which importance weights do not check; give log_likelihood="
        )
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        warn_user(f"prior_sensitivity: {shown}. Train with such priors or longer, or use an ensemble.")


# ---- over models


def _of_models(
    posterior: Any, x: Any, contexts: Tensor, columns: tuple[str, ...], baseline: Tensor, names: Sequence[str] | None
) -> ModelSensitivity:
    reference = posterior.log_probs(x, baseline)
    names = _check_names(names, reference.shape[-1], "M", "model")
    logs = torch.stack([posterior.log_probs(x, context) for context in contexts])
    kl = torch.stack([kl_to_exact(each, reference) for each in logs])
    members_sd = torch.full_like(logs, torch.nan)
    if len(getattr(getattr(posterior, "posterior", None), "members", [])) > 1:
        members_sd = torch.stack([posterior.condition_on(context).spread(x) for context in contexts])
    return ModelSensitivity(contexts, columns, baseline, logs.exp(), reference.exp(), kl, members_sd, names)


# ---- checks


def _known_contexts(posterior: Any) -> Contexts | None:
    known = getattr(posterior, "contexts", None) or getattr(getattr(posterior, "members", [None])[0], "contexts", None)
    return known if isinstance(known, Contexts) else None


def _baseline(given: Any, known: Contexts | None, width: int) -> Tensor:
    """The baseline (C,), inside the contexts where these are known."""
    if given is not None:
        baseline = as_finite_tensor(given, "baseline", width).float()
        return baseline if known is None else known.check_inside(baseline, "baseline")
    if known is None:
        return torch.ones(width)
    parts = []
    for kind in known.parts.values():
        if isinstance(kind, Choice):
            parts.append(torch.eye(kind.dim)[0])
        else:
            middle = math.sqrt(kind.low * kind.high) if kind.in_logs else 0.5 * (kind.low + kind.high)
            parts.append(torch.full((kind.dim,), 1.0 if kind.low <= 1 <= kind.high else middle))
    return torch.cat(parts)


def _check_names(names: Sequence[str] | None, num: int, letter: str, what: str) -> tuple[str, ...]:
    names = tuple(f"{letter}{j}" for j in range(num)) if names is None else tuple(names)
    if len(names) != num:
        raise ValueError(f"names must be {num} names, one for each {what}, got {names}.")
    return names


def _root_mmd(sample: Tensor, reference: Tensor, bandwidth: float) -> Tensor:
    return mmd_squared(sample, reference, bandwidth).clamp_min(0).sqrt()
