r"""Bounds on the information gain with a net inside, for simulators without a likelihood: critics.

A critic U(h, θ) scores how well a history and parameters go together. With θ_j, j ≠ i, independent of h_i (the parameters
of the other histories of a batch of B) (iDAD, Ivanova et al. 2021, arXiv 2111.02329, eq. 8 and 9)

    InfoNCE = E[ U(h_i, θ_i) − log 1/B Σ_j exp U(h_i, θ_j) ]                         ≤ EIG, and ≤ log B,
    NWJ     = E[ U(h_i, θ_i) ] − e⁻¹ E_{j≠i}[ exp U(h_i, θ_j) ]                      ≤ EIG.

Both are tight for the right critic (log p(h | θ) + any c(h); and 1 + log p(h | θ) − log p(h)), up to log B. Critic and
policy climb the same bound.

The critic has the form of what it has to learn, a log-likelihood: a sum over trials, U = ⟨Σ_t f(z_t), g(θ)⟩ + c(h), with
z_t = (ξ_t, y_t), and the trial before beside it where trials share a hidden state. It is separable, so that B² scores
cost B encodings. An encoder of whole histories, as in iDAD, learned the same eight times more slowly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..neural_nets.trial_features import TrialFeatures, mlp
from ..simulators.base import DesignSimulator
from ..utils.seeding import seeded
from .base import NeuralBound

__all__ = ["NWJ", "CriticBound", "InfoNCE", "Standardize"]


class Standardize(nn.Module):
    """Parameters (..., P) centred and scaled by the prior's mean and sd (of 2,000 draws of a fixed seed)."""

    mean: Tensor
    sd: Tensor

    def __init__(self, simulator: DesignSimulator):
        super().__init__()
        with seeded(0):
            theta = simulator.prior.sample((2000,)).float()
        self.register_buffer("mean", theta.mean(0))
        self.register_buffer("sd", theta.std(0).clamp_min(1e-6))

    def forward(self, theta: Tensor) -> Tensor:
        """The same shape, standardised."""
        return (theta - self.mean) / self.sd


class CriticBound(NeuralBound):
    """A critic that is a sum over trials, U = ⟨Σ_t f(z_t), g(θ)⟩ + Σ_t c(z_t).

    Args:
        simulator: The experiment; 512 of its simulations set the scale of what the net reads.
        output_dim: Size of the encodings f(z) and g(θ).
        hidden_dim: Width of the nets.
        fitting_steps: As for `NeuralBound`.
        max_design_gradient: As for `Bound`.

    Attributes:
        has_state: Whether trials share a hidden state, so that the trial before is read, too.
        features: What is read of a trial.
        standardize: Centres and scales theta.
        of_trial: The net f, with c in the last column.
        of_theta: The net g.
        scale: Factor of their product.
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        output_dim: int = 128,
        hidden_dim: int = 256,
        fitting_steps: int = 0,
        max_design_gradient: float | None = None,
    ):
        super().__init__(fitting_steps, max_design_gradient)
        self.has_state = simulator.has_state
        self.features, self.standardize = TrialFeatures(simulator), Standardize(simulator)
        hidden, num_read = (hidden_dim, hidden_dim), self.features.output_dim * (2 if self.has_state else 1)
        self.of_trial = mlp(num_read, hidden, output_dim + 1)
        self.of_theta = mlp(simulator.theta_dim, hidden, output_dim)
        self.scale = 3 * output_dim**-0.5

    def scores(self, theta: Tensor, x: Tensor) -> Tensor:
        """U(h_i, θ_j), shape (B, B)."""
        read, mask = self.features.of_history(x)
        if self.has_state:
            read = torch.cat([read, torch.nn.functional.pad(read, (0, 0, 1, -1))], dim=-1)
        summary = (self.of_trial(read) * mask).sum(-2)
        products = summary[:, :-1] @ self.of_theta(self.standardize(theta)).T
        return products * self.scale + summary[:, -1:]


class InfoNCE(CriticBound):
    """InfoNCE bound, contrasted with the rest of the batch; it cannot exceed log B.

    Arguments and attributes are those of `CriticBound`.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding, simulate_histories
        >>> simulator = LocationFinding()
        >>> theta, x = simulate_histories(simulator, RandomPolicy(simulator), 3, 16)
        >>> InfoNCE(simulator)(theta, x).shape
        torch.Size([16])
    """

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """Terms (B,) of theta (B, P) and their histories (B, n, D + O + 1), nats."""
        scores = self.scores(theta, x)
        return scores.diagonal() - scores.logsumexp(-1) + math.log(len(theta))


class NWJ(CriticBound):
    """NWJ bound: no ceiling at log B, but a larger variance.

    Arguments and attributes are those of `CriticBound`.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding, simulate_histories
        >>> simulator = LocationFinding()
        >>> theta, x = simulate_histories(simulator, RandomPolicy(simulator), 3, 16)
        >>> loss, terms = NWJ(simulator).loss(theta, x)  # its gradient trains critic and policy
        >>> bool(loss == -terms.mean()), terms.requires_grad
        (True, False)
    """

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """Terms (B,) of theta (B, P) and their histories (B, n, D + O + 1), nats."""
        scores = self.scores(theta, x)
        own = torch.eye(len(theta), dtype=torch.bool, device=scores.device)
        others = scores.masked_fill(own, -torch.inf).logsumexp(-1) - math.log(max(1, len(theta) - 1))
        return scores.diagonal() - torch.exp(others - 1)
