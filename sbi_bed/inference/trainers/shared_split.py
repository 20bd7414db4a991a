"""One parting of the simulations, into those trained on and those held out, for several trainings that else differ.

What is held out is chosen by chance, from the same generator as first weights and the order of the data. Members of an
ensemble are to differ in these and yet to be compared on the same held-out simulations, so that choice has its own seed:

- a trainer of this package has `train(split_seed=)`, and the loss of each held-out simulation, `held_out_losses`;
- sbi's trainers choose in `get_dataloaders`, which draws nothing else from torch's generator. Of those of posteriors, −log
  q(θ_i | x_i) of each held-out simulation can be asked of the trained net.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...utils.seeding import seeded

__all__ = ["held_out_losses", "shared_split", "split_rows", "train_on_split"]

_CHUNK = 2**19  # numbers of x that go through a net at once


def split_rows(
    num: int, validation_fraction: float, split_seed: int | None, rows: Tensor | None = None, least: int = 1
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Rows (num,) of simulations in an order of chance, and of these the ones trained on and the ones held out.

    Args:
        num: Number of simulations.
        validation_fraction: Share that is held out.
        split_seed: Seed of the order; drawn like all else if None.
        rows: The order, where a training that was kept goes on.
        least: Fewest simulations to train on.

    Raises:
        ValueError: If there are fewer.
    """
    with seeded(split_seed):
        rows = torch.randperm(num) if rows is None else rows
    num_held_out = max(1, round(validation_fraction * num))
    if num - num_held_out < least:
        raise ValueError(f"simulations are too few to train on and to validate with: {num}.")
    return rows, (rows[num_held_out:], rows[:num_held_out])


def train_on_split(trainer: Any, split_seed: int, settings: dict[str, Any]) -> Any:
    """What `trainer.train(**settings)` returns, with simulations held out by `split_seed`."""
    if "split_seed" in inspect.signature(trainer.train).parameters:
        return trainer.train(**{"split_seed": split_seed, **settings})
    with shared_split(trainer, split_seed):
        return trainer.train(**settings)


@contextmanager
def shared_split(trainer: Any, split_seed: int) -> Iterator[None]:
    """While this lasts, an sbi trainer parts its simulations by `split_seed`; all else comes from the generator as it is."""
    if not hasattr(trainer, "get_dataloaders"):
        yield
        return
    as_it_was = trainer.get_dataloaders

    def get_dataloaders(*args: Any, **kwargs: Any) -> Any:
        with seeded(split_seed):
            return as_it_was(*args, **kwargs)

    trainer.get_dataloaders = get_dataloaders
    try:
        yield
    finally:
        del trainer.get_dataloaders


@torch.no_grad()
def held_out_losses(trainer: Any, net: Any) -> Tensor | None:
    """Loss of each held-out simulation, (N,), float64; None for trainers that do not tell.

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
