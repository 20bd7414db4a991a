"""Training data of `ContextNPE`: context ~ p(c), θ ~ p(θ | c), x ~ p(x | θ, c)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor, check_count
from ...utils.packing.contexts import pack_context, unpack_context
from ...utils.parallel import run_seeded
from ...utils.seeding import seeded
from ..models.simulate_models import simulate_models
from .contexts import Choice, Contexts, prior_of_context
from .power_scaled_prior import PowerScaledPrior

__all__ = ["sample_prior_in_contexts", "simulate_models_with_context", "simulate_with_context"]


def simulate_with_context(
    simulator: Callable[..., Tensor] | Sequence[Callable[[Tensor], Tensor]],
    prior: Any,
    num_simulations: int,
    contexts: Contexts | None = None,
    *,
    batch_size: int = 1000,
    seed: int | None = None,
    num_workers: int = 1,
    show_progress_bars: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a context for each simulation, parameters from the prior of that context, and data.

    Each batch has its own seed, so the result does not depend on the number of processes (see `run_seeded`). It depends on
    `batch_size`.

    Args:
        simulator: Callable theta (B, P) → x (B, ...), such as a `PolicySimulator`. A callable with a second argument gets
            the context there, as a dict of parts by name, (B, dim of the part) each. Or a list of callables of theta, one
            for each option of the only `Choice` in the contexts.
        prior: `PowerScaledPrior`; an object with `condition(context)`, contexts (B, C) → distribution; or a distribution.
        num_simulations: Number N of simulations.
        contexts: Distribution of contexts; for a `PowerScaledPrior`, γ in [0.5, 2] if None.
        batch_size: Simulations at a time; the last batch may be smaller.
        seed: Seed; the global generator if None.
        num_workers: Processes; see `run_seeded`.
        show_progress_bars: Whether to show progress.

    Returns:
        theta (N, P), x (N, ...) and context (N, C), float32.

    Raises:
        TypeError: If there are no contexts, or the simulator is not callable.
        ValueError: If the number of simulators is not that of the options, or theta or x is not finite or has another
                number of rows than the contexts, or powers in the contexts are not proper for the prior.

    Example:
        >>> from torch.distributions import MultivariateNormal
        >>> prior = PowerScaledPrior(MultivariateNormal(torch.zeros(3), torch.eye(3)))
        >>> theta, x, context = simulate_with_context(lambda theta: theta + torch.randn_like(theta), prior, 100, seed=0)
        >>> theta.shape, x.shape, context.shape
        (torch.Size([100, 3]), torch.Size([100, 3]), torch.Size([100, 3]))
    """
    if contexts is None:
        if not isinstance(prior, PowerScaledPrior):
            raise TypeError(
                "without contexts=Contexts(...) the prior must be a PowerScaledPrior, whose powers are then drawn; got "
                f"{prior!r}."
            )
        contexts = Contexts.power_scaling(prior)
    if not isinstance(contexts, Contexts):
        raise TypeError(f"contexts must be Contexts(...), the distribution of contexts, got {contexts!r}.")
    contexts.check_powers(prior)
    simulate = partial(_simulate_batch, _of_theta_and_parts(simulator, contexts), prior, contexts)
    total, size = check_count(num_simulations, "num_simulations"), check_count(batch_size, "batch_size")
    sizes = [min(size, total - start) for start in range(0, total, size)]
    batches = run_seeded(
        simulate, sizes, seed, num_workers, description="simulations", show_progress_bars=show_progress_bars
    )
    theta, x, drawn = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return theta, x, drawn


