"""Results of `prior_sensitivity`: over parameters and over models; `str` is a table."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...utils.text_table import format_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ModelSensitivity", "PriorSensitivity"]


@dataclass(frozen=True)
class PriorSensitivity:
    """A posterior over P parameters in G alternatives, beside a baseline; shifts are in the baseline's standard deviations.

    The alternatives are contexts, then named priors. A value that does not exist for an alternative is NaN.

    Attributes:
        contexts: The contexts, (number of contexts, C).
        columns: Names of their values.
        baseline: The context compared with, (C,); empty for a posterior without contexts.
        priors: Names of the priors.
        root_mmd: √MMD from the baseline, (G,); NaN for named priors.
        null: √MMD of R pairs of independent samples of the baseline, (R,); of an ensemble, each pair is of two members.
        p_value: Probability of a √MMD at least as large if nothing changed, (G,); at least 1/(R + 1); NaN for named priors.
        mean_shift: Change of means, (G, P); for named priors by importance weights, NaN if k̂ is too large.
        mean_shift_stderr: Standard errors of `mean_shift`, (G, P), from `error_sources`.
        error_sources: What the standard errors and p-values contain.
        sd_ratio: Standard deviations over the baseline's, (G, P).
        levels: Levels of the quantiles, (Q,).
        quantile_shift: Change of quantiles, (G, Q, P).
        weighted_shift: Change of means by importance weights of the baseline's draws, (G, P), a check of `mean_shift`. With
            a likelihood, weights also correct the baseline and its standard deviation, so this is the answer without the
            error of the net. NaN if there are no weights or k̂ is too large.
        weighted_shift_stderr: Standard errors of `weighted_shift`, (G, P).
        pareto_k: k̂ of the weights, (G,); NaN if there are none, −∞ if they are equal.
        names: Names of the parameters, P.
    """

    contexts: Tensor
    columns: tuple[str, ...]
    baseline: Tensor
    priors: tuple[str, ...]
    root_mmd: Tensor
    null: Tensor
    p_value: Tensor
    mean_shift: Tensor
    mean_shift_stderr: Tensor
    error_sources: str
    sd_ratio: Tensor
    levels: tuple[float, ...]
    quantile_shift: Tensor
    weighted_shift: Tensor
    weighted_shift_stderr: Tensor
    pareto_k: Tensor
    names: tuple[str, ...]

    @property
    def null_upper(self) -> float:
        """95 % quantile of the null; NaN without contexts."""
        return float(self.null.quantile(0.95)) if len(self.null) else float("nan")

    @property
    def disagrees(self) -> Tensor:
        """Whether shift and weighted shift of a parameter differ by over 3 standard errors and 0.1 sd, (G, P), bool."""
        gap = (self.mean_shift - self.weighted_shift).abs()
        error = (self.mean_shift_stderr.square() + self.weighted_shift_stderr.square()).sqrt()
        return (gap > 3 * error) & (gap > 0.1)

    @property
    def unchecked(self) -> Tensor:
        """Whether no importance weights check an alternative, or k̂ forbids them, (G,), bool."""
        return self.weighted_shift.isnan().any(-1)

    @property
    def labels(self) -> list[str]:
        """What each alternative is called, G."""
        header, cells, _ = _table_of_contexts(self.contexts, self.columns, self.baseline)
        described = [", ".join(f"{name} = {value}" for name, value in zip(header, row, strict=True)) for row in cells]
        return [*described, *self.priors]

    def __str__(self) -> str:
        header, cells, baseline = _table_of_contexts(self.contexts, self.columns, self.baseline)
        if self.priors:
            header = ["prior", *header]
            cells = [*(["", *row] for row in cells), *([name, *[""] * (len(header) - 1)] for name in self.priors)]
        is_checked = bool(torch.isfinite(self.weighted_shift).any()) and len(self.contexts) > 0
        columns: list[tuple[str, list[str]]] = []
        if len(self.contexts):
            columns += [
                ("√MMD", _numbers(self.root_mmd, ".3f")),
                ("p", _marked(self.p_value, self.disagrees.any(-1), ".3f")),
            ]
        for j, name in enumerate(self.names):
            moments = (part[:, j].tolist() for part in (self.mean_shift, self.sd_ratio, self.mean_shift_stderr))
            cells_of_one = zip(*moments, strict=True)
            columns.append((name, ["-" if a != a else f"{a:+.2f} (×{b:.2f}) ± {c:.2f}" for a, b, c in cells_of_one]))
            if is_checked:
                columns.append((f"weighted {name}", _marked(self.weighted_shift[:, j], self.disagrees[:, j], "+.2f")))
        if bool((~self.pareto_k.isnan()).any()):
            columns.append(("k̂", _numbers(self.pareto_k, ".2f")))
        rows = [[*row, *(column[g] for _, column in columns)] for g, row in enumerate(cells)]
        notes = ["shift of the mean ± its standard error, in the baseline's sd, and (×) ratio of sd"]
        if len(self.contexts):
            notes.append(f"baseline {baseline}: 95 % of its own √MMD are below {self.null_upper:.3f}")
        notes.append(f"± and p contain {self.error_sources}")
        if is_checked:
            notes.append(
                "weighted: the same shift by importance weights (! where it differs: p is that of a wrong net)"
            )
        return f"{format_table([*header, *(name for name, _ in columns)], rows)}\n{'; '.join(notes)}"

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each alternative and parameter."""
        import pandas as pd

        rows = []
        for g, label in enumerate(self.labels):
            of_all = {"root_mmd": self.root_mmd, "p_value": self.p_value, "pareto_k": self.pareto_k}
            for j, name in enumerate(self.names):
                of_one = {
                    "mean_shift": self.mean_shift,
                    "mean_shift_stderr": self.mean_shift_stderr,
                    "sd_ratio": self.sd_ratio,
                    "weighted_shift": self.weighted_shift,
                }
                values = {key: float(value[g, j]) for key, value in of_one.items()}
                values |= {key: float(value[g]) for key, value in of_all.items()}
                rows.append({"alternative": label, "parameter": name, **values})
        return pd.DataFrame(rows)


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
        members_sd: Standard deviation of the members' probabilities, (G, B, J); NaN if there is one net only.
        names: Names of the models, J.
    """

    contexts: Tensor
    columns: tuple[str, ...]
    baseline: Tensor
    probs: Tensor
    baseline_probs: Tensor
    kl: Tensor
    members_sd: Tensor
    names: tuple[str, ...]

    def __str__(self) -> str:
        header, cells, baseline = _table_of_contexts(self.contexts, self.columns, self.baseline)
        change = (self.probs - self.baseline_probs).abs().amax((1, 2))
        chosen = (self.probs.argmax(-1) != self.baseline_probs.argmax(-1)).double().mean(-1)
        columns = [self.kl.mean(-1), self.kl.amax(-1), change, chosen, *self.probs.mean(1).unbind(-1)]
        header = [*header, "mean KL", "largest KL", "largest change", "other best", *self.names]
        is_ensemble = not bool(self.members_sd.isnan().any())
        if is_ensemble:
            columns.append(self.members_sd.amax((1, 2)))
            header.append("largest sd of members")
        rows = [(*cells[g], *(f"{float(values[g]):.4f}" for values in columns)) for g in range(len(cells))]
        return (
            f"{format_table(header, rows)}\nKL in nats; under models' names mean probabilities; "
            f"baseline {baseline}; {self.kl.shape[1]} data sets"
            f"{'' if is_ensemble else '; errors of the net are not known: train an ensemble'}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each context, data set and model."""
        import pandas as pd

        _, num_sets, num_models = self.probs.shape
        header, cells, _ = _table_of_contexts(self.contexts, self.columns, self.baseline)
        return pd.DataFrame(
            [
                {
                    "context": ", ".join(f"{name} = {value}" for name, value in zip(header, row, strict=True)),
                    "data_set": b,
                    "model": self.names[j],
                    "probability": float(self.probs[g, b, j]),
                    "baseline_probability": float(self.baseline_probs[b, j]),
                    "members_sd": float(self.members_sd[g, b, j]),
                }
                for g, row in enumerate(cells)
                for b in range(num_sets)
                for j in range(num_models)
            ]
        )


