"""Data of competing models: model index ~ p(M), x ~ p(x | M), the training data of model comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor, check_count
from ...utils.parallel import run_seeded
from .model_family import ModelFamily, as_log_prior

__all__ = ["simulate_models"]


def simulate_models(
    models: ModelFamily | Sequence[Callable[[int], Tensor]],
    num_simulations: int,
    model_prior: Any = None,
    *,
    batch_size: int = 1000,
    seed: int | None = None,
    num_workers: int = 1,
    show_progress_bars: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw a model for each data set, then parameters and data of that model.

    Each batch has a seed of its own, so that the numbers are the same whoever simulates it (see `run_seeded`). They depend
    on `batch_size`.

    Args:
        models: J callables num -> packed x (num, ..., features + 1), each with parameters drawn from the model's prior;
            or a `ModelFamily`, which has them.
        num_simulations: Number N of data sets.
        model_prior: Positive weights (J,) of the models; equal ones if None.
        batch_size: Data sets simulated at a time; the last batch may be smaller.
        seed: Seed; the global generator if None.
        num_workers: Processes; see `run_seeded`.
        show_progress_bars: Whether to show progress.

    Returns:
        model_index (N,), integers below J, and x (N, ..., features + 1), float32: data sets of different sizes are padded
        with zeros, mask included, to the largest.

    Raises:
        ValueError: If there are no models, the prior is not over them, or a model returns data that are not finite, not
            `num` of them, or of other levels or features than another's.

    Example:
        >>> from sbi_bed.simulators import NestedNormal
        >>> small, large = NestedNormal(5, 10), NestedNormal(8, 10)
        >>> model_index, x = simulate_models([small.models[0], large.models[1]], 100, model_prior=[0.3, 0.7], seed=0)
        >>> model_index.shape, x.shape, x[model_index == 0, 5:].any().item()
        (torch.Size([100]), torch.Size([100, 8, 10, 2]), False)
    """
    callables = list(models.models if isinstance(models, ModelFamily) else models)
    if not callables:
        raise ValueError("models must be a list of callables num -> x, got none.")
    for position, model in enumerate(callables):
        if not callable(model):
            raise TypeError(f"models[{position}] must be a callable num -> x, got {model!r}.")
    weights = as_log_prior(model_prior, len(callables)).exp()
    total, size = check_count(num_simulations, "num_simulations"), check_count(batch_size, "batch_size")
    sizes = [min(size, total - start) for start in range(0, total, size)]
    batches = run_seeded(
        partial(_simulate_batch, callables, weights),
        sizes,
        seed,
        num_workers,
        description="simulations",
        show_progress_bars=show_progress_bars,
    )
    index, parts = zip(*batches, strict=True)
    shapes = [x.shape[1:] for x in parts]
    shape = _common_shape(shapes)
    # One allocation for all, filled batch by batch: x can be large.
    x = torch.zeros(total, *shape)
    for start, part in zip(range(0, total, size), parts, strict=True):
        _corner(x[start : start + len(part)], part.shape[1:]).copy_(part)
    return torch.cat(index), x


def _simulate_batch(models: list[Callable[[int], Tensor]], weights: Tensor, num: int) -> tuple[Tensor, Tensor]:
    model_index = torch.multinomial(weights, num, replacement=True)
    parts: dict[int, Tensor] = {}
    for j, model in enumerate(models):
        count = int((model_index == j).sum())
        if count:
            parts[j] = as_finite_tensor(model(count), f"the data of models[{j}]").float()
            if parts[j].ndim < 2 or len(parts[j]) != count:
                raise ValueError(
                    f"models[{j}] must return x of shape (num, ..., features + 1); for num = {count} it returned "
                    f"{tuple(parts[j].shape)}."
                )
    x = torch.zeros(num, *_common_shape([part.shape[1:] for part in parts.values()]))
    for j, part in parts.items():
        rows = torch.zeros(len(part), *x.shape[1:])
        _corner(rows, part.shape[1:]).copy_(part)
        x[model_index == j] = rows
    return model_index, x


def _common_shape(shapes: list[torch.Size]) -> tuple[int, ...]:
    first = shapes[0]
    for shape in shapes:
        if len(shape) != len(first) or shape[-1] != first[-1]:
            raise ValueError(
                f"models must return data of the same levels and features, got shapes (num, ...) with {tuple(first)} and "
                f"{tuple(shape)}."
            )
    return tuple(max(size) for size in zip(*shapes, strict=True))


def _corner(x: Tensor, shape: torch.Size) -> Tensor:
    """The part of x (n, ...) in which smaller data sets (n, *shape) go."""
    return x[(slice(None), *(slice(0, size) for size in shape))]
