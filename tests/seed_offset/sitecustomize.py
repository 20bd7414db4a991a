"""Adds SEED_OFFSET to every seed of torch and numpy, in this process and, as `sitecustomize`, in those that it starts.

Python imports a module of this name when it starts. It waits until a program imports torch, so that nothing is loaded
that the program does not load itself.
"""

import importlib.abc
import importlib.util
import os
import sys


def shift_seeds(offset):
    """Add `offset` to the seeds of `torch.manual_seed`, of torch's generators and of numpy."""
    import numpy as np
    import torch

    def shifted(function):
        def with_offset(seed=None, *args, **kwargs):
            return function(seed + offset if isinstance(seed, (int, np.integer)) else seed, *args, **kwargs)

        return with_offset

    class Generator(torch.Generator):
        def manual_seed(self, seed):
            return super().manual_seed(seed + offset)

    torch.manual_seed = torch.random.manual_seed = shifted(torch.manual_seed)
    torch.Generator = Generator
    seed_numpy = np.random.seed
    np.random.default_rng = shifted(np.random.default_rng)
    np.random.seed = shifted(lambda seed=None: seed_numpy(seed if seed is None else seed % 2**32))


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Lets torch be imported as always, and then shifts the seeds."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        load = spec.loader.exec_module

        def load_and_shift(module):
            load(module)
            shift_seeds(int(os.environ["SEED_OFFSET"]))

        spec.loader.exec_module = load_and_shift
        return spec


if __name__ == "sitecustomize" and "SEED_OFFSET" in os.environ:
    sys.meta_path.insert(0, _AfterTorch())
