"""Shards of a batch: one training in several processes, each with a part of every batch.

`torchrun --nproc-per-node=2 script.py` starts the same script twice and describes the group in environment variables.
Shard k of step s draws its random numbers from a seed made of (seed, s, k), in whichever process it runs. So one process
that takes all shards in turn and several processes that take one each sum the same gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, distributed

__all__ = ["Shards", "join_processes"]


def join_processes(device: torch.device) -> tuple[int, int]:
    """(rank, number of processes); joins the group that `torchrun` describes, if any, and if that was not done before."""
    if not distributed.is_available():
        return 0, 1
    if not distributed.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "MASTER_ADDR" not in os.environ:
            return 0, 1
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return distributed.get_rank(), distributed.get_world_size()


class Shards:
    """The shards of each batch, and which of them this process takes.

    Args:
        num_shards: Number of shards; one for each process if None.
        device: Where the training runs.

    Raises:
        ValueError: If the shards cannot be dealt out evenly.
    """

    def __init__(self, num_shards: int | None, device: torch.device):
        self.rank, self.num_processes = join_processes(device)
        self.num_shards = self.num_processes if num_shards is None else num_shards
        if self.num_shards % self.num_processes:
            raise ValueError(f"{self.num_shards} shards cannot be dealt out to {self.num_processes} processes.")
        seed = torch.randint(2**31, (), device=device) if self.num_shards > 1 else torch.zeros((), dtype=torch.long)
        self.share([seed])
        self._seed = int(seed)

    def size_of(self, batch_size: int) -> int:
        """Simulations in each shard of a batch.

        Raises:
            ValueError: If the batch cannot be cut into equal shards.
        """
        if batch_size % self.num_shards:
            raise ValueError(f"a batch of {batch_size} cannot be cut into {self.num_shards} equal shards.")
        return batch_size // self.num_shards

    def of_step(self, *step: int) -> Iterator[int]:
        """This process's shards, with torch's global generator seeded for each; left alone if there is but one.

        Args:
            step: Number of the step, and of the step within it if there are several.
        """
        for shard in range(self.rank, self.num_shards, self.num_processes):
            if self.num_shards > 1:
                entropy = np.random.SeedSequence((self._seed, *step, shard)).generate_state(1, np.uint64)
                torch.manual_seed(int(entropy[0]) >> 1)
            yield shard

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's tensors, in place."""
        if self.num_processes > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.detach(), 0)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over processes, in place."""
        if self.num_processes > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)
