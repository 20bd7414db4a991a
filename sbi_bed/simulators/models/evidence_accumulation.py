r"""Four models of how people gather evidence until they decide (Wieschen, Voss & Radev 2020; arXiv 2301.11873).

Evidence starts between two boundaries 0 and a and moves until it passes one (`first_passage`): a diffusion, or a Lévy flight
whose jumps have tails of power α. In trial j person i sees one of two stimuli s, answers by the boundary passed, and takes

    rt = decision time + non-decision time.

Each person's parameters, where Γ(k, c) has shape k and scale c, and TN is normal, truncated to be positive:

    a ~ Γ(k_a, c_a),          k_a ~ N(5, 1),        c_a ~ TN(0.4, 0.15²)
    v_s ~ ∓Γ(k_s, c_s),       k_0, k_1 ~ N(5, 1),   c_0, c_1 ~ TN(0.5, 0.25²)      drift −, + for stimulus 0, 1
    t_0 ~ Γ(k_t, c_t),        k_t ~ N(5, 1),        c_t ~ TN(0.1, 0.05²)           seconds
    z / a = logit⁻¹ N(μ_z, σ_z²),   μ_z ~ N(0, 0.25²),   σ_z ~ TN(0, 0.05²)
    α ~ N(μ_α, σ_α²) truncated to (1, 2),   μ_α ~ N(1.65, 0.15²),   σ_α ~ TN(0.3, 0.1²);   α = 2 for diffusions

and in the full models each trial has a start z/a ± s_z/2 and a non-decision time t_0 ± s_t/2, both uniform, and a drift
N(v_s, s_v²), with s_z ~ Beta(1, 3), s_v ~ TN(0, 2²), s_t ~ TN(0, 0.3²) for each person. A trial that starts outside the
boundaries is decided at once; a non-decision time below 0 is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Beta, Gamma
from torch.special import ndtr, ndtri

from .first_passage import first_passage
from .model_family import ModelFamily, check_share_missing, check_size, draw_sizes, pack_present

__all__ = ["EvidenceAccumulation"]


class EvidenceAccumulation(ModelFamily):
    """Diffusion or Lévy flight, basic or full; x (persons, trials, stimulus + response time + choice + mask).

    Response times are in seconds; choice is 1 at the upper boundary, else 0. Trials undecided after `max_time` are missing
    (masked), as if a deadline had cut them off. There is no evidence in closed form. All models take the same steps, so
    that no classifier can tell them apart by the step.

    Args:
        num_persons: Number of persons, or (low, high): then drawn for each data set, padded to `high`.
        num_trials: Number of trials of every person, or (low, high): then drawn for each data set; half have stimulus 1.
        missing: Share of trials that are missing besides, each independently, in [0, 1).
        dt: Step of the simulation in seconds.
        max_time: Longest decision time in seconds.

    Raises:
        ValueError: If a size, a share or a time is out of range.

    Example:
        >>> models = EvidenceAccumulation(num_persons=3, num_trials=20, dt=0.01)
        >>> models.simulate(2, 5, seed=0).shape
        torch.Size([5, 3, 20, 4])
    """

    names = ("basic diffusion", "basic Lévy flight", "full diffusion", "full Lévy flight")
    parameter_names = ("a", "z", "v_0", "v_1", "t_0", "alpha", "s_z", "s_v", "s_t")

    def __init__(
        self,
        num_persons: int | tuple[int, int] = 40,
        num_trials: int | tuple[int, int] = 900,
        missing: float = 0.0,
        dt: float = 0.001,
        max_time: float = 10.0,
    ):
        self.num_persons = check_size(num_persons, "num_persons")
        self.num_trials = check_size(num_trials, "num_trials")
        if not 0 < dt <= max_time:
            raise ValueError(f"dt must be positive and max_time at least dt, got {dt} and {max_time}.")
        self.missing, self.dt, self.max_time = check_share_missing(missing), dt, max_time
        self.x_shape = (self.num_persons[1], self.num_trials[1], 4)

    def sample_parameters(self, model_index: int, num: int) -> Tensor:
        """Parameters (num, persons, 9) of persons, in the order of `parameter_names`, from the prior of one model.

        Raises:
            ValueError: If there is no such model.
        """
        flight, full = self._check_index(model_index) % 2, model_index // 2
        persons = (num, self.num_persons[1])
        a, v_0, v_1, t_0 = (_gamma(persons, *prior) for prior in ((0.4, 0.15), (0.5, 0.25), (0.5, 0.25), (0.1, 0.05)))
        z = torch.sigmoid(0.25 * torch.randn(num, 1) + _truncated_normal((num, 1), 0.0, 0.05) * torch.randn(persons))
        if flight:
            mean = 1.65 + 0.15 * torch.randn(num, 1)
            alpha = _truncated_normal(persons, mean, _truncated_normal((num, 1), 0.3, 0.1), 1.0, 2.0)
        else:
            alpha = torch.full(persons, 2.0)
        if full:
            spread = [
                Beta(1.0, 3.0).sample(persons),
                _truncated_normal(persons, 0.0, 2.0),
                _truncated_normal(persons, 0.0, 0.3),
            ]
        else:
            spread = [torch.zeros(persons)] * 3
        return torch.stack([a, z, -v_0, v_1, t_0, alpha, *spread], -1)

    def simulate_parameters(self, parameters: Tensor) -> Tensor:
        """Data sets (num, *x_shape) of persons with parameters (num, persons, 9)."""
        num, (persons, trials) = len(parameters), self.x_shape[:2]
        a, z, v_0, v_1, t_0, alpha, s_z, s_v, s_t = parameters.unsqueeze(2).unbind(-1)
        lengths = draw_sizes(self.num_trials, num)[:, None, None]
        stimulus = (torch.arange(trials) >= lengths // 2).expand(num, persons, trials)
        present = torch.arange(persons)[:, None] < draw_sizes(self.num_persons, num)[:, None, None]
        present = present & (torch.arange(trials) < lengths)
        if self.missing:
            present = present & (torch.rand(num, persons, trials) >= self.missing)
        shape = stimulus.shape
        start = a * (z + s_z * (torch.rand(shape) - 0.5))
        drift = torch.where(stimulus, v_1, v_0) + s_v * torch.randn(shape)
        wait = (t_0 + s_t * (torch.rand(shape) - 0.5)).clamp_min(0)
        x = torch.zeros(*shape, 4)
        stability = None if (alpha == 2).all() else alpha.expand(shape)[present]
        passage = first_passage(
            drift[present], a.expand(shape)[present], start[present], stability, dt=self.dt, max_time=self.max_time
        )
        features = torch.stack([stimulus[present].float(), passage.time + wait[present], passage.upper.float()], -1)
        x[present] = pack_present(features, passage.finished)
        return x

    def _simulate(self, model_index: int, num: int) -> Tensor:
        return self.simulate_parameters(self.sample_parameters(model_index, num))


def _gamma(persons: tuple[int, int], scale_mean: float, scale_sd: float) -> Tensor:
    """Γ(k, c) for each person, with k ~ N(5, 1) and c ~ TN of the group."""
    shape = (5 + torch.randn(persons[0], 1)).clamp_min(0.1)  # N(5, 1) is below that once in a million groups
    return _truncated_normal((persons[0], 1), scale_mean, scale_sd) * Gamma(shape.expand(persons), 1.0).sample()


def _truncated_normal(
    shape: tuple[int, ...], mean: float | Tensor, sd: float | Tensor, low: float = 0.0, high: float = torch.inf
) -> Tensor:
    """N(mean, sd²) truncated to (low, high), by its quantile function."""
    mean, sd = torch.as_tensor(mean).double(), torch.as_tensor(sd).double()
    first, last = ndtr((low - mean) / sd), ndtr((high - mean) / sd)
    quantile = first + (last - first) * torch.rand(shape, dtype=torch.float64)
    draws = mean + sd * ndtri(quantile.clamp(1e-15, 1 - 1e-15))
    return draws.clamp(low, high).float()
