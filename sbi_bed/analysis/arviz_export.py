r"""Export of a posterior to ArviZ's `InferenceData`: draws, log prior and log likelihood.

The log likelihood is log p(x | θ) = potential(θ) − log p(θ). For a likelihood posterior, sbi's potential is
log p(x | θ) + log p(θ), so this is exact. For a neural posterior it is log q(θ | x), so this is as exact as q, up to a
constant. Sensitivity to powers of prior and likelihood (`arviz.psens`, `arviz_stats.psense_summary`) needs nothing else.
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
from ..utils.checks import as_finite_tensor, check_count
from ..utils.seeding import seeded
from .style import names_of

__all__ = ["to_arviz"]

_CHAINS = 4  # into which independent draws are cut


def to_arviz(
    posterior: Any,
    x: Tensor | None = None,
    num_samples: int = 4000,
    *,
    parameter_names: Sequence[str] | None = None,
    seed: int | None = None,
    **sample_settings: Any,
) -> Any:
    """Draw from a posterior and export all that ArviZ's checks of sensitivity need.

    Chains of sbi stay chains. Independent draws are cut into four chains of equal length, which `rhat` and `ess` must find
    perfect.

    Args:
        posterior: sbi's posteriors, `likelihood_posterior(...)`, a `DeepEnsemblePosterior` over parameters, or
            `context_posterior.condition_on(context)`.
        x: One data set, (*event) or (1, *event); the posterior's default if None.
        num_samples: Draws in all, a multiple of the number of chains.
        parameter_names: P names; "theta_0", "theta_1", … if None.
        seed: Seed; the global generator if None.
        **sample_settings: Passed on to `posterior.sample`.

    Returns:
        `arviz.InferenceData` with these groups: `posterior`, one variable for each parameter; `log_prior`, the same if
        parameters are independent, or one variable "joint"; `log_likelihood`, one variable "x" for the whole data set (so
        `loo`, which needs one for each observation, does not work); `sample_stats`, with the potential `lp`; and
        `observed_data`.

    Raises:
        ImportError: If ArviZ is not installed.
        TypeError: If the posterior has no prior or no density.
        ValueError: If the number of names is wrong, or `num_samples` is not a multiple of the number of chains.

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
    arviz = _import_arviz()
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
    default = [f"theta_{j}" for j in range(theta.shape[-1])]
    names = names_of(parameter_names, default, "parameter", "parameter_names")
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
    """Log prior density (S,) of each parameter if they are independent; of all together otherwise."""
    factors, parts = None, getattr(prior, "dists", ())
    if isinstance(prior, Independent) and prior.reinterpreted_batch_ndims == 1:
        factors = prior.base_dist.log_prob(theta)
    elif len(parts) == len(names) and all(part.event_shape in ((), (1,)) for part in parts):
        factors = torch.stack([part.log_prob(theta[:, [j]]).reshape(-1) for j, part in enumerate(parts)], -1)
    if factors is not None and factors.shape == theta.shape:
        return dict(zip(names, factors.unbind(-1), strict=True))
    return {"joint": prior.log_prob(theta).reshape(-1)}


def _import_arviz() -> Any:
    try:
        import arviz
    except ImportError as err:
        raise ImportError('to_arviz needs ArviZ: install it with pip install "sbi_bed[arviz]".') from err
    return arviz
