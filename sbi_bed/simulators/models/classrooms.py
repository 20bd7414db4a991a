r"""Do classes differ? Answers of pupils of classes: data of three levels, with their evidences by quadrature.

Pupil p of class c gives right answers with probability q_cp, all independent given these:

    q_cp ~ Beta(m_c s, (1 − m_c) s),   m_c = logit⁻¹(ℓ_c),   ℓ ~ N(0, 1),
    M0: ℓ_c = ℓ (one school),   M1: ℓ_c ~ N(ℓ, ω²),   log ω ~ N(log 0.7, 0.3²),

with s = 8 known. Of n answers of a pupil, k right ones in one order have the probability (B: the beta function)

    P(k, n | ℓ_c) = B(m_c s + k, (1 − m_c) s + n − k) / B(m_c s, (1 − m_c) s),

    p(x | M0) = ∫ Π_c Π_p P(k_cp, n_cp | ℓ) N(ℓ; 0, 1) dℓ,
    p(x | M1) = ∫∫ Π_c [∫ Π_p P(k_cp, n_cp | ℓ_c) N(ℓ_c; ℓ, ω²) dℓ_c] p(ℓ) p(ω) dℓ dω,

all by the trapezoidal rule, in ℓ_c, ℓ and log ω; a table of P over the pairs (k, n) serves all data sets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Beta

from .model_family import ModelFamily, check_share_missing, check_size, draw_sizes, pack_present
from .signal_detection import log_mixture

__all__ = ["Classrooms"]


class Classrooms(ModelFamily):
    """One school against classes that differ; x (classes, pupils, answers, right + mask), right being 1 or 0.

    Args:
        num_classes: Number of classes, or (low, high): then drawn for each data set, padded to `high`.
        num_pupils: Number of pupils, or (low, high): then drawn for each class.
        num_answers: Number of answers, or (low, high): then drawn for each pupil.
        missing: Share of answers that are missing besides, each independently, in [0, 1).
        concentration: The s of the priors above.
        spacing: Distance of nodes in ℓ; those in ℓ_c and log ω are 2 and 3 times as far apart. The default is for up to
            about 10 classes of 20 pupils with 20 answers, where halving it changes log-evidences by less than 1e-6.

    Raises:
        ValueError: If a size or a share is out of range, or the concentration or spacing not positive.

    Example:
        >>> models = Classrooms(num_classes=4, num_pupils=(5, 10), num_answers=12)
        >>> x = models.simulate(1, 6, seed=0)
        >>> x.shape, models.log_evidence(x, 1).shape
        (torch.Size([6, 4, 10, 12, 2]), torch.Size([6]))
    """

    names = ("one school", "classes differ")
    spread_median, spread_sd = 0.7, 0.3  # ω and log ω

    def __init__(
        self,
        num_classes: int | tuple[int, int] = 10,
        num_pupils: int | tuple[int, int] = 20,
        num_answers: int | tuple[int, int] = 20,
        missing: float = 0.0,
        concentration: float = 8.0,
        spacing: float = 0.05,
    ):
        self.num_classes = check_size(num_classes, "num_classes")
        self.num_pupils = check_size(num_pupils, "num_pupils")
        self.num_answers = check_size(num_answers, "num_answers")
        if not (concentration > 0 and spacing > 0):
            raise ValueError(f"concentration and spacing must be positive, got {concentration} and {spacing}.")
        self.missing = check_share_missing(missing)
        self.concentration, self.spacing = float(concentration), float(spacing)
        self.x_shape = (self.num_classes[1], self.num_pupils[1], self.num_answers[1], 2)

    def sample_parameters(self, model_index: int, num: int) -> Tensor:
        """Prior draws (num, 2) of ℓ and ω, which is 0 in the first model.

        Raises:
            ValueError: If there is no such model.
        """
        spread = self.spread_median * torch.exp(self.spread_sd * torch.randn(num))
        return torch.stack([torch.randn(num), spread * self._check_index(model_index)], -1)

    def simulate_parameters(self, theta: Tensor) -> Tensor:
        """Data sets (num, *x_shape) for parameters theta (num, 2)."""
        num, (classes, pupils, answers) = len(theta), self.x_shape[:3]
        school, spread = theta.unsqueeze(1).unbind(-1)
        mean = torch.sigmoid(school + spread * torch.randn(num, classes)).unsqueeze(-1).expand(-1, -1, pupils)
        right = Beta(mean * self.concentration, (1 - mean) * self.concentration).sample()
        present = (torch.arange(classes) < draw_sizes(self.num_classes, num)[:, None])[:, :, None, None]
        present = present & _first(self.num_pupils, (num, classes)).unsqueeze(-1)
        present = present & _first(self.num_answers, (num, classes, pupils))
        if self.missing:
            present = present & (torch.rand(present.shape) >= self.missing)
        outcomes = torch.bernoulli(right.unsqueeze(-1).expand(num, classes, pupils, answers))
        return pack_present(outcomes.unsqueeze(-1), present)

    def _simulate(self, model_index: int, num: int) -> Tensor:
        return self.simulate_parameters(self.sample_parameters(model_index, num))

    def _log_evidence(self, x: Tensor, model_index: int) -> Tensor:
        right, mask = x.unbind(-1)
        bad = (mask > 0) & (right != 0) & (right != 1)
        if bad.any():
            raise ValueError(f"answers must be 0 or 1, but not so at index {tuple(bad.nonzero()[0].tolist())}.")
        counts = torch.stack([(right * mask).sum(-1), mask.sum(-1)], -1)
        kinds, place = counts.flatten(0, 2).unique(dim=0, return_inverse=True)
        place = place.reshape(counts.shape[:3])
        school, log_prior = _normal_nodes(self.spacing)
        if model_index == 0:
            return log_mixture(place.flatten(1), self._pupil_table(kinds, school), log_prior)
        return self._log_evidence_of_classes(kinds, place, school, log_prior)

    def _log_evidence_of_classes(self, kinds: Tensor, place: Tensor, school: Tensor, log_prior: Tensor) -> Tensor:
        of_class, _ = _normal_nodes(2 * self.spacing, reach=20.0)
        table = self._pupil_table(kinds, of_class)
        log_spread, spread_prior = _normal_nodes(3 * self.spacing / self.spread_sd)
        spread = self.spread_median * torch.exp(self.spread_sd * log_spread)
        z = (of_class - school[:, None]) / spread[:, None, None]
        weights = torch.softmax(-0.5 * z.square(), -1).flatten(0, 1)  # (ω and ℓ, ℓ_c)
        log_outer = (spread_prior[:, None] + log_prior).flatten()
        values = []
        for part in place.split(max(1, 2**22 // (len(weights) * place.shape[1]))):
            uses = table.new_zeros(*part.shape[:2], len(kinds)).scatter_add_(2, part, table.new_ones(part.shape))
            log_class = uses @ table
            peak = log_class.amax(-1, keepdim=True)
            log_class = torch.log((log_class - peak).exp() @ weights.T + 1e-300) + peak
            values.append(torch.logsumexp(log_class.sum(1) + log_outer, 1))
        return torch.cat(values) if values else place.new_zeros(0).double()

    def _pupil_table(self, kinds: Tensor, location: Tensor) -> Tensor:
        """log P(k, n | ℓ_c), shape (R, G), for pairs (k, n) (R, 2) and ℓ_c (G,)."""
        k, n = kinds.double().unsqueeze(-1).unbind(1)
        s = torch.as_tensor(self.concentration, dtype=torch.float64)
        a, b = torch.sigmoid(location) * s, torch.sigmoid(-location) * s
        up = torch.lgamma(a + k) + torch.lgamma(b + n - k) - torch.lgamma(s + n)
        return up - torch.lgamma(a) - torch.lgamma(b) + torch.lgamma(s)


def _first(size: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """Which of `high` places are among the first so many, a number drawn for each of `shape`: (*shape, high)."""
    return torch.arange(size[1]) < draw_sizes(size, math.prod(shape)).reshape(*shape, 1)


def _normal_nodes(spacing: float, reach: float = 7.0) -> tuple[Tensor, Tensor]:
    """Nodes (G,) of the trapezoidal rule for N(0, 1), and the logs of their weights, which sum to one."""
    half = math.ceil(reach / spacing)
    nodes = torch.arange(-half, half + 1, dtype=torch.float64) * spacing
    return nodes, torch.log_softmax(-0.5 * nodes.square(), 0)
