r"""Simulation gap: one p-value for each data set, whether it is like simulated data to an ensemble and its summaries.

Nets that are trained in the same way agree on data like their training data, and may disagree on other data (Elsemüller et
al. 2024, arXiv 2310.11122). Simulated data sets that no member was trained on show how much disagreement is usual. Each data
set x has two scores:

- T_1, disagreement. Over parameters, with mean μ_m and covariance Σ_m of `num_samples` draws from each q_m(θ | x),

      T_1(x) = 1 / (M (M − 1)) Σ_{m ≠ l} KL(N(μ_m, Σ_m) ‖ N(μ_l, Σ_l)),   nats.

  Draws outside the prior's support count, because for strange data all draws may lie outside. Over models it is the standard
  deviation of the members' probabilities, as the root mean square over models.
- T_2, how rare the summaries of x are among the members' summaries of simulated data sets (`typicality`).

One half F of the simulated sets is the reference of T_2. For the other half, H, and a data set x, let r_k(y) be the rank of
T_k(y) among all of H ∪ {x}, 1 for the largest; then

    s(y) = min(r_1(y), r_2(y)),     p(x) = (1 + #{h ∈ H: s(h) ≤ s(x)}) / (1 + |H|):

p is small if either score is large. H shows how often that happens by chance, so T_1 and T_2 may depend on each other. If x
is from the simulator, x and the sets of H are exchangeable, and p is exactly valid for any ensemble. The M members are not M
data sets.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor, check_count
from ...utils.packing.sizes import TrainedRange, watch_sizes
from ...utils.seeding import seeded
from ...utils.warn_user import warn_user
from ..same_size import FEWEST_SIMULATED, same_size_p_values
from ..typicality import members_in_one_context, summary_atypicality

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SimulationGap", "simulation_gap"]

_DRAWS_AT_A_TIME = 2**16
_DATA_SETS_AT_A_TIME = 1000
_RIDGE = 1e-6  # of the mean variance, so that a covariance can be inverted


@dataclass(frozen=True)
class SimulationGap:
    """Whether B data sets are like simulated ones; small p-values say no.

    Attributes:
        p_value: p-value of each data set by both scores together, (B,); at least 1 / (1 + |H|).
        disagreement: T_1 of each, (B,).
        reference_disagreement: T_1 of the simulated sets H, (|H|,).
        disagreement_p_value: p-value by T_1 alone, (B,).
        atypicality_p_value: p-value by T_2 alone, (B,).
        same_size_p_value: p-value of each data set against simulated sets cut to its sizes, (B,); `p_value` if these are
            simulated sizes, NaN if fewer than 40 simulated sets are large enough.
        sizes: In which sizes the data leave those that the nets were trained on; empty if in none, or if they know none.
    """

    p_value: Tensor
    disagreement: Tensor
    reference_disagreement: Tensor
    disagreement_p_value: Tensor
    atypicality_p_value: Tensor
    same_size_p_value: Tensor | None = None
    sizes: str = ""

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each data set."""
        import pandas as pd

        columns = ("p_value", "same_size_p_value", "disagreement", "disagreement_p_value", "atypicality_p_value")
        values = {name: getattr(self, name) for name in columns}
        return pd.DataFrame({name: value.tolist() for name, value in values.items() if value is not None})

    def __str__(self) -> str:
        lines = [
            f"data set {b}: p = {float(p):.2g} (members disagree by {float(t):.3g}, simulated: median "
            f"{float(self.reference_disagreement.median()):.3g}, p = {float(p_1):.2g}; rare summaries: p = {float(p_2):.2g})"
            for b, (p, t, p_1, p_2) in enumerate(
                zip(self.p_value, self.disagreement, self.disagreement_p_value, self.atypicality_p_value, strict=True)
            )
        ]
        if self.same_size_p_value is not None and not torch.equal(self.same_size_p_value, self.p_value):
            shown = ", ".join(f"{float(p):.2g}" for p in self.same_size_p_value)
            lines.append(f"against simulated data cut to the sizes of each data set: p = {shown}")
        if self.sizes:
            lines.append(f"Sizes leave those that the nets were trained on ({self.sizes}): answers are guesses.")
        return "\n".join(lines)