def _numbers(values: Tensor, form: str) -> list[str]:
    return ["-" if value != value else f"{value:{form}}" for value in values.tolist()]


def _marked(values: Tensor, marks: Tensor, form: str) -> list[str]:
    return [f"{value}!" if mark else value for value, mark in zip(_numbers(values, form), marks.tolist(), strict=True)]


def _table_of_contexts(
    contexts: Tensor, columns: tuple[str, ...], baseline: Tensor
) -> tuple[list[str], list[list[str]], str]:
    """Header, cells, and the baseline in words; values of one part that are equal everywhere share a column."""
    if len(contexts) == 0:
        return [], [], ""
    table = torch.cat([baseline.unsqueeze(0), contexts])
    header, kept = [], []
    for part, numbers in itertools.groupby(range(len(columns)), lambda i: columns[i].split("[")[0]):
        numbers = list(numbers)
        alike = len(numbers) > 1 and bool((table[:, numbers] == table[:, numbers[:1]]).all())
        header += [part] if alike else [columns[i] for i in numbers]
        kept += numbers[:1] if alike else numbers
    first, *others = [[f"{value:g}" for value in row] for row in table[:, kept].tolist()]
    return header, others, ", ".join(f"{name} = {value}" for name, value in zip(header, first, strict=True))
