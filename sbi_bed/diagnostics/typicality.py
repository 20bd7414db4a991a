r"""Are data like the simulated ones? A classifier is as sure of data that no model makes as of any others.

Let s(x) be the summary of a data set, from the embedding net. Simulated sets of all models are split at random. A score T is
fitted to one half, F, and is large where F has few summaries. The other half, H, says how large it usually is:

    p(x) = (1 + #{h ∈ H: T(s(h)) ≥ T(s(x))}) / (1 + |H|).

For x from the prior predictive of the models p is uniform, whatever T, for T saw neither x nor H (a conformal p-value; Vovk
et al. 2005; Schmitt et al. 2021, arXiv 2112.08866, for summaries of simulations). Two choices of T, after whitening:

- "neighbours": S log of the distance to the k-th nearest neighbour in F, −log density by nearest neighbours;
- "gaussian": −log of a mixture of one Gaussian per model (of one where models are not given).

The same with F and H of one model alone gives p-values for each model: is x typical of that model?

Sizes and contents are two questions. A data set with fewer groups or observations than the simulated ones can be odd for
that reason alone. So x is compared with the simulated sets as they are and, where its sizes leave theirs, also with sets
cut to the sizes of x. If only the first p-value is small, the sizes are the reason.

Whether a **set** of data sets is typical is another question. `mmd_test` between the observed summaries and H answers it,
with little power for a handful of sets. They may all be of one model, so H is drawn with the observed proportions of the
models, w_j, that maximise Π_b Σ_j w_j p(x_b | M_j) by the posterior's own evidences.

A summary keeps what tells the models apart. Data can be odd in ways that it does not keep, and p-values of single data sets
may miss those. Share with p < .05 (and p < .01) of 300 data sets of 10 groups × 10 observations, by `ModelComparison` of
nested normal models, 4,000 simulations trained on and 2,000 others as reference; the last column is of all 300 together:

                                       neighbours, k = 1   k = 5        gaussian     set
    as simulated                       .03 (.00)           .03 (.00)    .03 (.01)    .708
    3 times the values simulated       .79 (.63)           .76 (.57)    .80 (.60)    .001
    5 added to the values simulated    .97 (.87)           .98 (.90)    .97 (.83)    .001
    Student t, 1.2 degrees             .99 (.98)           .99 (.95)    .99 (.98)    .001
    groups of very unlike variances    .92 (.61)           .83 (.48)    .91 (.54)    .001
    exponential noise                  .01 (.00)           .00 (.00)    .01 (.00)    .001
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..neural_nets.embedding_nets.hierarchical import HierarchicalEmbedding
from ..simulators.models.model_family import as_model_index
from ..utils.checks import as_finite_tensor, check_choice, check_count
from ..utils.packing.sizes import watch_sizes
from ..utils.seeding import seeded
from .mmd import mmd_test
from .same_size import same_size_p_values
from .typicality_scores import Score, half_of_each, rank, score_summaries, whitening

__all__ = ["Atypicality", "atypicality", "model_proportions", "summary_atypicality"]

_MOST_IN_SET = 1000  # simulated sets that observed ones are tested against together: memory grows with its square
_FEWEST = 20  # simulated sets of a model, at least


@dataclass(frozen=True)
class Atypicality:
    """How unlike simulated data sets B observed ones are; small p-values are unlike.

    Attributes:
        p_value: Of each data set, (B,), against the simulated sets as they are; at least 1 / (1 + half of them).
        same_size_p_value: Of each data set, (B,), against simulated ones cut to its sizes; `p_value` where its sizes are
            simulated ones, NaN where fewer than 40 simulated sets are large enough.
        score: T of each, (B,), larger where simulated ones are rarer.
        reference_score: T of simulated sets it is compared with, (|H|,).
        model_p_value: For each data set and model, against that model's simulations alone, (B, J); None without
            `model_index`.
        set_p_value: Of all B together, as if each came from parameters of its own: parts of one population are alike, and
            are found odd for that. None for a single one.
        summary: Observed summaries, (B, S); an ensemble's first member's.
        reference_summary: Simulated summaries, (M, S).
        reference_model_index: The model of each, (M,), or None.
        reference_rows: Which simulated sets are H, (|H|,).
    """

    p_value: Tensor
    same_size_p_value: Tensor
    score: Tensor
    reference_score: Tensor
    model_p_value: Tensor | None
    set_p_value: float | None
    summary: Tensor
    reference_summary: Tensor
    reference_model_index: Tensor | None
    reference_rows: Tensor

    def __str__(self) -> str:
        together = "" if self.set_p_value is None else f"; all together p = {self.set_p_value:.2g}"
        return (
            f"{int((self.p_value < 0.05).sum())} of {len(self.p_value)} data sets have p < 0.05, {self.p_value.min():.2g} "
            f"is the smallest{together} ({len(self.reference_summary)} simulated sets)"
        )


def atypicality(
    posterior: Any,
    x: Tensor,
    reference_x: Tensor,
    model_index: Any = None,
    *,
    score: Score = "neighbours",
    num_neighbors: int = 1,
    num_permutations: int = 1000,
    seed: int | None = None,
) -> Atypicality:
    """Compare observed data sets with simulated ones, in the summaries of the net that judges them.

    An ensemble's T is the mean of its members'.

    Args:
        posterior: `ModelPosterior`, or a `DeepEnsemblePosterior` of such.
        x: Observed data sets (B, *event), or one (*event).
        reference_x: Simulated ones (M, *event), drawn from the models with their prior probabilities, not trained on, of the
            sizes of training. 1,000 are enough for p-values down to 0.002. For data of other sizes complete sets are best,
            at least as large: they can be cut to any sizes.
        model_index: The model of each of them, (M,): adds p-values for each model, and lets a set of data sets all be of
            one model.
        score: T, see above.
        num_neighbors: The k of the score "neighbours".
        num_permutations: For the p-value of all together.
        seed: Seed of the split and the permutations; the global generator if None.

    Raises:
        TypeError: If the posterior makes no summaries, or a context has to be chosen first.
        ValueError: If x or reference_x is not of the posterior's kind, there are fewer than 20 simulated sets of a model,
            or an argument is out of range.

    Example:
        >>> from sbi_bed.inference import ModelPosterior
        >>> from sbi_bed.neural_nets.classifiers import EvidenceClassifier
        >>> with seeded(0):
        ...     posterior = ModelPosterior(EvidenceClassifier(torch.nn.Identity(), 2, 3), torch.ones(2) / 2, (3,))
        ...     reference_x = torch.randn(1000, 3)
        >>> found = atypicality(posterior, torch.tensor([[0.1, 0.2, 0.3], [6.0, 0.0, 0.0]]), reference_x, seed=0)
        >>> (found.p_value < 0.01).tolist()
        [False, True]
    """
    members = members_in_one_context(posterior)
    for member in members:
        if not hasattr(member, "summary"):
            raise TypeError(f"atypicality needs posteriors with a summary(x), got {type(member).__name__}.")
    x = x.unsqueeze(0) if x.ndim == reference_x.ndim - 1 else x
    with watch_sizes():
        summaries = [member.summary(x) for member in members]
    with watch_sizes(warn=False):
        references = [member.summary(reference_x) for member in members]
        weights = None
        if model_index is not None:
            weights = model_proportions(posterior.log_probs(x, torch.ones(members[0].num_models)))
        settings = {"score": score, "num_neighbors": num_neighbors, "num_permutations": num_permutations, "seed": seed}
        found = summary_atypicality(summaries, references, model_index, **settings, model_weights=weights)
        if not isinstance(
            getattr(getattr(members[0], "classifier", None), "embedding_net", None), HierarchicalEmbedding
        ):
            return found

        def p_value_among(x: Tensor, cut: Tensor) -> Tensor:
            of_x, of_cut = ([member.summary(data) for member in members] for data in (x, cut))
            return summary_atypicality(of_x, of_cut, **settings).p_value

        same_size = same_size_p_values(x, reference_x, found.p_value, p_value_among)
        return dataclasses.replace(found, same_size_p_value=same_size)


def members_in_one_context(posterior: Any) -> list[Any]:
    """Members of an ensemble, or the posterior alone.

    Raises:
        TypeError: If they answer in any context, and none was chosen.
    """
    members = list(getattr(posterior, "members", [posterior]))
    for each in (posterior, *members):
        if hasattr(each, "contexts"):
            raise TypeError(
                f"in which context? Give posterior.condition_on(context), got a {type(each).__name__} for all."
            )
    return members


def summary_atypicality(
    summary: Tensor | Sequence[Tensor],
    reference_summary: Tensor | Sequence[Tensor],
    model_index: Any = None,
    *,
    score: Score = "neighbours",
    num_neighbors: int = 1,
    num_permutations: int = 1000,
    model_weights: Any = None,
    seed: int | None = None,
) -> Atypicality:
    """Compare summaries of any origin; arguments, errors and result as for `atypicality`, but for these.

    Args:
        summary: Observed summaries (B, S), or a list of such, from several nets.
        reference_summary: Simulated ones (M, S), or as many.
        model_index: The model of each simulated set, (M,), or None.
        score: The T above, by its name.
        num_neighbors: The k of the score "neighbours".
        num_permutations: For the p-value of all together.
        model_weights: Proportions (J,) of the models among the observed sets, for that p-value; as simulated if None.
        seed: Seed; the global generator if None.

    Example:
        >>> with seeded(1):
        ...     summary, reference_summary = 3 * torch.randn(40, 2), torch.randn(1000, 2)
        >>> print(summary_atypicality(summary, reference_summary, seed=0))
        21 of 40 data sets have p < 0.05, 0.002 is the smallest; all together p = 0.001 (1000 simulated sets)
    """
    pairs = _check_summaries(summary, reference_summary)
    num_reference = len(pairs[0][1])
    index = torch.zeros(num_reference, dtype=torch.long)
    num_models = 1
    if model_index is not None:
        num_models = _num_models(model_index) if model_weights is None else len(model_weights)
        index = as_model_index(model_index, num_reference, num_models)
    counts = torch.bincount(index, minlength=num_models)
    if (counts < _FEWEST).any():
        raise ValueError(f"there must be at least {_FEWEST} simulated sets of each model, got {counts.tolist()}.")
    check_choice(score, "score", ("neighbours", "gaussian"))
    num_neighbors = check_count(num_neighbors, "num_neighbors")
    if num_neighbors > int(counts.min()) // 2:
        raise ValueError(f"num_neighbors must be at most half the simulated sets of a model, got {num_neighbors}.")
    with seeded(seed):
        fit = half_of_each(index)
        observed, held_out, by_model = score_summaries(pairs, index, fit, num_models, score, num_neighbors)
        set_p_value = None
        if len(observed) > 1:
            set_p_value = _set_p_value(pairs, index, fit, model_weights, num_permutations)
    p_value = rank(observed, held_out)
    return Atypicality(
        p_value,
        p_value,
        observed,
        held_out,
        None if model_index is None else by_model,
        set_p_value,
        pairs[0][0],
        pairs[0][1],
        None if model_index is None else index,
        (~fit).nonzero().squeeze(-1),
    )


def model_proportions(log_evidences: Tensor, num_steps: int = 200) -> Tensor:
    """Proportions w (J,) of models among data sets, of maximal likelihood Π_b Σ_j w_j p(x_b | M_j), by EM.

    Args:
        log_evidences: log p(x_b | M_j), (B, J), up to a constant for each x.
        num_steps: Steps of EM, from equal proportions.

    Example:
        >>> model_proportions(torch.tensor([[0.0, -50.0], [0.0, -50.0], [-50.0, 0.0], [0.0, -50.0]])).tolist()
        [0.75, 0.25]
    """
    logs = log_evidences.detach().double().cpu()
    weights = torch.full((logs.shape[-1],), 1 / logs.shape[-1], dtype=torch.float64)
    for _ in range(num_steps):
        weights = (logs + weights.log()).softmax(-1).mean(0)
    return weights


# ---- pieces


def _check_summaries(summary: Any, reference_summary: Any) -> list[tuple[Tensor, Tensor]]:
    first, second = (list(v) if isinstance(v, (list, tuple)) else [v] for v in (summary, reference_summary))
    if len(first) != len(second) or not first:
        raise ValueError(f"there must be as many summaries as reference_summaries, got {len(first)} and {len(second)}.")
    pairs = []
    for s, r in zip(first, second, strict=True):
        s = as_finite_tensor(s, "summary").detach().double().cpu()
        r = as_finite_tensor(r, "reference_summary").detach().double().cpu()
        if s.ndim != 2 or r.ndim != 2 or s.shape[-1] != r.shape[-1] or len(s) == 0:
            raise ValueError(
                "summary (B, S) and reference_summary (M, S) must have the same columns, B > 0, "
                f"got {tuple(s.shape)} and {tuple(r.shape)}."
            )
        pairs.append((s, r))
    if any(len(s) != len(pairs[0][0]) or len(r) != len(pairs[0][1]) for s, r in pairs):
        raise ValueError("the summaries of all nets must be of the same data sets.")
    return pairs


def _num_models(model_index: Any) -> int:
    index = torch.as_tensor(model_index)
    return 1 + int(index.max()) if index.numel() else 1


def _set_p_value(
    pairs: list[tuple[Tensor, Tensor]], index: Tensor, fit: Tensor, model_weights: Any, num_permutations: int
) -> float:
    """Of all observed sets against held-out ones in which models have given proportions."""
    places = (~fit).nonzero().squeeze(-1)
    places = places[torch.randperm(len(places))]
    if model_weights is not None:
        weights = as_finite_tensor(model_weights, "model_weights").double()
        of_model = [places[index[places] == j] for j in range(len(weights))]
        size = min(float(len(part) / weight) for part, weight in zip(of_model, weights, strict=True) if weight > 0)
        size = min(size, _MOST_IN_SET)
        places = torch.cat([part[: round(size * float(w))] for part, w in zip(of_model, weights, strict=True)])
    white, white_reference = [], []
    for summary, reference in pairs:
        mean, matrix, _ = whitening(reference[fit])
        white.append((summary - mean) @ matrix)
        white_reference.append((reference[places[:_MOST_IN_SET]] - mean) @ matrix)
    return mmd_test(torch.cat(white, -1), torch.cat(white_reference, -1), num_permutations=num_permutations).p_value
