"""Search of a continuous design space by many gradient starts side by side, for a whole batch of experiments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...simulators.design_space import DesignSpace

__all__ = ["best_design", "starting_designs"]


def starting_designs(space: DesignSpace, num: int, used: Tensor) -> Tensor:
    """Designs to score first, (B, num, D): half spread over the space, half near designs `used` (B, n, D) before.

    The latter lie around a random earlier design, at distances log-uniform in [1e-3, 1] of the space's own scale: as
    knowledge grows, good designs come close together. Draws from the global generator.
    """
    batch, num_used = used.shape[:2]
    num_near = num // 2 if num_used else 0
    spread = space.sample((batch, num - num_near)).to(used)
    if num_near == 0:
        return spread
    which = torch.randint(num_used, (batch, num_near, 1)).expand(-1, -1, used.shape[-1])
    distance = 10 ** (-3 * torch.rand(batch, num_near, 1))
    free = space.standardize(used.gather(1, which)) + distance * torch.randn(which.shape)
    return torch.cat([spread, space.from_free(free).to(used)], 1)


def best_design(
    gain: Callable[[Tensor], Tensor],
    designs: Tensor,
    space: DesignSpace,
    num_starts: int,
    num_steps: int,
    learning_rate: float,
) -> Tensor:
    """Design (B, D) of the highest gain found from scored designs by Adam in free coordinates.

    Args:
        gain: Callable designs (B, S, D) -> gains (B, S), differentiable if `num_steps` > 0, the same at each call.
        designs: Designs (B, S, D) to score first; the best `num_starts` are improved.
        space: Where designs live.
        num_starts: Number of gradient ascents for each experiment.
        num_steps: Steps of each; 0 to take the best of `designs`.
        learning_rate: Of the first step; it falls geometrically to 1/100 of it.
    """

    def keep_best(designs: Tensor, gains: Tensor) -> None:
        nonlocal best, best_gain
        top, index = gains.detach().nan_to_num(nan=-torch.inf).max(1)
        better = top > best_gain
        chosen = designs.detach().gather(1, index[:, None, None].expand(-1, 1, designs.shape[-1])).squeeze(1)
        best, best_gain = torch.where(better.unsqueeze(-1), chosen, best), torch.where(better, top, best_gain)

    gains = gain(designs)
    best, best_gain = designs[:, 0], torch.full_like(gains[:, 0], -torch.inf)
    keep_best(designs, gains)
    if num_steps == 0:
        return best
    order = gains.nan_to_num(nan=-torch.inf).topk(min(num_starts, designs.shape[1]), dim=1).indices
    starts = designs.gather(1, order.unsqueeze(-1).expand(-1, -1, designs.shape[-1]))
    with torch.enable_grad():
        free = space.standardize(starts).detach().requires_grad_()
        optimizer = torch.optim.Adam([free], lr=learning_rate)
        for step in range(num_steps):
            designs = space.from_free(free)
            gains = gain(designs)
            keep_best(designs, gains)
            if not gains.requires_grad:  # a likelihood of steps has no gradient to follow
                return best
            (gradient,) = torch.autograd.grad(-gains.sum(), free)
            free.grad = gradient.nan_to_num()
            optimizer.param_groups[0]["lr"] = learning_rate * 0.01 ** (step / num_steps)
            optimizer.step()
    designs = space.from_free(free.detach())
    keep_best(designs, gain(designs))
    return best
