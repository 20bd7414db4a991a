"""Model probabilities of observed data, beside how far they can be trusted.

A classifier is confident of data that none of the models makes, of data sets of sizes that it was not trained on, and of the
order of models that a third one beats by far. So each row of the table shows probabilities, how far an ensemble's members
disagree, the p-value of `atypicality`, and a mark where data leave the sizes of training. If several models have less than
0.001, the table says no more than that of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...inference.posteriors.model_probabilities import losing_models
from ...utils.checks import check_fraction
from ...utils.packing.sizes import watch_sizes
from ...utils.text_table import format_table
from ..typicality import Atypicality, atypicality, members_in_one_context

__all__ = ["ModelReport", "model_report"]


@dataclass(frozen=True)
class ModelReport:
    """Model probabilities of B data sets beside their atypicality; print it.

    Attributes:
        log_probs: log p(M_j | x_b), (B, J), of an ensemble the logs of its mean.
        spread: Standard deviation of the members' probabilities, (B, J); None without an ensemble.
        atypicality: How unlike the simulated data sets they are.
        model_names: J names.
        level: p-values below it are marked.
        outside: Which data sets leave the range of sizes that the net was trained on, (B,), bool; None if it knows none.
        sizes: What leaves the range, in words; empty if nothing does.
    """

    log_probs: Tensor
    spread: Tensor | None
    atypicality: Atypicality
    model_names: tuple[str, ...]
    level: float
    outside: Tensor | None = None
    sizes: str = ""

    @property
    def probs(self) -> Tensor:
        """p(M_j | x_b), (B, J)."""
        return self.log_probs.exp()

    @property
    def atypical(self) -> Tensor:
        """Which data sets are marked, (B,), bool."""
        return self.atypicality.p_value < self.level

    def __str__(self) -> str:
        found, rows = self.atypicality, []
        other_sizes = bool((found.p_value != found.same_size_p_value).any())
        for b, probs in enumerate(self.probs):
            losing = losing_models(self.log_probs[b])
            unknown = losing & (losing.sum() > 1)
            cells = ["<0.001" if less else f"{float(p):.3f}" for p, less in zip(probs, unknown, strict=True)]
            if self.spread is not None:
                cells = [f"{cell} ± {float(sd):.3f}" for cell, sd in zip(cells, self.spread[b], strict=True)]
            cells.append(f"{float(found.p_value[b]):.2g}")
            if other_sizes:
                same = float(found.same_size_p_value[b])
                cells.append("unknown" if math.isnan(same) else f"{same:.2g}")
            rows.append((str(b), *cells, self._mark(b)))
        names = (*(f"p({name})" for name in self.model_names), "atypicality p", *["at its sizes"] * other_sizes)
        return "\n".join([format_table(("data set", *names, ""), rows), *self._notes()])

    def _mark(self, b: int) -> str:
        marks = ["ATYPICAL"] * bool(self.atypical[b])
        marks += ["SIZE NOT TRAINED"] * bool(self.outside is not None and self.outside[b])
        return f"<- {', '.join(marks)}" if marks else ""

    def _notes(self) -> list[str]:
        notes, found = [], self.atypicality
        if self.atypical.any():
            notes.append(
                f"<- ATYPICAL: the models hardly ever make such data (p < {self.level:g}); "
                "their probabilities are not to be relied on."
            )
        if self.sizes:
            notes.append(
                f"<- SIZE NOT TRAINED: outside what the net was trained on ({self.sizes}); probabilities are guesses."
            )
        if bool((losing_models(self.log_probs).sum(-1) > 1).any()):
            notes.append(
                "Of models below 0.001 a classifier does not know which is the better one; PosteriorEvidence does."
            )
        if found.set_p_value is not None:
            verdict = "  <- UNLIKE the simulated ones" if found.set_p_value < self.level else ""
            notes.append(f"All {len(self.log_probs)} together: p = {found.set_p_value:.2g}{verdict}")
        return notes


def model_report(
    posterior: Any,
    x: Tensor,
    reference_x: Tensor,
    model_index: Any = None,
    *,
    model_names: Sequence[str] | None = None,
    model_prior: Any = None,
    level: float = 0.01,
    seed: int | None = None,
    **settings: Any,
) -> ModelReport:
    """Probabilities of models for observed data, beside how typical these are of the models.

    Args:
        posterior: `ModelPosterior`, or a `DeepEnsemblePosterior` of such, which adds the spread; of a
            `ContextModelPosterior` its `condition_on(context)`.
        x: Observed data sets (B, *event), or one (*event).
        reference_x: Simulated ones (M, *event), of the sizes of training and not trained on; see `atypicality`.
        model_index: The model of each of them, (M,), or None.
        model_names: J names; "M0", "M1", … if None.
        model_prior: Prior over models (J,) of the probabilities; that of training if None.
        level: p-values below it are marked. One in 1/level typical data sets is.
        seed: Seed of `atypicality`; the global generator if None.
        **settings: Passed on to `atypicality`.

    Warns:
        RuntimeWarning: Once, if data leave the sizes that the net was trained on.

    Raises:
        TypeError: If a context has to be chosen first.
        ValueError: If there is not one name for each model, or `level` is not in (0, 1), and as for `atypicality`.

    Example:
        >>> import torch
        >>> from sbi_bed.inference import ModelPosterior
        >>> from sbi_bed.neural_nets.classifiers import EvidenceClassifier
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     posterior = ModelPosterior(EvidenceClassifier(torch.nn.Identity(), 2, 3), torch.ones(2) / 2, (3,))
        ...     reference_x = torch.randn(1000, 3)
        >>> print(model_report(posterior, torch.tensor([[0.1, 0.2, 0.3], [9.0, 0.0, 0.0]]), reference_x, seed=0))
        data set  p(M0)  p(M1)  atypicality p
        --------------------------------------------------
        0         0.501  0.499           0.58
        1         0.441  0.559          0.002  <- ATYPICAL
        <- ATYPICAL: the models hardly ever make such data (p < 0.01); their probabilities are not to be relied on.
        All 2 together: p = 0.8
    """
    check_fraction(level, "level")
    members_in_one_context(posterior)
    with watch_sizes(warn=False) as watch:
        log_probs = posterior.log_probs(x, model_prior).cpu()
    num_models = log_probs.shape[-1]
    names = [f"M{j}" for j in range(num_models)] if model_names is None else list(model_names)
    if len(names) != num_models:
        raise ValueError(f"model_names must be {num_models} names, one for each model, got {names}.")
    with watch_sizes(warn=False):
        several = len(getattr(posterior, "members", [])) > 1
        spread = posterior.spread(x, model_prior).cpu() if several else None
        found = atypicality(posterior, x, reference_x, model_index, seed=seed, **settings)
    watch.warn()
    outside = watch.data_sets_outside(len(log_probs))
    return ModelReport(log_probs, spread, found, tuple(names), level, outside, watch.describe())
