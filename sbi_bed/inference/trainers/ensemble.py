"""Train the same net several times, from different weights, side by side."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ...utils.checks import check_count
from ...utils.parallel import run_seeded
from ..posteriors.deep_ensemble import DeepEnsemblePosterior

__all__ = ["train_ensemble"]


def train_ensemble(
    build_trainer: Callable[..., Any],
    num_members: int,
    seed: int | None = None,
    num_workers: int = 1,
    *,
    train_settings: dict[str, Any] | None = None,
    show_progress_bars: bool = False,
) -> DeepEnsemblePosterior:
    """Build, train and gather `num_members` posteriors.

    Each member is built and trained on one thread, under a seed of its own, in whichever process: the same seed gives the
    same ensemble for any `num_workers`.

    Args:
        build_trainer: (number of the member), or () → a trainer that holds its simulations and has yet to be trained: it
            has `train` and `build_posterior`, as sbi's and `ModelComparison` have. Build the net inside, so that each member
            has weights of its own. What it returns may also be a posterior, for trainings of another form.
        num_members: Number of members.
        seed: Seed of the whole ensemble; the global generator if None.
        num_workers: Processes, −1 for one a core; an active `joblib.parallel_config` can spread them over machines.
        train_settings: Keywords for each `train`.
        show_progress_bars: Whether to show progress, counted as members are handed out.

    Returns:
        The ensemble; its members lack nothing that they would have alone.

    Raises:
        TypeError: If `build_trainer` returns neither a trainer nor a posterior.
        ValueError: If `num_members` is below 1.

    Example:
        >>> import torch
        >>> from sbi_bed.inference import ModelComparison
        >>> index = torch.arange(100) % 2
        >>> x = torch.randn(100, 3) + 2 * index.unsqueeze(-1)
        >>> def build():
        ...     return ModelComparison(2, torch.nn.Linear(3, 4), show_progress_bars=False).append_simulations(index, x)
        >>> ensemble = train_ensemble(build, num_members=2, seed=0, train_settings={"max_num_epochs": 5})
        >>> ensemble.probs(x[:5]).shape
        torch.Size([5, 2])
    """
    check_count(num_members, "num_members")
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    takes_number = any(p.kind in positional for p in inspect.signature(build_trainer).parameters.values())

    def train(number: int) -> Any:
        trainer = build_trainer(number) if takes_number else build_trainer()
        if hasattr(trainer, "train") and hasattr(trainer, "build_posterior"):
            trainer.train(**(train_settings or {}))
            return trainer.build_posterior()
        if hasattr(trainer, "sample"):
            return trainer
        raise TypeError(f"build_trainer must return a trainer with train() and build_posterior(), got {trainer!r}.")

    settings = {"description": "training members", "show_progress_bars": show_progress_bars}
    return DeepEnsemblePosterior(run_seeded(train, range(num_members), seed, num_workers, **settings))
