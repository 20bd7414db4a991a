r"""A history as a potential of sbi: log p(θ) + Σ_t log p(y_t | θ, ξ_t), whatever policy chose the designs.

The policy's own probability p(ξ_t | h_{t−1}) does not depend on θ and cancels, so adaptive data need no correction.
"""

from __future__ import annotations

from typing import Any

import torch
from sbi.inference.potentials.base_potential import BasePotential
from torch import Tensor
from torch.distributions import Distribution

from ...simulators.base import DesignSimulator, prior_log_prob
from ...utils.history import check_history, split_history

__all__ = ["HistoryPotential", "history_log_likelihood"]

_MAX_EVALUATIONS = 2**21  # likelihoods at a time, which bounds memory


def history_log_likelihood(simulator: DesignSimulator, theta: Tensor, designs: Tensor, outcomes: Tensor) -> Tensor:
    """Σ_t log p(y_t | θ, ξ_t), shape (...), for theta (..., P), designs (n, D) and outcomes (n, O)."""
    num_trials = designs.shape[-2]
    if num_trials == 0:
        return torch.zeros_like(theta[..., 0])
    if theta.ndim == 2 and len(theta) * num_trials > _MAX_EVALUATIONS:
        chunks = theta.split(max(1, _MAX_EVALUATIONS // num_trials))
        return torch.cat([history_log_likelihood(simulator, chunk, designs, outcomes) for chunk in chunks])
    return simulator.log_likelihood(theta.unsqueeze(-2), designs, outcomes).sum(-1)


class HistoryPotential(BasePotential):
    """Log prior plus log-likelihood of a history, the unnormalised log posterior.

    A potential for any posterior of sbi that takes one (MCMC, importance sampling, VI, rejection), and for `gradient`s.

    Args:
        simulator: Experiment with a likelihood.
        prior: Distribution of theta; the simulator's own if None.
        x_o: History, shape (n, D + O + 1) or (1, n, D + O + 1), padded or not; n may be 0. Can be set later.
        device: Device of theta.

    Raises:
        ValueError: If the simulator has no likelihood, or the history is not finite, of another width, more than one,
            or has an outcome outside the outcome space.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> potential = HistoryPotential(LocationFinding(), x_o=torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
        >>> potential(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        prior: Distribution | None = None,
        x_o: Tensor | None = None,
        device: str | torch.device = "cpu",
    ):
        if not simulator.has_likelihood:
            raise ValueError(
                "a posterior by likelihood needs a simulator with log_likelihood=. Without one, train sbi's NPE on "
                "histories of a PolicySimulator."
            )
        self.simulator = simulator
        self.designs, self.outcomes = (torch.zeros(0, simulator.design_dim), torch.zeros(0, simulator.outcome_dim))
        super().__init__(simulator.prior if prior is None else prior, x_o, device)

    def as_history(self, x: Any) -> Tensor:
        """Return `x` as one valid history of shape (1, n, D + O + 1); a `ValueError` otherwise."""
        x = check_history(x, self.simulator.design_dim, self.simulator.outcome_dim)
        if x.ndim > 3 or (x.ndim == 3 and len(x) != 1):
            raise ValueError(f"one history (n, features) or (1, n, features) is expected, got shape {tuple(x.shape)}.")
        return x.reshape(1, *x.shape[-2:])

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:
        """Condition on another history."""
        if x_o is not None:
            x_o = self.as_history(x_o)
            designs, outcomes, mask = split_history(x_o[0], self.simulator.design_dim)
            outcomes = self.simulator.check_outcome(outcomes[mask == 1])
            dtype = torch.promote_types(self.simulator.dtype, x_o.dtype)
            self.designs, self.outcomes = (v.to(self.device, dtype) for v in (designs[mask == 1], outcomes))
        super().set_x(x_o, x_is_iid)

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:
        """Unnormalised log posterior (N,) of theta (N, P); −inf outside the prior's support."""
        _ = self.x_o  # an error if there is no history yet
        theta = theta.to(torch.promote_types(theta.dtype, self.simulator.dtype))  # sbi's chains speak float32
        with torch.set_grad_enabled(track_gradients):
            log_likelihood = history_log_likelihood(self.simulator, theta, self.designs, self.outcomes)
            log_prior = prior_log_prob(self.prior, theta)  # pyright: ignore[reportArgumentType]
            outside = torch.isneginf(log_prior)
            return torch.where(outside, log_prior, log_prior + log_likelihood)

    def to(self, device: str | torch.device) -> HistoryPotential:
        """Move prior and history to a device."""
        super().to(device)
        self.designs, self.outcomes = self.designs.to(self.device), self.outcomes.to(self.device)
        return self
