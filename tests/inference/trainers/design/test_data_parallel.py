"""Training in two processes under torchrun: the gradients of one process with the same batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sbi_bed.inference import DAD
from sbi_bed.simulators import LocationFinding

SCRIPT = Path(__file__).with_name("train_in_processes.py")


def test_two_processes_train_as_one(tmp_path):
    alone, together = tmp_path / "alone.pt", tmp_path / "together.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([sys.executable, SCRIPT, alone], check=True, timeout=120)
    subprocess.run([*launcher, SCRIPT, together], check=True, timeout=240)
    one, two = torch.load(alone, weights_only=True), torch.load(together, weights_only=True)
    assert one["gradient"].abs().max() > 1e-3
    torch.testing.assert_close(two["gradient"], one["gradient"], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-6, atol=1e-9)
    assert two["bounds"] == pytest.approx(one["bounds"])


def test_a_batch_that_cannot_be_cut_is_refused():
    trainer = DAD(LocationFinding(), 2, show_progress_bars=False)
    with pytest.raises(ValueError, match="a batch of 7 cannot be cut into 2 equal shards"):
        trainer.train(1, 7, 3, num_shards=2)
