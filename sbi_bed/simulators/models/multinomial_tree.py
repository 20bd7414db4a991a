r"""Two high thresholds, a multinomial processing tree, for a group of people (as in arXiv 2301.11873).

Person i detects a word, old or new, with probability d_i, and otherwise guesses "old" with probability g_i:

    p_hit = d + (1 − d) g,   p_fa = (1 − d) g,   (Φ⁻¹(d_i), Φ⁻¹(g_i)) ~ N(μ, Σ),   μ_d, μ_g ~ N(0, 0.25²)
    Σ = diag(λ) Q diag(λ),   λ_d, λ_g ~ U(0, 2),   Q ~ InvWishart(3, I).

λ integrates out. With ρ the correlation in Σ and r_k = σ_k √(1 − ρ²), k = d, g, the five hyper-parameters are independent:

    ρ ~ U(−1, 1),   p(r) = √(2/π) [1 − (1 + T) e^{−T}],  T = 2/r²,

since Q has the density ∝ |Q|⁻³ exp(−½ tr Q⁻¹), |Q| = q_dd q_gg (1 − ρ²) and tr Q⁻¹ = (1/q_dd + 1/q_gg) / (1 − ρ²). The
evidence is an importance-weighted average over scrambled Sobol points ζ = (μ_d, μ_g, log r_d, log r_g, artanh ρ) of
products over persons. A person's integral is a sum over a grid of (Φ⁻¹(d), Φ⁻¹(g)), dense near 0 and ±7 wide, mass beyond
counted at its ends. Deviations smaller than three quarters of the grid's distance are widened to that.

The same points serve all data sets, few of them near each one's posterior. A refinement draws points for each data set
anew, from a Student distribution fitted to the weights so far.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from ...utils.student_t import log_student_t
from .signal_detection import log_mixture

__all__ = ["MultinomialTree"]

_POINTS_AT_A_TIME = 256  # so many grids fit the cache
_MOST_ROWS = 2048  # of the table that is kept: 128 KB each with 2¹⁵ points


class MultinomialTree:
    """Detection and guessing as correlated normal quantiles.

    Accuracy, for 25 persons of 25 + 25 words: with the defaults log-evidences differ from refined ones (2048 points) by
    0.12 for data of this model (root mean square) and 0.26 for data of signal detection, where probabilities of models
    are near 0 or 1; these differ by 0.003 on average. The table of persons' integrals takes about 10 s on one core, once.
    Refined with 512 points, in 80 ms a data set, they differ between seeds by 0.06 and 0.18, and between grids of 71 and
    101 nodes by 0.03 and 0.08.

    Args:
        mean_sd: Standard deviation of μ_d and μ_g.
        num_points: Sobol points for all data sets, a power of 2.
        num_nodes: Nodes of the grid for each of a person's two parameters.
        refine_points: Sobol points for each data set in the last of three rounds of refinement, a power of 2; 0 for none.
        seed: Seed of the scrambling.

    Example:
        >>> hits, false_alarms = MultinomialTree().sample_rates(num=8, num_persons=25)
        >>> hits.shape, false_alarms.shape
        (torch.Size([8, 25]), torch.Size([8, 25]))
    """

    def __init__(
        self,
        mean_sd: float = 0.25,
        num_points: int = 2**15,
        num_nodes: int = 71,
        refine_points: int = 0,
        *,
        seed: int = 0,
    ):
        self.mean_sd, self.num_points, self.num_nodes, self.seed = mean_sd, num_points, num_nodes, seed
        self.refine_points = refine_points
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._node, self._length = _grid(num_nodes)

    def sample_rates(self, num: int, num_persons: int) -> tuple[Tensor, Tensor]:
        """Rates of hits and of false alarms, each (num, num_persons), of `num` groups drawn from the prior."""
        mean, sd, correlation = (value.unsqueeze(1) for value in self.sample_hyper_parameters(num))
        z = torch.randn(num, num_persons, 2)
        mixed = correlation * z[..., 0] + (1 - correlation.square()).clamp_min(0).sqrt() * z[..., 1]
        detect = ndtr(mean[..., 0] + sd[..., 0] * z[..., 0])
        guess = ndtr(mean[..., 1] + sd[..., 1] * mixed)
        return detect + (1 - detect) * guess, (1 - detect) * guess

    def sample_hyper_parameters(self, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Prior draws of means (num, 2), standard deviations (num, 2) and correlations (num,), through λ and Q."""
        # Q⁻¹ = A Aᵀ with A_11² ~ χ²(3), A_22² ~ χ²(2), A_21 ~ N(0, 1) (Bartlett).
        a11, a22 = torch.randn(num, 3).norm(dim=1), torch.randn(num, 2).norm(dim=1)
        a21 = torch.randn(num)
        first = (a22.square() + a21.square()).sqrt()
        sd = 2 * torch.rand(num, 2) * torch.stack([first, a11], -1) / (a11 * a22).unsqueeze(-1)
        return self.mean_sd * torch.randn(num, 2), sd, -a21 / first

    def log_evidence(self, counts: Tensor) -> Tensor:
        """Log-evidences (B,) of counts (B, persons, 4), k_o, n_o, k_n, n_n."""
        if len(counts) > 1 and len(counts.flatten(0, 1).unique(dim=0)) > _MOST_ROWS:
            half = len(counts) // 2
            return torch.cat([self.log_evidence(part) for part in (counts[:half], counts[half:])])
        kinds, place = counts.flatten(0, 1).unique(dim=0, return_inverse=True)
        place = place.reshape(counts.shape[:2])
        points, log_weight = self._common_points()
        missing = [key for kind in kinds.tolist() if (key := tuple(kind)) not in self._rows]
        if missing:
            self._rows = self._rows if len(self._rows) + len(missing) <= _MOST_ROWS else {}
            missing = [key for kind in kinds.tolist() if (key := tuple(kind)) not in self._rows]
            self._rows.update(zip(missing, self._person_table(torch.tensor(missing), points), strict=True))
        table = torch.stack([self._rows[tuple(kind)] for kind in kinds.tolist()])
        if not self.refine_points:
            return log_mixture(place, table, log_weight)
        values = [self._refine(kinds, table, row, points, log_weight) for row in place]
        return torch.stack(values) if values else counts.new_zeros(0).double()

    def log_prior(self, points: Tensor) -> Tensor:
        """Log prior density (N,) of points ζ (N, 5)."""
        mean, log_r, free = points[:, :2], points[:, 2:4], points[:, 4]
        t = 2 * torch.exp(-2 * log_r)
        body = torch.where(t < 1e-4, t.square() / 2, -torch.expm1(-t) - t * torch.exp(-t)).clamp_min(1e-300).log()
        normal = -0.5 * (mean / self.mean_sd).square() - math.log(self.mean_sd * math.sqrt(2 * math.pi))
        correlation = math.log(0.5) + 2 * (math.log(2) - torch.logaddexp(free, -free))  # ½ · dρ/d artanh ρ
        return (normal + log_r + body + 0.5 * math.log(2 / math.pi)).sum(1) + correlation

    def _common_points(self) -> tuple[Tensor, Tensor]:
        """Points ζ (N, 5) for all data sets, wider than the prior, and the logs of their weights (N,)."""
        u = _sobol(5, self.num_points, self.seed)
        sd, z, logit = 1.3 * self.mean_sd, ndtri(u[:, :2]), torch.logit(u[:, 2:])
        points = torch.cat([sd * z, math.log(0.6) + logit[:, :2], 0.5 * logit[:, 2:]], 1)
        log_normal = (-0.5 * z.square() - math.log(sd * math.sqrt(2 * math.pi))).sum(1)
        log_logistic = -torch.logaddexp(logit, torch.zeros_like(logit)) - torch.logaddexp(
            -logit, torch.zeros_like(logit)
        )
        log_proposal = log_normal + log_logistic.sum(1) + math.log(2)  # 2: artanh ρ is half a logistic
        return points, self.log_prior(points) - log_proposal - math.log(self.num_points)

    def _refine(self, kinds: Tensor, table: Tensor, row: Tensor, points: Tensor, log_weight: Tensor) -> Tensor:
        """Log-evidence () of one data set, its persons at `row` (persons,) of the kinds (R, 4)."""
        own, uses = row.unique(return_counts=True)
        terms = log_weight + uses.double() @ table[own].double()
        for number, size in enumerate((256, 256, self.refine_points)):
            points, log_proposal = _student_points(points, terms, size, self.seed + number)
            likelihood = uses.double() @ self._person_table(kinds[own], points).double()
            terms = self.log_prior(points) + likelihood - log_proposal - math.log(size)
        return torch.logsumexp(terms, 0)

    def _person_table(self, kinds: Tensor, points: Tensor) -> Tensor:
        """Logs of a person's integral, shape (R, N), float32, for counts (R, 4) at points ζ (N, 5)."""
        node, length, smallest = self._node.float(), self._length.float(), 0.75 * float(self._length.min())
        log_likelihood = _log_likelihood(self._node, kinds)
        offset = log_likelihood.amax(1, keepdim=True)  # rare answers would be below the range of float32
        likelihood = (log_likelihood - offset).exp().float()
        rows = []
        for part in points.split(_POINTS_AT_A_TIME):
            mean, r, correlation = part[:, :2].float(), part[:, 2:4].exp(), torch.tanh(part[:, 4:])
            sd = (r / (1 - correlation.square()).clamp_min(1e-9).sqrt()).float()
            weights = _weights(node, length, mean, sd, correlation.float(), r.float(), smallest)
            rows.append(torch.mm(likelihood, weights.flatten(1).T))
        return torch.cat(rows, 1).clamp_min(1e-37).log() + offset.float()


