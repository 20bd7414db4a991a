r"""A decision that an experiment is for, and what it is worth after one.

With actions a and a user's utility u(θ, a), the best decision after a history h is worth max_a E[u(θ, a) | h], and a design
policy is worth its expectation (Raiffa and Schlaifer 1961; for amortised policies Huang et al. 2024, arXiv 2411.02064).
Expectations are over draws θ_l of the prior, weighted by p(h | θ_l). The decision a(h) is made from these draws alone, and
paid by the truth behind the history, u(θ_0, a(h)): the mean is a lower bound on the value, which meets it as draws grow.

Actions in a continuous space are searched for: random ones first, then ever closer around the best, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..simulators.base import DesignSimulator
from ..simulators.design_space import as_design_space
from ..simulators.experiments import Experiments
from ..utils.seeding import seeded
from .bounds import blocks_of, check_rollouts
from .contrastive import log_likelihood_of_history

__all__ = ["Decision", "estimate_utility"]

_NUM_TRIED, _NUM_ROUNDS, _CLOSER = 64, 9, 0.5  # actions tried at a time, how often, and the factor of their distance
_NUM_DRAWS = 1000  # posterior draws that a continuous action is chosen for


class Decision:
    """What to do once the experiment is over, and what that is worth.

    Args:
        utility: Callable (theta (..., P), action (..., A)) -> utility (...), in any unit; leading dimensions broadcast.
            `DecisionUtility` needs gradients to continuous actions.
        actions: The actions to choose among, (K, A), or a torch constraint for continuous ones.

    Attributes:
        space: The actions as a `DesignSpace`.

    Raises:
        TypeError: If `utility` cannot be called.
        ValueError: If `actions` are no actions.

    Example:
        >>> treatment = Decision(lambda theta, action: (theta * action).sum(-1), torch.eye(3))  # the best of three
        >>> treatment.values(torch.tensor([0.1, 0.7, 0.4]))
        tensor([0.1000, 0.7000, 0.4000])
        >>> dose = Decision(
        ...     lambda theta, dose: -(theta - dose).square().sum(-1), torch.distributions.constraints.positive
        ... )
    """

    def __init__(self, utility: Callable[[Tensor, Tensor], Tensor], actions: Any):
        if not callable(utility):
            raise TypeError(f"utility must be a callable (theta, action) -> utility, got {utility!r}.")
        self._utility = utility
        try:
            self.space = as_design_space(actions)
        except ValueError as err:
            raise ValueError(f"actions must have shape (K, A), or be a torch constraint: {err}") from err

    @property
    def is_finite(self) -> bool:
        """Whether there are finitely many actions."""
        return self.space.candidates is not None

    def utility(self, theta: Tensor, action: Tensor) -> Tensor:
        """Utility (...) of actions (..., A) where theta (..., P) is true.

        Raises:
            TypeError: If the callable does not return a tensor.
            ValueError: If it returns another shape, NaN or infinity.
        """
        value, shape = self._utility(theta, action), torch.broadcast_shapes(theta.shape[:-1], action.shape[:-1])
        if not isinstance(value, Tensor):
            raise TypeError(f"utility must return a tensor, got {type(value).__name__}.")
        if value.shape != shape:
            raise ValueError(
                f"utility returned shape {tuple(value.shape)} for theta {tuple(theta.shape)} and action "
                f"{tuple(action.shape)}; it must return one value for each, {tuple(shape)}."
            )
        if not torch.isfinite(value).all():
            index = tuple((~torch.isfinite(value)).nonzero()[0].tolist())
            thetas, actions = (x.expand(*shape, -1) for x in (theta, action))
            raise ValueError(
                f"utility is {value[index].item()} for theta {thetas[index].tolist()} and action "
                f"{actions[index].tolist()}; it must be finite."
            )
        return value.to(theta.dtype)

    def values(self, theta: Tensor) -> Tensor:
        """Utility (..., K) of each of finitely many actions."""
        return self.utility(theta.unsqueeze(-2), self.space.candidates.to(theta))  # pyright: ignore

    def check(self, simulator: DesignSimulator) -> Tensor:
        """Utilities (1000,) of random actions for parameters of the prior, the same at each call; errors as `utility`."""
        with seeded(0), torch.no_grad():
            theta = simulator.prior.sample((1000,))
            action = self.space.sample((1000,)).to(theta)
            self.utility(theta[:3].unsqueeze(1), action[:2])  # that leading dimensions broadcast
            return self.utility(theta, action)

    def best_actions(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Actions (B, A) of the highest mean utility.

        Args:
            theta: Draws (N, P), or (B, N, P).
            weights: Their weights (B, N), with sum 1.
        """
        if self.is_finite:
            values = self.values(theta)
            means = weights @ values if values.ndim == 2 else (weights.unsqueeze(-1) * values).sum(-2)
            return self.space.candidates.to(theta)[means.argmax(-1)]  # pyright: ignore
        num = min(_NUM_DRAWS, weights.shape[-1])
        index = torch.multinomial(weights, num, replacement=True)
        draws = (
            theta[index] if theta.ndim == 2 else theta.gather(1, index.unsqueeze(-1).expand(-1, -1, theta.shape[-1]))
        )
        best, scale = torch.zeros(len(weights), 1, self.space.free_dim, dtype=theta.dtype, device=theta.device), 2.0
        for _ in range(_NUM_ROUNDS):
            steps = scale * torch.randn(len(weights), _NUM_TRIED, self.space.free_dim).to(best)
            tried = torch.cat([best, best + steps], 1)
            values = self.utility(draws.unsqueeze(1), self.space.from_free(tried).unsqueeze(2)).mean(-1)
            best = tried.gather(1, values.argmax(1)[:, None, None].expand(-1, 1, tried.shape[-1]))
            scale *= _CLOSER
        return self.space.from_free(best.squeeze(1))


@torch.no_grad()
def estimate_utility(
    experiments: Experiments, policy: Any, decision: Decision, num_rollouts: int, num_contrastive: int
) -> Tensor:
    """Utility (num_rollouts,) of the decision after each simulated experiment.

    Args:
        experiments: What is simulated, with the likelihood that decisions are made by.
        policy: Policy, or any callable history -> design.
        decision: What is decided after each.
        num_rollouts: Simulated experiments.
        num_contrastive: Draws θ_l that each decision is made from.
    """
    simulator, utilities = experiments.simulator, []
    for block in blocks_of(num_rollouts):
        batch = experiments.run(policy, len(block))
        own = log_likelihood_of_history(simulator, batch.theta, *batch.trials)
        check_rollouts(batch.trials.outcomes, own)
        theta = experiments.sample_contrastive(batch, num_contrastive)
        each = [log_likelihood_of_history(simulator, part.unsqueeze(1), *batch.trials) for part in theta.split(2000)]
        weights = torch.cat([part.sum(-1) for part in each]).T.softmax(-1)
        utilities.append(decision.utility(batch.theta, decision.best_actions(theta, weights)))
    return torch.cat(utilities)
