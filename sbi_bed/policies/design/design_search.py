"""Search of a design space by many starts side by side, for a whole batch of experiments.

Continuous values climb by gradient. Where a design has choices, too, they stay fixed in each climb; between climbs the
designs that differ in one choice are scored, and the best go on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...simulators.design_space import DesignSpace

__all__ = ["best_design", "starting_designs"]

_ROUNDS = 2  # looks at other choices, each between two climbs


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
    features = space.standardize(used.gather(1, which))
    distance = 10 ** (-3 * torch.rand(batch, num_near, 1))
    near = space.from_features(features + distance * torch.randn(features.shape))
    return torch.cat([spread, near.to(used)], 1)


def best_design(
    gain: Callable[[Tensor], Tensor],
    designs: Tensor,
    space: DesignSpace,
    num_starts: int,
    num_steps: int,
    learning_rate: float,
) -> Tensor:
    """Design (B, D) of the highest gain found from scored designs, by Adam in free coordinates and by other choices.

    Args:
        gain: Callable designs (B, S, D) -> gains (B, S), differentiable if `num_steps` > 0, the same at each call.
        designs: Designs (B, S, D) to score first; the best `num_starts` are improved.
        space: Where designs live.
        num_starts: Number of gradient ascents for each experiment.
        num_steps: Steps of each, in all; 0 for none.
        learning_rate: Of the first step; it falls geometrically to 1/100 of it.
    """
    search = _Search(gain, space, num_starts, learning_rate)
    search.score(designs)
    if not space.has_choices:
        search.climb(num_steps)
        return search.best
    steps = num_steps // (_ROUNDS + 1) if space.continuous_free(designs).shape[-1] else 0
    for _ in range(_ROUNDS):
        search.climb(steps)
        search.score(space.neighbours(search.starts).flatten(1, 2))
    search.climb(steps)
    return search.best


class _Search:
    """The best designs so far: `best` (B, D) of all, and `starts` (B, S, D), from which the search goes on."""

    def __init__(self, gain: Callable[[Tensor], Tensor], space: DesignSpace, num_starts: int, learning_rate: float):
        self.gain, self.space, self.num_starts, self.learning_rate = gain, space, num_starts, learning_rate
        self.starts: Tensor = torch.zeros(0)
        self._gains: Tensor | None = None

    @property
    def best(self) -> Tensor:
        return self.starts[:, 0]

    def score(self, designs: Tensor) -> None:
        """Compare designs (B, S, D) with those so far, and keep the best of all."""
        self._keep(designs, self.gain(designs).detach())

    def climb(self, num_steps: int) -> None:
        """Improve the continuous values of `starts` by gradient."""
        if num_steps == 0:
            return
        starts = self.starts
        with torch.enable_grad():
            free = self.space.continuous_free(starts).detach().requires_grad_()
            optimizer = torch.optim.Adam([free], lr=self.learning_rate)
            tops, top_gains = starts, torch.full_like(starts[..., 0], -torch.inf)
            for step in range(num_steps + 1):
                designs = self.space.with_continuous(starts, free)
                gains = self.gain(designs)
                tops, top_gains = _better(tops, top_gains, designs.detach(), gains.detach())
                if step == num_steps or not gains.requires_grad:  # a likelihood of steps has no gradient to follow
                    break
                (gradient,) = torch.autograd.grad(-gains.sum(), free)
                free.grad = gradient.nan_to_num()
                optimizer.param_groups[0]["lr"] = self.learning_rate * 0.01 ** (step / num_steps)
                optimizer.step()
        self._keep(tops, top_gains)

    def _keep(self, designs: Tensor, gains: Tensor) -> None:
        gains = gains.nan_to_num(nan=-torch.inf)
        if self._gains is not None:
            designs, gains = torch.cat([self.starts, designs], 1), torch.cat([self._gains, gains], 1)
        self._gains, index = gains.topk(min(self.num_starts, gains.shape[1]), dim=1)
        self.starts = designs.gather(1, index.unsqueeze(-1).expand(-1, -1, designs.shape[-1]))


def _better(designs: Tensor, gains: Tensor, others: Tensor, their_gains: Tensor) -> tuple[Tensor, Tensor]:
    """Of two designs in each place the one with the higher gain."""
    their_gains = their_gains.nan_to_num(nan=-torch.inf)
    better = their_gains > gains
    return torch.where(better.unsqueeze(-1), others, designs), torch.where(better, their_gains, gains)