def _sobol(dim: int, num: int, seed: int) -> Tensor:
    points = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(num, dtype=torch.float64)
    return points.clamp(1e-10, 1 - 1e-10)


def _student_points(points: Tensor, terms: Tensor, num: int, seed: int, freedom: float = 6.0) -> tuple[Tensor, Tensor]:
    """Points (num, 5) of a Student distribution with the moments of weighted points (N, 5), and its log density (num,)."""
    from scipy.stats import chi2

    weight = torch.softmax(terms, 0)
    centre = weight @ points
    gap = points - centre
    # Few points carry the weight at first: some of a typical posterior's variance is mixed in.
    typical = torch.tensor([0.1, 0.1, 0.2, 0.2, 0.25], dtype=torch.float64).square().diag()
    share = 5 / (5 + 1 / weight.square().sum())
    scale = torch.linalg.cholesky((1 - share) * (gap.mT * weight) @ gap + share * typical)
    u = _sobol(points.shape[1] + 1, num, seed)
    stretch = torch.from_numpy(chi2.ppf(u[:, -1:].numpy(), freedom)).div(freedom).rsqrt()
    z = ndtri(u[:, :-1]) * stretch
    return centre + z @ scale.mT, log_student_t(z.square().sum(1), scale, freedom)


def _grid(num_nodes: int, scale: float = 1.5, end: float = 7.0) -> tuple[Tensor, Tensor]:
    """Nodes 1.5 sinh t in [−7, 7] and the lengths they stand for, both (K,)."""
    t = torch.linspace(-1, 1, num_nodes, dtype=torch.float64) * math.asinh(end / scale)
    return scale * t.sinh(), scale * t.cosh() * (t[1] - t[0])


