r"""Any posterior as ArviZ's `InferenceData`: draws, log prior and log likelihood, for its plots, summaries and checks.

The log likelihood is log p(x | θ) = potential(θ) − log p(θ). sbi's potential of a likelihood posterior is log p(x | θ) +
log p(θ), so that this is exact; that of a neural posterior is log q(θ | x), so that it is exact up to a constant, if q is.
Sensitivity to powers of prior and likelihood (`arviz.psens`, `arviz_stats.psense_summary`) needs no more than that.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

from .._version import __version__
from ..inference.posteriors.deep_ensemble import prior_of
from ..utils.arviz import import_arviz
from ..utils.checks import as_finite_tensor, check_count
from ..utils.seeding import seeded

__all__ = ["to_arviz"]

_CHAINS = 4  # of independent draws, which have none


def to_arviz(
    posterior: Any,
    x: Tensor | None = None,
    num_samples: int = 4000,
    *,
    parameter_names: Sequence[str] | None = None,
    seed: int | None = None,
    **sample_settings: Any,
) -> Any:
    """Draw from a posterior and hand over all that ArviZ's checks of sensitivity need.

    Where sbi ran several chains they stay chains. Independent draws are put into four of equal length, so that `rhat` and
    `ess` of them have nothing to find.

    Args:
        posterior: sbi's posteriors, `likelihood_posterior(...)`, a `DeepEnsemblePosterior` over parameters, or
            `context_posterior.condition_on(context)`.
        x: One data set, (*event) or (1, *event); the posterior's default one if None.
        num_samples: Draws in all, a multiple of the number of chains.
        parameter_names: P names; "theta_0", "theta_1", … if None.
        seed: Seed; the global generator if None.
        **sample_settings: Passed on to `posterior.sample`.

    Returns:
        `arviz.InferenceData` with groups `posterior`, one variable for each parameter; `log_prior`, likewise where
        parameters are independent, else one variable "joint"; `log_likelihood`, one variable "x" of the whole data set, so
        that `loo`, which needs each observation's, is none; `sample_stats`, `lp` the potential; and `observed_data`.

    Raises:
        ImportError: If ArviZ is not installed.
        TypeError: If the posterior tells neither prior nor density.
        ValueError: If there is not one name for each parameter, or `num_samples` is no multiple of the chains.

    Example:
        >>> from sbi_bed.inference import likelihood_posterior
        >>> from sbi_bed.simulators import HyperbolicDiscounting
        >>> history = torch.tensor([[50.0, 30.0, 1.0, 1.0], [50.0, 300.0, 0.0, 1.0]])
        >>> posterior = likelihood_posterior(HyperbolicDiscounting(), history, sample_with="importance")
        >>> data = to_arviz(posterior, num_samples=400, parameter_names=["log_k", "alpha"], seed=0)
        >>> list(data.posterior.data_vars), dict(data.posterior.sizes)
        (['log_k', 'alpha'], {'chain': 4, 'draw': 100})
        >>> import arviz
        >>> moved = arviz.psens(data)  # how far the prior moves each parameter
        >>> list(moved.data_vars)
        ['log_k', 'alpha']
    """
    arviz = import_arviz("to_arviz")
    prior = prior_of(posterior)
    if prior is None or not (hasattr(posterior, "potential") or hasattr(posterior, "log_prob")):
        raise TypeError(f"to_arviz needs a posterior with a prior and a density, got {type(posterior).__name__}.")
    num_chains = getattr(posterior, "num_chains", None)
    num_chains = num_chains if isinstance(num_chains, int) else _CHAINS
    if check_count(num_samples, "num_samples") % num_chains:
        raise ValueError(f"num_samples must be a multiple of the {num_chains} chains, got {num_samples}.")
    sampler = getattr(posterior, "members", [posterior])[0].sample
    if "show_progress_bars" in inspect.signature(sampler).parameters:
        sample_settings = {"show_progress_bars": False, **sample_settings}
    with seeded(seed):
        theta = posterior.sample((num_samples,), x=x, **sample_settings).detach()
    names = [f"theta_{j}" for j in range(theta.shape[-1])] if parameter_names is None else list(parameter_names)
    if len(names) != theta.shape[-1]:
        raise ValueError(f"parameter_names must be {theta.shape[-1]} names, one for each parameter, got {names}.")
    log_prior = _log_prior(prior, theta, names)
    density = posterior.potential if hasattr(posterior, "potential") else posterior.log_prob
    with torch.no_grad():
        potential = as_finite_tensor(density(theta, x=x), "the density of draws").reshape(-1)
    log_likelihood = potential - torch.stack(list(log_prior.values())).sum(0)

    def in_chains(values: Tensor) -> Any:
        return values.reshape(num_chains, -1).double().cpu().numpy()

    data = x if x is not None else getattr(posterior, "default_x", None)
    exported = arviz.from_dict(
        posterior={name: in_chains(theta[:, j]) for j, name in enumerate(names)},
        log_likelihood={"x": in_chains(log_likelihood)},
        sample_stats={"lp": in_chains(potential)},
        observed_data=None if data is None else {"x": torch.as_tensor(data).detach().cpu().numpy()},
        attrs={"inference_library": "sbi_bed", "inference_library_version": __version__},
    )
    exported.add_groups(log_prior={name: in_chains(values) for name, values in log_prior.items()})
    return exported


def _log_prior(prior: Any, theta: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Log density (S,) of each parameter's prior where they are independent, of all together else."""
    factors, parts = None, getattr(prior, "dists", ())
    if isinstance(prior, Independent) and prior.reinterpreted_batch_ndims == 1:
        factors = prior.base_dist.log_prob(theta)
    elif len(parts) == len(names) and all(part.event_shape in ((), (1,)) for part in parts):
        factors = torch.stack([part.log_prob(theta[:, [j]]).reshape(-1) for j, part in enumerate(parts)], -1)
    if factors is not None and factors.shape == theta.shape:
        return dict(zip(names, factors.unbind(-1), strict=True))
    return {"joint": prior.log_prob(theta).reshape(-1)}
