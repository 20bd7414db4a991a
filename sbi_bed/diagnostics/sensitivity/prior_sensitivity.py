r"""How far conclusions move when the prior, or another choice, does: a grid of contexts against a baseline.

Over parameters, with draws θ^c of the posterior in context c and θ^0 in the baseline, standardised by the baseline's means
and standard deviations,

    √MMD(c) = √max(0, MMD²_u(θ^c, θ^0)),    shift(c) = mean θ^c − mean θ^0,    ratio(c) = sd θ^c / sd θ^0,

with MMD²_u the unbiased estimate (`mmd.py`) and a bandwidth from the baseline. Two samples of one posterior differ, too: the
null is √MMD of R **pairs of independent samples of the baseline**. Where c changes nothing the pair (θ^c, θ^0) is one more
of them, so its rank gives an exact p-value. (A null from resampling the one reference that is compared with calls 42 % of
unchanged posteriors changed.) It says what so many draws can tell, not how good the net is.

Over models, KL(p(M | x, c) ‖ p(M | x, c_0)) = Σ_j p_j (log p_j − log p⁰_j) for each data set. After arXiv 2310.11122.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor, check_count
from ...utils.seeding import seeded
from ...utils.text_table import format_table
from ..mmd import mmd_squared
from ..models.recovery import kl_to_exact

__all__ = ["ModelSensitivity", "PriorSensitivity", "prior_sensitivity"]

_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class PriorSensitivity:
    """A posterior over P parameters in G contexts, beside a baseline; shifts are in the baseline's standard deviations.

    Attributes:
        contexts: The contexts, (G, C).
        columns: Names of their values.
        baseline: The context compared with, (C,).
        root_mmd: √MMD from the baseline, (G,).
        null: √MMD of R pairs of independent samples of the baseline, (R,).
        p_value: Probability of a √MMD at least as large where nothing changed, (G,); at least 1/(R + 1).
        mean_shift: Change of means, (G, P).
        sd_ratio: Standard deviations over the baseline's, (G, P).
        levels: Levels of the quantiles, (Q,).
        quantile_shift: Change of quantiles, (G, Q, P).
        names: Names of the parameters, P.
    """

    contexts: Tensor
    columns: tuple[str, ...]
    baseline: Tensor
    root_mmd: Tensor
    null: Tensor
    p_value: Tensor
    mean_shift: Tensor
    sd_ratio: Tensor
    levels: tuple[float, ...]
    quantile_shift: Tensor
    names: tuple[str, ...]

    @property
    def null_upper(self) -> float:
        """95 % quantile of the null."""
        return float(self.null.quantile(0.95))

    def __str__(self) -> str:
        header, cells, baseline = _table_of_contexts(self.contexts, self.columns, self.baseline)
        moments = [
            [f"{shift:+.2f} (×{ratio:.2f})" for shift, ratio in zip(*both, strict=True)]
            for both in zip(self.mean_shift.tolist(), self.sd_ratio.tolist(), strict=True)
        ]
        rows = [
            (*context, f"{root:.3f}", f"{p:.3f}", *of_parameters)
            for context, root, p, of_parameters in zip(
                cells, self.root_mmd.tolist(), self.p_value.tolist(), moments, strict=True
            )
        ]
        table = format_table((*header, "√MMD", "p", *self.names), rows)
        return (
            f"{table}\nshift of the mean, in the baseline's sd, and (×) ratio of sd; baseline {baseline}: "
            f"95 % of its own √MMD are below {self.null_upper:.3f}"
        )


@dataclass(frozen=True)
class ModelSensitivity:
    """Probabilities of J models for B data sets in G contexts, beside a baseline.

    Attributes:
        contexts: The contexts, (G, C).
        columns: Names of their values.
        baseline: The context compared with, (C,).
        probs: Model probabilities, (G, B, J).
        baseline_probs: The same in the baseline, (B, J).
        kl: KL divergence to the baseline, (G, B), nats.
        names: Names of the models, J.
    """

    contexts: Tensor
    columns: tuple[str, ...]
    baseline: Tensor
    probs: Tensor
    baseline_probs: Tensor
    kl: Tensor
    names: tuple[str, ...]

    def __str__(self) -> str:
        header, cells, baseline = _table_of_contexts(self.contexts, self.columns, self.baseline)
        change = (self.probs - self.baseline_probs).abs().amax((1, 2))
        chosen = (self.probs.argmax(-1) != self.baseline_probs.argmax(-1)).double().mean(-1)
        columns = self.kl.mean(-1), self.kl.amax(-1), change, chosen, *self.probs.mean(1).unbind(-1)
        rows = [(*cells[g], *(f"{float(values[g]):.4f}" for values in columns)) for g in range(len(cells))]
        header = (*header, "mean KL", "largest KL", "largest change", "other best", *self.names)
        return (
            f"{format_table(header, rows)}\nKL in nats; under models' names mean probabilities; "
            f"baseline {baseline}; {self.kl.shape[1]} data sets"
        )


def prior_sensitivity(
    posterior: Any,
    x: Any,
    contexts: Any,
    *,
    baseline: Any = None,
    num_samples: int = 500,
    num_null: int = 100,
    names: Sequence[str] | None = None,
    seed: int | None = None,
) -> PriorSensitivity | ModelSensitivity:
    """Compare the posterior in each of some contexts with that in a baseline.

    Args:
        posterior: `ContextPosterior`, or an ensemble of them; over models `ContextModelPosterior`.
        x: One data set, (*event); over models one or several, (B, *event).
        contexts: Contexts, (G, C).
        baseline: Context (C,); 1 everywhere if None, the analyst's own prior where contexts are powers.
        num_samples: Draws from each posterior; time and memory grow with their square.
        num_null: Number R of pairs for the null.
        names: Names of the parameters, or of the models; "θ0", … or "M0", … if None.
        seed: Seed; the global generator if None.

    Returns:
        `PriorSensitivity`, or `ModelSensitivity` over models; `str` of it is a table.

    Raises:
        ValueError: If a shape does not fit, a context lies outside what the net was trained on, or there is not one name for
            each parameter or model.

    Example:
        >>> class Exact:  # of x ~ N(θ, 1) with θ ~ N(0, 1/γ), in place of a `ContextPosterior`
        ...     def sample_batched(self, sample_shape, x, context):
        ...         return x / (1 + context) + torch.randn(*sample_shape, *x.shape) / (1 + context).sqrt()
        >>> found = prior_sensitivity(Exact(), torch.tensor([4.0]), [[0.5], [1.0], [2.0]], seed=0)
        >>> found.p_value < 0.05
        tensor([ True, False,  True])
        >>> exact = 4 * torch.tensor([1 / 1.5 - 1 / 2, 0.0, 1 / 3 - 1 / 2]) * 2**0.5  # in sd of γ = 1
        >>> bool(((found.mean_shift[:, 0] - exact).abs() < 0.2).all())
        True
    """
    contexts = as_finite_tensor(contexts, "contexts").float()
    if contexts.ndim != 2 or len(contexts) == 0:
        raise ValueError(f"contexts must have shape (G, C), got {tuple(contexts.shape)}.")
    width = contexts.shape[1]
    baseline = torch.ones(width) if baseline is None else as_finite_tensor(baseline, "baseline", width).float()
    known = getattr(posterior, "contexts", None) or getattr(getattr(posterior, "members", [None])[0], "contexts", None)
    columns = tuple(f"context[{i}]" for i in range(width)) if known is None else tuple(known.columns)
    with seeded(seed), torch.no_grad():
        if hasattr(posterior, "log_bayes_factor") and not hasattr(posterior, "sample_batched"):
            return _of_models(posterior, x, contexts, columns, baseline, names)
        num, pairs = check_count(num_samples, "num_samples", 20), check_count(num_null, "num_null", 20)
        return _of_parameters(posterior, x, contexts, columns, baseline, num, pairs, names)


def _of_parameters(
    posterior: Any,
    x: Any,
    contexts: Tensor,
    columns: tuple[str, ...],
    baseline: Tensor,
    num: int,
    num_null: int,
    names: Sequence[str] | None,
) -> PriorSensitivity:
    x = as_finite_tensor(x, "x").unsqueeze(0)
    reference = posterior.sample_batched((num * (2 * num_null + 2),), x, baseline.unsqueeze(0)).double()[:, 0]
    names = _check_names(names, reference.shape[-1], "θ", "parameter")
    measure, compared, *pairs = reference.split(num)  # what sets scales is not compared
    mean, sd = reference.mean(0), reference.std(0)
    scaled = [(part - mean) / sd for part in (measure, compared, *pairs)]
    bandwidth = float(torch.pdist(scaled[0]).median())
    levels = torch.tensor(_LEVELS, dtype=torch.float64)
    reference_quantiles = ((reference - mean) / sd).quantile(levels, dim=0)
    draws = posterior.sample_batched((num,), x.expand(len(contexts), *x.shape[1:]), contexts).double()
    draws = (draws - mean) / sd
    null = torch.stack(
        [_root_mmd(one, other, bandwidth) for one, other in zip(scaled[2::2], scaled[3::2], strict=True)]
    )
    root = torch.stack([_root_mmd(each, scaled[1], bandwidth) for each in draws.unbind(1)])
    return PriorSensitivity(
        contexts,
        columns,
        baseline,
        root,
        null,
        (1 + (null >= root.unsqueeze(-1)).sum(-1)).double() / (1 + num_null),
        draws.mean(0),
        draws.std(0),
        _LEVELS,
        draws.quantile(levels, dim=0).transpose(0, 1) - reference_quantiles,
        names,
    )


def _of_models(
    posterior: Any,
    x: Any,
    contexts: Tensor,
    columns: tuple[str, ...],
    baseline: Tensor,
    names: Sequence[str] | None,
) -> ModelSensitivity:
    reference = posterior.log_probs(x, baseline)
    names = _check_names(names, reference.shape[-1], "M", "model")
    logs = torch.stack([posterior.log_probs(x, context) for context in contexts])
    kl = torch.stack([kl_to_exact(each, reference) for each in logs])
    return ModelSensitivity(contexts, columns, baseline, logs.exp(), reference.exp(), kl, names)


def _check_names(names: Sequence[str] | None, num: int, letter: str, what: str) -> tuple[str, ...]:
    names = tuple(f"{letter}{j}" for j in range(num)) if names is None else tuple(names)
    if len(names) != num:
        raise ValueError(f"names must be {num} names, one for each {what}, got {names}.")
    return names


def _root_mmd(sample: Tensor, reference: Tensor, bandwidth: float) -> Tensor:
    return mmd_squared(sample, reference, bandwidth).clamp_min(0).sqrt()


def _table_of_contexts(
    contexts: Tensor, columns: tuple[str, ...], baseline: Tensor
) -> tuple[list[str], list[list[str]], str]:
    """Header, cells and the baseline in words; values of one part that are equal everywhere share a column."""
    table = torch.cat([baseline.unsqueeze(0), contexts])
    header, kept = [], []
    for part, numbers in itertools.groupby(range(len(columns)), lambda i: columns[i].split("[")[0]):
        numbers = list(numbers)
        alike = len(numbers) > 1 and bool((table[:, numbers] == table[:, numbers[:1]]).all())
        header += [part] if alike else [columns[i] for i in numbers]
        kept += numbers[:1] if alike else numbers
    first, *others = [[f"{value:g}" for value in row] for row in table[:, kept].tolist()]
    return header, others, ", ".join(f"{name} = {value}" for name, value in zip(header, first, strict=True))
