r"""First passage of diffusions and of symmetric Lévy flights through two boundaries, all paths side by side.

    X_0 = z,   X_{t+dt} = X_t + v dt + dt^{1/α} S / √2,   until X ≤ 0 or X ≥ a,

with S standard symmetric α-stable, E exp(iuS) = exp(−|u|^α), drawn after Chambers, Mallows and Stuck (1976),

    S = sin(αU) / cos(U)^{1/α} · (cos((1 − α)U) / W)^{(1 − α)/α},   U ~ Uniform(−π/2, π/2),  W ~ Exp(1).

S has variance 2 for α = 2, so that dt^{1/α} S / √2 is then N(0, dt): the diffusion with unit noise.

A path is seen at multiples of dt only, and so stops late: a diffusion as if both boundaries were 0.5826 √dt further out
(Broadie, Glasserman & Kou 1997). `bridge=True` mends that for diffusions: between X_t and X_{t+dt}, both inside, a Brownian
bridge touched a with probability exp(−2 (a − X_t)(a − X_{t+dt}) / dt), and 0 likewise. Steps can then be ten times longer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Passage", "first_passage", "symmetric_stable"]

_BLOCK, _PATHS = 32, 2**13  # steps and paths at a time: arrays that stay in the cache


class Passage(NamedTuple):
    """Ends of paths, shape of the paths: time in seconds, whether at the upper boundary, and whether at any in time."""

    time: Tensor
    upper: Tensor
    finished: Tensor


def symmetric_stable(stability: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard symmetric stable draws of `shape`, to which stability α in [1, 2] broadcasts; N(0, 2) for α = 2."""
    angle = (torch.rand(shape) - 0.5) * math.pi
    weight = torch.empty(shape).exponential_()
    log_size = torch.log(torch.cos((1 - stability) * angle).clamp_min(1e-7) / weight.clamp_min(1e-30))
    log_size = log_size * (1 - stability) - torch.cos(angle).clamp_min(1e-7).log()
    return torch.sin(stability * angle) * torch.exp(log_size / stability)


@torch.no_grad()
def first_passage(
    drift: Any,
    boundary: Any,
    start: Any,
    stability: Any = None,
    *,
    dt: float = 0.001,
    max_time: float = 10.0,
    bridge: bool = False,
) -> Passage:
    """When and where paths leave (0, a); arguments broadcast against each other.

    Args:
        drift: v, in units of space a second.
        boundary: a > 0.
        start: z; paths that start outside (0, a) end at time 0.
        stability: α in [1, 2] of a Lévy flight; None for a diffusion.
        dt: Step in seconds.
        max_time: Time in seconds at which paths are given up: these are not finished, and their time is `max_time`.
        bridge: Whether to look between steps too; for diffusions only. Times are then uniform within a step, and
            otherwise at its end.

    Raises:
        ValueError: If a boundary, dt or max_time is not positive, α outside [1, 2], or a bridge asked of Lévy flights.

    Example:
        >>> passage = first_passage(drift=torch.tensor([2.0, -2.0]), boundary=1.0, start=0.5)
        >>> passage.time.shape
        torch.Size([2])
    """
    if not (dt > 0 and max_time >= dt):
        raise ValueError(f"dt must be positive and max_time at least dt, got {dt} and {max_time}.")
    if bridge and stability is not None:
        raise ValueError("Brownian bridges are for diffusions: leave stability=None, or bridge=False.")
    given = [drift, boundary, start, 2.0 if stability is None else stability]
    paths = torch.broadcast_tensors(*(torch.as_tensor(value, dtype=torch.float32) for value in given))
    if (paths[1] <= 0).any():
        raise ValueError(f"boundary must be positive, got {float(paths[1].min())}.")
    if ((paths[3] < 1) | (paths[3] > 2)).any():
        raise ValueError("stability must lie in [1, 2].")
    shape, parts = paths[0].shape, torch.stack([path.flatten() for path in paths]).split(_PATHS, 1)
    ends = [_passage(part, stability is not None, dt, round(max_time / dt), bridge) for part in parts]
    time, upper = (torch.cat(values).reshape(shape) for values in zip(*ends, strict=True))
    finished = torch.isfinite(time)
    return Passage(torch.where(finished, time, max_time), upper, finished)


def _passage(paths: Tensor, jumps: bool, dt: float, num_steps: int, bridge: bool) -> tuple[Tensor, Tensor]:
    """Times (n,), infinite where not finished, and whether at the upper boundary, of paths (4, n): v, a, z, α."""
    drift, boundary, start, stability = paths
    time = torch.where((start <= 0) | (start >= boundary), 0.0, math.inf)
    upper = start >= boundary
    running = torch.isinf(time).nonzero().squeeze(1)
    position, before = start[running], 0
    while len(running) and before < num_steps:
        block = min(_BLOCK, num_steps - before)
        v, a = drift[running], boundary[running]
        if jumps:
            alpha = stability[running]
            steps = symmetric_stable(alpha, (block, len(running))) * (dt ** (1 / alpha) / math.sqrt(2))
        else:
            steps = torch.randn(block, len(running)).mul_(math.sqrt(dt))
        steps.add_(v * dt)
        steps[0] += position
        path = steps.cumsum_(0)
        high, low = path >= a, path <= 0
        if bridge:
            previous = torch.cat([position[None], path[:-1]])
            chance = torch.rand_like(path)
            high = high | (chance < torch.exp(-2 / dt * (a - previous) * (a - path)))
            low = (low | (chance > 1 - torch.exp(-2 / dt * previous * path))) & ~high
        crossed = high | low
        done, first = crossed.any(0), crossed.byte().argmax(0)
        ended = running[done]
        late = torch.rand(len(ended)) if bridge else 1.0
        time[ended] = (before + first[done] + late) * dt
        upper[ended] = high[first[done], done.nonzero().squeeze(1)]
        running, position, before = running[~done], path[-1, ~done], before + block
    return time, upper