def simulation_gap(
    ensemble: Any, x: Tensor, reference_x: Tensor, *, num_samples: int = 200, seed: int | None = None
) -> SimulationGap:
    """Test whether observed data sets are like simulated ones to an ensemble.

    Args:
        ensemble: `DeepEnsemblePosterior` of sbi's amortised posteriors (`DirectPosterior`; of context posteriors,
            `ensemble.condition_on(context)`) or of `ModelPosterior` (of a `ContextModelPosterior`, `condition_on(context)`).
        x: Observed data sets (B, *event), or one (*event).
        reference_x: Simulated ones (N, *event), of the sizes and share of missing data of training, with parameters from the
            prior, and not trained on. With N = 1,000 p-values go down to 0.002. If observed sizes differ, the simulated sets
            are also cut to them: so complete sets are best.
        num_samples: Draws from each member for each data set.
        seed: Seed; the global generator if None.

    Raises:
        TypeError: If members have neither `posterior_estimator` nor `summary`, or have no fixed context.
        ValueError: If there are fewer than two members or 40 simulated sets, shapes do not fit, or a number is not finite.

    Example:
        >>> from sbi_bed.inference import DeepEnsemblePosterior, ModelPosterior
        >>> from sbi_bed.neural_nets.classifiers import EvidenceClassifier
        >>> with seeded(0):
        ...     nets = [EvidenceClassifier(torch.nn.Linear(3, 3), 2, 3) for _ in range(3)]
        ...     reference_x = torch.randn(1000, 3)
        >>> ensemble = DeepEnsemblePosterior([ModelPosterior(net, torch.ones(2) / 2, (3,)) for net in nets])
        >>> gap = simulation_gap(ensemble, torch.tensor([[0.1, 0.2, 0.3], [9.0, 0.0, -9.0]]), reference_x, seed=0)
        >>> (gap.p_value < 0.01).tolist()
        [False, True]
    """
    members = members_in_one_context(ensemble)
    if len(members) < 2:
        raise ValueError("simulation_gap needs an ensemble of at least two members.")
    check_count(num_samples, "num_samples", 20)
    reference_x = as_finite_tensor(reference_x, "reference_x")
    x = as_finite_tensor(x, "x")
    x = x.unsqueeze(0) if x.ndim == reference_x.ndim - 1 else x
    if x.shape[1:] != reference_x.shape[1:] or x.ndim < 2 or len(x) == 0:
        raise ValueError(
            "x (B, *event) and reference_x (N, *event) must be data sets of the same shape, "
            f"got {tuple(x.shape)} and {tuple(reference_x.shape)}."
        )
    if len(reference_x) < FEWEST_SIMULATED:
        raise ValueError(
            f"reference_x must be at least {FEWEST_SIMULATED} simulated data sets, got {len(reference_x)}."
        )
    with seeded(seed):
        with watch_sizes(warn=False) as watch:
            for member in members:
                _summary(member, x)
        with watch_sizes(warn=False) as of_reference:
            gap = _compare(ensemble, members, x, reference_x, num_samples)
            same_size = _same_size_p_values(ensemble, members, x, reference_x, gap.p_value, num_samples)
    watch.warn()
    if of_reference.describe() and not watch.describe():
        warn_user(
            f"reference_x leaves the sizes that the nets were trained on ({of_reference.describe()}): simulate it in the "
            "sizes of training.",
            RuntimeWarning,
        )
    return dataclasses.replace(gap, same_size_p_value=same_size, sizes=watch.describe())


def _compare(ensemble: Any, members: list[Any], x: Tensor, reference_x: Tensor, num_samples: int) -> SimulationGap:
    """p-values of data sets x (B, *event) among simulated ones (N, *event)."""
    rare = summary_atypicality(
        [_summary(member, x) for member in members], [_summary(member, reference_x) for member in members]
    )
    both = torch.cat([x, reference_x[rare.reference_rows]])
    apart = _model_spread(ensemble, both) if hasattr(members[0], "probs") else _spread(members, both, num_samples)
    found, held_out = apart[: len(x)], apart[len(x) :]
    p_value, by_disagreement = _combine(found, held_out, rare.score, rare.reference_score)
    return SimulationGap(p_value, found, held_out, by_disagreement, rare.p_value)


