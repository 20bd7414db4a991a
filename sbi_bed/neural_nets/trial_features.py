"""What a net sees of one trial: its design and outcome in unconstrained coordinates of order one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..simulators.base import DesignSimulator, free_outcome

__all__ = ["TrialFeatures", "mlp"]


class TrialFeatures(nn.Module):
    """Design (..., D) and outcome (..., O) → features (..., D + O).

    Designs go through the inverse of their space's bijection, outcomes through that of theirs, and are then centred and
    scaled by their mean and sd over the prior and random designs (measured once, with a fixed seed of its own).

    Args:
        simulator: The experiment whose trials are read.
        num_pilot: Simulations that measure the outcomes' mean and sd.
    """

    outcome_mean: Tensor
    outcome_sd: Tensor
    _some_trial: Tensor

    def __init__(self, simulator: DesignSimulator, num_pilot: int = 512):
        super().__init__()
        self.design_dim, self.outcome_dim = simulator.design_dim, simulator.outcome_dim
        self._design_space = simulator.design_space
        self._outcome_space = simulator.outcome_space  # not the simulator: its functions need not be picklable
        designs, raw = simulator.pilot(num_pilot)
        outcome = simulator.standardize_outcome(raw)
        self.output_dim = self._design_space.num_features + outcome.shape[-1]
        dtype = torch.get_default_dtype()  # that of the nets which read the features
        self.register_buffer("outcome_mean", outcome.mean(0).to(dtype))
        self.register_buffer("outcome_sd", outcome.std(0).to(dtype).clamp_min(1e-6))
        self.register_buffer("_some_trial", torch.cat([designs[0], raw[0]]).to(dtype), persistent=False)

    def forward(self, design: Tensor, outcome: Tensor) -> Tensor:
        """Features (..., D + O), in the net's own precision, whatever that of the trial."""
        read = (free_outcome(self._outcome_space, outcome).to(self.outcome_sd) - self.outcome_mean) / self.outcome_sd
        return torch.cat([self._design_space.standardize(design).to(read), read], dim=-1)

    def of_history(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Features (..., n, D + O), zero where padded, and mask (..., n, 1) of a history (..., n, D + O + 1)."""
        # Padding is 0, which may lie outside a space. Some trial takes its place, so that values and gradients are finite.
        mask = history[..., -1:]
        trials = torch.where(mask > 0, history[..., :-1], self._some_trial)
        return torch.where(mask > 0, self(*trials.split([self.design_dim, self.outcome_dim], dim=-1)), 0.0), mask


def mlp(input_dim: int, hidden_dims: tuple[int, ...], output_dim: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for size in hidden_dims:
        layers += [nn.Linear(input_dim, size), nn.SiLU()]
        input_dim = size
    return nn.Sequential(*layers, nn.Linear(input_dim, output_dim))
