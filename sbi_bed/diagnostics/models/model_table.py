"""Model probabilities of observed data, never without how unlike the simulated data they are.

A classifier, and any other route to model probabilities, is confident of data that none of the models makes. So each row of
the table shows both: probabilities, with how far an ensemble's members disagree, and the p-value of `atypicality`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...utils.text_table import format_table
from ..atypical_data import Atypicality, atypicality, members_in_one_context

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
    """

    log_probs: Tensor
    spread: Tensor | None
    atypicality: Atypicality
    model_names: tuple[str, ...]
    level: float

    @property
    def probs(self) -> Tensor:
        """p(M_j | x_b), (B, J)."""
        return self.log_probs.exp()

    @property
    def atypical(self) -> Tensor:
        """Which data sets are marked, (B,), bool."""
        return self.atypicality.p_value < self.level

    def __str__(self) -> str:
        rows, found = [], self.atypicality
        for b, probs in enumerate(self.probs):
            cells = [f"{float(p):.3f}" for p in probs]
            if self.spread is not None:
                cells = [f"{cell} ± {float(sd):.3f}" for cell, sd in zip(cells, self.spread[b], strict=True)]
            rows.append((str(b), *cells, f"{float(found.p_value[b]):.2g}", "<- ATYPICAL" if self.atypical[b] else ""))
        lines = [format_table(("data set", *(f"p({name})" for name in self.model_names), "atypicality p", ""), rows)]
        if self.atypical.any():
            lines.append(
                f"<- ATYPICAL: the models hardly ever make such data (p < {self.level:g}); "
                "their probabilities are not to be relied on."
            )
        if found.set_p_value is not None:
            verdict = "  <- UNLIKE the simulated ones" if found.set_p_value < self.level else ""
            lines.append(f"All {len(rows)} together: p = {found.set_p_value:.2g}{verdict}")
        return "\n".join(lines)


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
        reference_x: Simulated ones (M, *event), of the same sizes and not trained on; see `atypicality`.
        model_index: The model of each of them, (M,), or None.
        model_names: J names; "M0", "M1", … if None.
        model_prior: Prior over models (J,) of the probabilities; that of training if None.
        level: p-values below it are marked. One in 1/level typical data sets is.
        seed: Seed of `atypicality`; the global generator if None.
        **settings: Passed on to `atypicality`.

    Raises:
        TypeError: If it is open in which context.
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
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}.")
    members_in_one_context(posterior)
    log_probs = posterior.log_probs(x, model_prior).cpu()
    num_models = log_probs.shape[-1]
    names = [f"M{j}" for j in range(num_models)] if model_names is None else list(model_names)
    if len(names) != num_models:
        raise ValueError(f"model_names must be {num_models} names, one for each model, got {names}.")
    several = len(getattr(posterior, "members", [])) > 1
    spread = posterior.spread(x, model_prior).cpu() if several else None
    found = atypicality(posterior, x, reference_x, model_index, seed=seed, **settings)
    return ModelReport(log_probs, spread, found, tuple(names), level)