def _same_size_p_values(
    ensemble: Any, members: list[Any], x: Tensor, reference_x: Tensor, p_value: Tensor, num_samples: int
) -> Tensor:
    """p-values (B,) against simulated sets cut to the sizes of each data set, if these leave the simulated sizes."""
    net = getattr(members[0], "posterior_estimator", None) or getattr(members[0], "classifier", None)
    if net is None or not any(isinstance(part, TrainedRange) for part in net.modules()):
        return p_value
    compare = partial(_compare, ensemble, members, num_samples=num_samples)
    return same_size_p_values(x, reference_x, p_value, lambda x, cut: compare(x, cut).p_value)


# ---- scores


@torch.no_grad()
def _summary(member: Any, x: Tensor) -> Tensor:
    """Output (B, S) of a member's embedding net, read by a hook while the member draws: the net may take more than x."""
    if hasattr(member, "summary"):
        return member.summary(x)
    estimator = getattr(member, "posterior_estimator", None)
    if estimator is None:
        raise TypeError(
            "simulation_gap needs members with posterior_estimator or summary(x), such as sbi's DirectPosterior and "
            f"ModelPosterior, got {type(member).__name__}."
        )
    heard: list[Tensor] = []
    hook = estimator.embedding_net.register_forward_hook(lambda net, inputs, summary: heard.append(summary.flatten(1)))
    try:
        for part in x.split(_DATA_SETS_AT_A_TIME):
            estimator.sample((1,), condition=part.to(next(estimator.parameters())))
    finally:
        hook.remove()
    return torch.cat(heard)


def _model_spread(ensemble: Any, x: Tensor) -> Tensor:
    return ensemble.spread(x).double().square().mean(-1).sqrt().cpu()


@torch.no_grad()
def _spread(members: list[Any], x: Tensor, num_samples: int) -> Tensor:
    """Mean over pairs of members of the KL divergence between normal distributions with their moments, (B,)."""
    parts = []
    for part in x.split(max(1, _DRAWS_AT_A_TIME // num_samples)):
        moments = [_moments(member, part, num_samples) for member in members]
        parts.append(_mean_kl(*(torch.stack(moment) for moment in zip(*moments, strict=True))))
    return torch.cat(parts)


def _moments(member: Any, x: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    estimator = member.posterior_estimator
    draws = estimator.sample((num_samples,), condition=x.to(next(estimator.parameters()))).double().cpu()
    mean = draws.mean(0)
    gaps = draws - mean
    covariance = torch.einsum("nbi,nbj->bij", gaps, gaps) / (num_samples - 1)
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return mean, covariance + _RIDGE * scale[:, None, None] * torch.eye(mean.shape[-1], dtype=torch.float64)


def _mean_kl(mean: Tensor, covariance: Tensor) -> Tensor:
    """1/(M(M−1)) Σ_{m≠l} ½ [tr Σ_l⁻¹Σ_m + (μ_m − μ_l)ᵀ Σ_l⁻¹ (μ_m − μ_l) − d]: log determinants cancel in the sum."""
    num, dim = len(mean), mean.shape[-1]
    precision = torch.linalg.inv(covariance)
    traces = torch.einsum("lbij,mbji->mlb", precision, covariance)
    gaps = mean.unsqueeze(1) - mean.unsqueeze(0)
    squares = torch.einsum("mlbi,lbij,mlbj->mlb", gaps, precision, gaps)
    return 0.5 * (traces + squares - dim).sum((0, 1)) / (num * (num - 1))


def _combine(first: Tensor, held_out_first: Tensor, second: Tensor, held_out_second: Tensor) -> tuple[Tensor, Tensor]:
    """p-values (B,) by both scores of the data sets (B,) and of H (|H|,), and by the first alone."""
    total = 1 + len(held_out_first)
    own_first, others_first = _ranks(first, held_out_first)
    own_second, others_second = _ranks(second, held_out_second)
    own, others = torch.minimum(own_first, own_second), torch.minimum(others_first, others_second)
    at_least = 1 + (others <= own.unsqueeze(-1)).sum(-1)
    return at_least.double() / total, own_first.double() / total


def _ranks(found: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks in H ∪ {x_b} of each x_b, (B,), and of each set of H, (B, |H|): 1 is the largest; ties share the worst rank."""
    order = held_out.sort().values
    own = 1 + len(held_out) - torch.searchsorted(order, found)
    among = len(held_out) - torch.searchsorted(order, held_out)
    return own, among + (found.unsqueeze(-1) >= held_out)