def _log_likelihood(node: Tensor, kinds: Tensor) -> Tensor:
    """Log-likelihoods (R, K²) of counts (R, 4) at nodes (K,) of Φ⁻¹(d) and of Φ⁻¹(g)."""
    detect, miss = ndtr(node)[:, None], ndtr(-node)[:, None]
    old, new = ndtr(node), ndtr(-node)
    rates = (detect + miss * old, miss * new, miss * old, detect + miss * new)  # hit, miss, false alarm, rejection
    hits, num_old, false_alarms, num_new = kinds.double().unbind(-1)
    powers = torch.stack([hits, num_old - hits, false_alarms, num_new - false_alarms], -1)
    return powers @ torch.stack([rate.flatten().clamp_min(1e-300).log() for rate in rates])


def _weights(
    node: Tensor, length: Tensor, mean: Tensor, sd: Tensor, correlation: Tensor, r: Tensor, smallest: float
) -> Tensor:
    """Masses (N, K, K) of the grid's nodes under normals of Φ⁻¹(d) and, given it, of Φ⁻¹(g)."""
    detect = _masses(node, length, mean[:, :1], sd[:, :1].clamp_min(smallest))
    slope = correlation * sd[:, 1:] / sd[:, :1]
    centre = mean[:, 1:] + slope * (node - mean[:, :1])
    return detect.unsqueeze(-1) * _masses(
        node, length, centre.unsqueeze(-1), r[:, 1:].clamp_min(smallest).unsqueeze(-1)
    )


def _masses(node: Tensor, length: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Masses (..., K) of nodes (K,) under N(mean, sd²), mean and sd (..., 1); those of the tails go to the ends."""
    mass = torch.exp(-0.5 * ((node - mean) / sd).square()) * length
    total = sd * math.sqrt(2 * math.pi)
    half = length[0] / 2
    mass[..., :1] += total * ndtr((node[0] - half - mean) / sd)
    mass[..., -1:] += total * ndtr((mean - node[-1] - half) / sd)
    return mass / mass.sum(-1, keepdim=True)
