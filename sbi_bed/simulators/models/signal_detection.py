r"""Signal detection, equal variances, for a group of people (as in arXiv 2301.11873).

Person i calls an old word "old" with probability Φ(h_i), a new one with Φ(f_i):

    h_i ~ N(μ_h, σ_h²),  f_i ~ N(μ_f, σ_f²),  μ_h ~ N(1, 0.5²),  μ_f ~ N(−1, 0.5²),  σ_h, σ_f ~ Gamma(1, 1) = Exp(1),

σ being standard deviations. Hits and false alarms are independent, so that the evidence is a product of two, each

    ∫∫ Π_i [∫ Φ(h)^{k_i} Φ(−h)^{n_i − k_i} N(h; μ, σ²) dh] N(μ; m, 0.5²) e^{−σ} dμ dσ,

by the trapezoidal rule in μ and log σ. The inner integral depends on a person only through (k, n), so that a table over
these pairs serves all data sets. For σ < 0.2 it is summed over (h − μ)/σ; above over h in [−10, 10], where Φ(±h) is 0 or 1
beyond.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr

__all__ = ["SignalDetection", "log_mixture"]


class SignalDetection:
    """Rates of hits and false alarms as normal quantiles, independent of each other.

    Args:
        mean_sd: Standard deviation of μ_h and μ_f.
        spacing: Distances of quadrature nodes in μ and in log σ; the default is for up to about 25 persons of 25 + 25
            words, where halving it changes log-evidences by less than 1e-6; for n times as much data divide it by √n.

    Attributes:
        means: Prior means of μ_h and μ_f.

    Example:
        >>> hits, false_alarms = SignalDetection().sample_rates(num=8, num_persons=25)
        >>> hits.shape, false_alarms.shape
        (torch.Size([8, 25]), torch.Size([8, 25]))
    """

    def __init__(self, mean_sd: float = 0.5, spacing: tuple[float, float] = (0.04, 0.1)):
        self.mean_sd, self.spacing = mean_sd, spacing
        self.means = (1.0, -1.0)
        self._rows: dict[tuple[int, int, int], Tensor] = {}

    def sample_rates(self, num: int, num_persons: int) -> tuple[Tensor, Tensor]:
        """Rates of hits and of false alarms, each (num, num_persons), of `num` groups drawn from the prior."""
        mean = torch.tensor(self.means) + self.mean_sd * torch.randn(num, 1, 2)
        sd = torch.empty(num, 1, 2).exponential_()
        hit, false_alarm = ndtr(mean + sd * torch.randn(num, num_persons, 2)).unbind(-1)
        return hit, false_alarm

    def log_evidence(self, counts: Tensor) -> Tensor:
        """Log-evidences (B,) of counts (B, persons, 4), k_o, n_o, k_n, n_n."""
        parts = (counts[..., :2], counts[..., 2:])
        return sum((self._log_part(part, which) for which, part in enumerate(parts)), counts.new_zeros(()).double())

    def _log_part(self, counts: Tensor, which: int) -> Tensor:
        pairs, place = counts.flatten(0, 1).unique(dim=0, return_inverse=True)
        mean, log_sd = self._nodes(which)
        missing = [key for k, n in pairs.tolist() if (key := (which, k, n)) not in self._rows]
        if missing:
            rows = _person_table(mean, log_sd.exp(), torch.tensor([key[1:] for key in missing]))
            self._rows.update(zip(missing, rows, strict=True))
        table = torch.stack([self._rows[which, k, n] for k, n in pairs.tolist()])
        z = (mean - self.means[which]) / self.mean_sd
        log_prior = -0.5 * z.square() - math.log(self.mean_sd * math.sqrt(2 * math.pi)) + log_sd - log_sd.exp()
        return log_mixture(place.reshape(counts.shape[:2]), table, log_prior + math.log(math.prod(self.spacing)))

    def _nodes(self, which: int) -> tuple[Tensor, Tensor]:
        """Nodes of μ and of log σ, both (G,)."""
        half = 7 * self.mean_sd
        mean = self.means[which] + torch.arange(-half, half, self.spacing[0], dtype=torch.float64)
        log_sd = torch.arange(-18.0, 3.7, self.spacing[1], dtype=torch.float64)
        return mean.repeat_interleave(len(log_sd)), log_sd.repeat(len(mean))


def log_mixture(place: Tensor, table: Tensor, log_weight: Tensor) -> Tensor:
    """log Σ_g w_g Π_i T[place_i, g], shape (B,), for places (B, persons) in a table of logs (R, G) and weights (G,)."""
    table = torch.cat([table, log_weight.to(table)[None]])
    uses = table.new_zeros(len(place), len(table)).scatter_add_(1, place, table.new_ones(place.shape))
    uses[:, -1] = 1
    step = max(1, 2**22 // table.shape[1])
    return torch.cat([torch.logsumexp(part @ table, 1) for part in uses.split(step)]).double()


def _person_table(mean: Tensor, sd: Tensor, pairs: Tensor) -> Tensor:
    """log ∫ Φ(h)^k Φ(−h)^{n−k} N(h; μ, σ²) dh, shape (R, G), for pairs (k, n) (R, 2) and μ, σ (G,)."""
    hits, misses = pairs[:, :1].to(mean), (pairs[:, 1:] - pairs[:, :1]).to(mean)

    def likelihood(h: Tensor) -> Tensor:
        return (hits * log_ndtr(h) + misses * log_ndtr(-h)).exp()

    table = mean.new_empty(len(pairs), len(mean))
    narrow = sd < 0.2
    z = torch.linspace(-8, 8, 41, dtype=mean.dtype)
    total = mean.new_zeros(len(pairs), int(narrow.sum()))
    for value in z.tolist():
        total += likelihood(mean[narrow] + sd[narrow] * value) * math.exp(-0.5 * value**2)
    table[:, narrow] = total * float(z[1] - z[0]) / math.sqrt(2 * math.pi)
    h = torch.linspace(-10, 10, 201, dtype=mean.dtype)
    mean, sd = mean[~narrow], sd[~narrow]
    weights = torch.exp(-0.5 * ((h[:, None] - mean) / sd).square()) / (sd * math.sqrt(2 * math.pi)) * (h[1] - h[0])
    weights[0] += ndtr((-10.05 - mean) / sd)
    weights[-1] += ndtr((mean - 10.05) / sd)
    table[:, ~narrow] = likelihood(h) @ weights
    return table.clamp_min(1e-300).log()