def simulate_models_with_context(
    models: Sequence[Callable[[dict[str, Tensor]], Tensor]],
    num_simulations: int,
    contexts: Contexts,
    model_prior: Any = None,
    **settings: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Data sets of competing models, each in its own context.

    Args:
        models: J callables, such as `NestedNormal.scaled_models`. Each takes the parts of contexts by name, (num, dim of
            the part), draws parameters from its prior in these contexts, and returns packed x (num, ..., features + 1). All
            data sets must have the same shape: pad them.
        num_simulations: Number N of data sets.
        contexts: Distribution of contexts.
        model_prior: Positive weights (J,) of the models; equal if None.
        **settings: `batch_size`, `seed`, `num_workers` and `show_progress_bars`, as for `simulate_models`.

    Returns:
        model_index (N,), x (N, ..., features + 1) and context (N, C).

    Raises:
        TypeError: If `contexts` is not a `Contexts`.
        ValueError: As for `simulate_models`.

    Example:
        >>> from sbi_bed.simulators import LogUniform, NestedNormal
        >>> models = NestedNormal(5, 10).scaled_models
        >>> contexts = Contexts(gamma=LogUniform(0.1, 10.0))
        >>> model_index, x, context = simulate_models_with_context(models, 100, contexts, seed=0)
        >>> x.shape, context.shape
        (torch.Size([100, 5, 10, 2]), torch.Size([100, 1]))
    """
    if not isinstance(contexts, Contexts):
        raise TypeError(f"contexts must be Contexts(...), the distribution of contexts, got {contexts!r}.")
    with seeded(0):
        event_shape = tuple(models[0](contexts.split(contexts.sample((1,)))).shape[1:])
    callables = [partial(_packed_data, model, contexts) for model in models]
    model_index, packed = simulate_models(callables, num_simulations, model_prior, **settings)
    return model_index, *unpack_context(packed, event_shape)


def sample_prior_in_contexts(prior: Any, context: Tensor) -> Tensor:
    """One draw of theta, (B, P), for each context (B, C); `prior` as for `simulate_with_context`.

    Raises:
        ValueError: If the prior does not give one draw for each context.
    """
    distribution = prior_of_context(prior, context)
    theta = distribution.sample() if tuple(distribution.batch_shape) == (len(context),) else None
    if theta is None and not distribution.batch_shape and not hasattr(prior, "condition"):
        theta = distribution.sample((len(context),))
    if theta is None or theta.ndim != 2 or len(theta) != len(context):
        raise ValueError(
            f"prior.condition(context) must give a distribution of batch shape (B,) and event shape (P,) for contexts "
            f"(B, C) = {tuple(context.shape)}, got batch shape {tuple(distribution.batch_shape)} and event shape "
            f"{tuple(distribution.event_shape)}."
        )
    return theta


def _simulate_batch(
    simulate: Callable[..., Tensor], prior: Any, contexts: Contexts, num: int
) -> tuple[Tensor, Tensor, Tensor]:
    context = contexts.sample((num,))
    theta = as_finite_tensor(sample_prior_in_contexts(prior, context), "theta").float()
    x = as_finite_tensor(simulate(theta, contexts.split(context)), "x").float()
    if x.ndim < 2 or len(x) != num:
        raise ValueError(
            f"simulator must return x (B, ...) for theta (B, P) = {tuple(theta.shape)}, got {tuple(x.shape)}."
        )
    return theta, x, context


def _packed_data(model: Callable[[dict[str, Tensor]], Tensor], contexts: Contexts, num: int) -> Tensor:
    context = contexts.sample((num,))
    return pack_context(model(contexts.split(context)), context)


def _of_theta_and_parts(simulator: Any, contexts: Contexts) -> Callable[..., Any]:
    """One callable (theta, parts of the context) → x, from one simulator or several."""
    if isinstance(simulator, (list, tuple)):
        choices = {name: part for name, part in contexts.parts.items() if isinstance(part, Choice)}
        if len(choices) != 1 or len(simulator) != next(iter(choices.values())).dim:
            raise ValueError(
                f"{len(simulator)} simulators need contexts with one Choice of as many options, got {contexts.parts}."
            )
        return partial(_choose, list(simulator), next(iter(choices)))
    if not callable(simulator):
        raise TypeError(f"simulator must be a callable theta -> x, or a list of them, got {simulator!r}.")
    takes_parts = _num_arguments(simulator) >= 2
    return simulator if takes_parts else partial(_of_theta_alone, simulator)  # pyright: ignore[reportArgumentType]


def _of_theta_alone(simulator: Callable[[Tensor], Tensor], theta: Tensor, parts: dict[str, Tensor]) -> Tensor:
    return simulator(theta)


def _choose(simulators: list[Callable[[Tensor], Tensor]], name: str, theta: Tensor, parts: dict[str, Tensor]) -> Tensor:
    chosen, x = parts[name].argmax(-1), None
    for index, simulator in enumerate(simulators):
        rows = chosen == index
        if bool(rows.any()):
            found = simulator(theta[rows])
            x = found.new_zeros(len(theta), *found.shape[1:]) if x is None else x
            x[rows] = found
    return theta.new_zeros(0) if x is None else x


def _num_arguments(function: Callable[..., Any]) -> int:
    """Number of positional arguments without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    return sum(p.kind in positional and p.default is p.empty for p in parameters)
