"""Train a policy and save its weights: alone, or as one of the processes that `torchrun` starts.

python train_in_processes.py weights.pt
torchrun --nproc-per-node=2 train_in_processes.py weights.pt
"""

import os
import sys

import torch

from sbi_bed.inference import DAD
from sbi_bed.policies import DeepSetsPolicy
from sbi_bed.simulators import LocationFinding

if __name__ == "__main__":
    torch.set_num_threads(1)
    simulator = LocationFinding()
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # processes need not agree on anything but the seed below
    policy = DeepSetsPolicy(simulator, 16, 8).double()
    shards = None if "RANK" in os.environ else 2
    if "RANK" not in os.environ or os.environ["RANK"] == "0":
        torch.manual_seed(0)
    trainer = DAD(simulator, 3, policy, show_progress_bars=False)
    trainer.train(5, 32, 31, 1e-2, seed=3, num_shards=shards, clip_max_norm=1e9)
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
    weights = torch.cat([p.detach().flatten() for p in policy.parameters()])
    if os.environ.get("RANK", "0") == "0":
        torch.save({"gradient": gradient, "weights": weights, "bounds": trainer.bounds}, sys.argv[1])
