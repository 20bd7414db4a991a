"""Which simulations are held out, and the losses of a trained net for them.

Members of an ensemble differ in their first weights and in the order of the data, but they must hold out the same
simulations to be compared. So which simulations are held out has a seed of its own:

- trainers of this package have `train(split_seed=)`, and the attribute `held_out_losses`;
- sbi's trainers draw the held-out simulations in `get_dataloaders`, which draws nothing else from torch's generator. For
  those of posteriors we compute −log q(θ_i | x_i) of each held-out simulation with the trained net.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...utils.seeding import seeded

__all__ = ["held_out_losses", "split_rows", "train_on_split"]

_CHUNK = 2**19  # numbers of x that go through a net at once


def split_rows(num: int, validation_fraction: float, split_seed: int | None, fewest: int = 1) -> tuple[Tensor, Tensor]:
    """Split simulations at random: rows to train on, and rows that are held out.

    Args:
        num: Number of simulations.
        validation_fraction: Share that is held out.
        split_seed: Seed of the split; drawn from the global generator if None.
        fewest: Fewest simulations to train on.

    Raises:
        ValueError: If fewer are left to train on.
    """
    with seeded(split_seed):
        rows = torch.randperm(num)
    num_held_out = max(1, round(validation_fraction * num))
    if num - num_held_out < fewest:
        raise ValueError(f"simulations are too few to train on and to validate with: {num}.")
    return rows[num_held_out:], rows[:num_held_out]


def train_on_split(trainer: Any, split_seed: int, settings: dict[str, Any]) -> Any:
    """Call `trainer.train(**settings)` with the held-out simulations drawn by `split_seed`; returns what it returns."""
    if "split_seed" in inspect.signature(trainer.train).parameters:
        return trainer.train(**{"split_seed": split_seed, **settings})
    with _split_of_sbi(trainer, split_seed):
        return trainer.train(**settings)


@contextmanager
def _split_of_sbi(trainer: Any, split_seed: int) -> Iterator[None]:
    """Within this block an sbi trainer draws its held-out simulations by `split_seed`, and all else as usual."""
    if not hasattr(trainer, "get_dataloaders"):
        yield
        return
    original = trainer.get_dataloaders

    def get_dataloaders(*args: Any, **kwargs: Any) -> Any:
        with seeded(split_seed):
            return original(*args, **kwargs)

    trainer.get_dataloaders = get_dataloaders
    try:
        yield
    finally:
        del trainer.get_dataloaders


@torch.no_grad()
def held_out_losses(trainer: Any, net: Any) -> Tensor | None:
    """Loss of each held-out simulation, (N,), float64; None if the trainer has no such losses.

    Args:
        trainer: A trainer that has just trained.
        net: What its `train` returned.
    """
    losses = getattr(trainer, "held_out_losses", None)
    if losses is not None:
        return torch.as_tensor(losses).double().cpu()
    from sbi.inference.trainers.npe.npe_base import PosteriorEstimatorTrainer

    if not isinstance(trainer, PosteriorEstimatorTrainer):
        return None
    theta, x, _ = trainer.get_simulations()
    rows, like = trainer.val_indices, next(net.parameters())
    net.eval()
    size = max(1, _CHUNK // max(1, x[0].numel()))
    parts = [net.loss(theta[part].to(like.device), condition=x[part].to(like.device)) for part in rows.split(size)]
    return torch.cat(parts).double().cpu()
