"""First weights of nets that a user builds before training: drawn under the training's seed, unless they were trained.

A net draws its first weights when it is built. Where that happens before `train(seed=)` they do not depend on the seed, and
trainings with one seed would differ. So embedding nets of this package remember a fingerprint of their first weights. A
trainer with a seed draws those weights anew under it, if they are still as they were. Weights that were trained or loaded,
and nets that the user has written, stay as they are.
"""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["draw_weights", "redraw_first_weights", "remember_first_weights"]


def draw_weights(net: nn.Module) -> None:
    """Draw all weights of a net anew, in place, by torch's generator: each module that can is asked to."""
    for module in net.modules():
        for name in ("reset_parameters", "_reset_parameters"):
            if hasattr(module, name):
                getattr(module, name)()


def remember_first_weights(net: nn.Module, *parts: str) -> None:
    """Called at the end of a net's `__init__`, with the names of the submodules whose weights it has drawn itself."""
    net._first_weights = {name: _fingerprint(net.get_submodule(name)) for name in parts}  # pyright: ignore


def redraw_first_weights(net: nn.Module) -> None:
    """Draw weights anew, in place, wherever a net or a part of it still has its first ones.

    Example:
        >>> from sbi_bed.neural_nets import HierarchicalEmbedding
        >>> nets = [HierarchicalEmbedding(1), HierarchicalEmbedding(1)]
        >>> for net in nets:
        ...     _ = torch.manual_seed(0)
        ...     redraw_first_weights(net)
        >>> x = torch.ones(1, 2, 3, 2)
        >>> torch.equal(nets[0](x), nets[1](x))
        True
    """
    for module in list(net.modules()):
        for name, first in getattr(module, "_first_weights", {}).items():
            part = module.get_submodule(name)
            if all(
                math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in zip(_fingerprint(part), first, strict=True)
            ):
                draw_weights(part)


@torch.no_grad()
def _fingerprint(net: nn.Module) -> list[float]:
    """Sum of squares of each parameter: the same on each device and in each precision."""
    return [float(parameter.double().square().sum()) for parameter in net.parameters()]
