r"""Sensitivity of a conclusion to the data: to single units, to chance, to missing data, and to preprocessing.

An amortised posterior answers for any data set, so an analysis can be repeated for hundreds of variants of one packed data
set, without training:

- bootstrap: units (groups, or the observations within each group) are drawn with replacement, as many as there are;
- leave one out: each unit in turn is left out, which shows the influence of single units;
- missing: a random share of all observations is left out;
- prepared: data sets of the user, with other exclusions, transforms or windows.

The result is the shift of the posterior mean of each parameter, in posterior standard deviations, or of the probability of
each model. If the data dominate the prior, a bootstrap of exchangeable observations moves means by about one such deviation.

Means of n draws carry noise, so a shift has a standard error e of about 1/√n. It adds to small shifts: where single trials
move the posterior by .05 deviations, 1,000 draws show .06. So it is taken off the root mean square, which is
√(mean(shift²) − mean(e²)). The net's own error, often .05 deviations, stays in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor, check_choice, check_count, check_fraction
from ...utils.packing.sizes import watch_sizes
from ...utils.seeding import seeded
from ...utils.text_table import format_table
from ...utils.warn_user import without_sbi_notes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DataSensitivity", "bootstrap_data", "data_sensitivity", "leave_one_out_data", "missing_data"]

Level = Literal["groups", "observations"]

_NUMBERS_AT_A_TIME = 2**24  # of x in a batch
_DRAWS_AT_A_TIME = 2**20
_BASELINES = 16  # times the draws of a variant: the baseline's error is in all shifts


@dataclass(frozen=True)
class DataSensitivity:
    """Posterior summaries of one data set and of its variants.

    K is the number of parameters, summarised by posterior means, or of models, by probabilities.

    Attributes:
        baseline: Summary of the data as they are, (K,).
        scale: Unit of shifts, (K,): posterior standard deviations of the parameters; 1 for models.
        estimates: Kind of variant → its R summaries, (R, K).
        errors: Kind of variant → Monte Carlo standard errors of its R shifts, (R, K), in units of `scale`; 0 for models.
        names: K names.
        sizes: In which sizes variants leave those that the net was trained on; empty if in none, or if it knows none.
        sizes_are_known: Whether the net remembers the sizes that it was trained on.
    """

    baseline: Tensor
    scale: Tensor
    estimates: dict[str, Tensor]
    errors: dict[str, Tensor]
    names: tuple[str, ...]
    sizes: str = ""
    sizes_are_known: bool = True

    @property
    def shifts(self) -> dict[str, Tensor]:
        """Summaries minus the baseline's, in units of `scale`, (R, K) for each kind."""
        return {kind: (values - self.baseline) / self.scale for kind, values in self.estimates.items()}

    @property
    def root_mean_squares(self) -> dict[str, Tensor]:
        """Root mean square shift of each kind, (K,), without Monte Carlo error; 0 where that explains all of it."""
        squares = {
            kind: shift.square().mean(0) - self.errors[kind].square().mean(0) for kind, shift in self.shifts.items()
        }
        return {kind: square.clamp_min(0).sqrt() for kind, square in squares.items()}

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each variant and parameter, or model."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "variants": kind,
                    "variant": r,
                    "of": name,
                    "shift": float(shift[r, k]),
                    "standard error": float(self.errors[kind][r, k]),
                }
                for kind, shift in self.shifts.items()
                for r in range(len(shift))
                for k, name in enumerate(self.names)
            ]
        )

    def __str__(self) -> str:
        rows = []
        for kind, shift in self.shifts.items():
            for k, name in enumerate(self.names):
                sizes = self.root_mean_squares[kind][k], shift[:, k].abs().max(), self.errors[kind][:, k].mean()
                rows.append((kind, name, str(len(shift)), *(f"{float(v):.3f}" for v in sizes)))
        head = "variants", "of", "number", "root mean square shift", "largest", "error of one"
        table = format_table(head, rows)
        if not self.sizes_are_known:
            return f"{table}\nIt is not known on which sizes the net was trained: shifts hold if it was on such sizes."
        if not self.sizes:
            return table
        return (
            f"{table}\nVariants leave the sizes that the net was trained on ({self.sizes}): their shifts are guesses."
        )


def data_sensitivity(
    posterior: Any,
    x: Tensor,
    *,
    level: Level = "observations",
    num_bootstrap: int = 200,
    missing: float = 0.1,
    num_missing: int = 100,
    prepared: Mapping[str, Tensor] | None = None,
    num_samples: int = 1000,
    names: Any = None,
    seed: int | None = None,
    **sample_settings: Any,
) -> DataSensitivity:
    """Repeat an analysis on variants of the data.

    Args:
        posterior: Amortised posterior over models or parameters: `ModelPosterior`, sbi's `DirectPosterior`,
            `ContextPosterior` or an ensemble. Train it on data of varying sizes, with a mask.
        x: One packed data set: (groups, observations, features + 1), or (trials, features + 1), where trials are
            observations.
        level: Units of the bootstrap and of leaving one out.
        num_bootstrap: Bootstrap variants; none if 0.
        missing: Share of the observations that is left out, in (0, 1).
        num_missing: Variants with missing observations; none if 0.
        prepared: Name → data set of the same shape as x, or R of them (R, *event).
        num_samples: Posterior draws for each variant, of parameters. A shift has a standard error of 1/√num_samples.
        names: K names; "theta_0", … or "M0", … if None.
        seed: Seed; the global generator if None.
        **sample_settings: Passed on to `sample_batched` (such as `context=`) or `log_probs` (such as `model_prior=`).

    Raises:
        ValueError: If x is not packed, has fewer than two units, or an argument is out of range.

    Warns:
        RuntimeWarning: Once, if variants leave the sizes that the net was trained on.

    Example:
        >>> from sbi_bed.inference import ModelPosterior
        >>> from sbi_bed.neural_nets import HierarchicalEmbedding
        >>> from sbi_bed.neural_nets.classifiers import EvidenceClassifier
        >>> embedding = HierarchicalEmbedding(1, output_dim=4)
        >>> posterior = ModelPosterior(EvidenceClassifier(embedding, 2, 4), torch.ones(2) / 2, (5, 8, 2))
        >>> x = torch.cat([torch.randn(5, 8, 1), torch.ones(5, 8, 1)], -1)
        >>> found = data_sensitivity(posterior, x, level="groups", num_bootstrap=50, seed=0)
        >>> {kind: tuple(values.shape) for kind, values in found.estimates.items()}
        {'bootstrap': (50, 2), 'leave one out': (5, 2), 'missing': (100, 2)}
    """
    x = _check_packed(x)
    with seeded(seed):
        variants = {"leave one out": leave_one_out_data(x, level)}
        if check_count(num_bootstrap, "num_bootstrap", 0):
            variants = {"bootstrap": bootstrap_data(x, num_bootstrap, level), **variants}
        if check_count(num_missing, "num_missing", 0):
            variants["missing"] = missing_data(x, num_missing, missing)
        for name, data in (prepared or {}).items():
            data = as_finite_tensor(data, name)
            variants[name] = data.unsqueeze(0) if data.ndim == x.ndim else data
            if variants[name].shape[1:] != x.shape:
                raise ValueError(f"{name} must be data of shape {tuple(x.shape)}, got {tuple(data.shape)}.")
        copies = 1 if _is_over_models(posterior) else _BASELINES
        batch = torch.cat([x.expand(copies, *x.shape), *variants.values()])
        with watch_sizes(warn=False) as watch, without_sbi_notes():
            found, stderr, scale = _summaries(
                posterior, batch, check_count(num_samples, "num_samples", 2), sample_settings
            )
    watch.warn()
    stem = "M" if _is_over_models(posterior) else "theta_"
    names = [f"{stem}{k}" for k in range(found.shape[-1])] if names is None else list(names)
    if len(names) != found.shape[-1]:
        raise ValueError(f"names must be {found.shape[-1]} names, got {names}.")
    lengths = [len(data) for data in variants.values()]
    estimates = dict(zip(variants, found[copies:].split(lengths), strict=True))
    variance = stderr[copies:].square() + stderr[0].square() / copies
    errors = dict(zip(variants, (variance.sqrt() / scale).split(lengths), strict=True))
    baseline = found[:copies].mean(0)
    return DataSensitivity(baseline, scale, estimates, errors, tuple(names), watch.describe(), bool(watch.outside))


def bootstrap_data(x: Tensor, num: int, level: Level = "observations") -> Tensor:
    """Variants (num, *event) of packed x with units drawn with replacement, from torch's generator.

    Groups are drawn among those that have observations; observations are drawn within their group.

    Raises:
        ValueError: As for `data_sensitivity`.

    Example:
        >>> x = torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 0.0]])  # two trials, and padding
        >>> variants = bootstrap_data(x, 100)
        >>> variants[:, :2, 1].min().item(), variants[:, 2].abs().max().item(), variants[:, :2, 0].unique().tolist()
        (1.0, 0.0, [1.0, 2.0])
    """
    x = _check_packed(x)
    if _is_of_groups(x, level):
        present = _present_groups(x)
        chosen = present[torch.randint(len(present), (num, len(present)))]
        variants = x.new_zeros(num, *x.shape)
        variants[:, : len(present)] = x[chosen]
        return variants
    _count_observations(x)
    rows = x.reshape(-1, *x.shape[-2:])
    order = rows[..., -1].argsort(dim=-1, descending=True, stable=True)  # those present first
    rows = rows.gather(1, order.unsqueeze(-1).expand_as(rows))
    count = rows[..., -1].sum(-1, keepdim=True)
    places = (torch.rand(num, *rows.shape[:2], dtype=torch.float64) * count).long()
    drawn = rows.expand(num, *rows.shape).gather(2, places.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))
    drawn = drawn * (torch.arange(x.shape[-2]) < count).unsqueeze(-1).to(drawn)
    return drawn.reshape(num, *x.shape)


def leave_one_out_data(x: Tensor, level: Level = "observations") -> Tensor:
    """Variants (units, *event) of packed x, each without one unit, in order. Memory grows with the square of their number.

    Raises:
        ValueError: As for `data_sensitivity`.

    Example:
        >>> leave_one_out_data(torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 0.0]]))[..., 0].tolist()
        [[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]
    """
    x = _check_packed(x)
    if _is_of_groups(x, level):
        units = _present_groups(x)
        variants = x.repeat(len(units), *[1] * x.ndim)
        variants[torch.arange(len(units)), units] = 0
        return variants
    _count_observations(x)
    flat = x.reshape(-1, x.shape[-1])
    units = flat[:, -1].nonzero().squeeze(-1)
    variants = flat.repeat(len(units), 1, 1)
    variants[torch.arange(len(units)), units] = 0
    return variants.reshape(len(units), *x.shape)


def missing_data(x: Tensor, num: int, share: float) -> Tensor:
    """Variants (num, *event) of packed x without a random share of its observations (at least one observation).

    Raises:
        ValueError: As for `data_sensitivity`.

    Example:
        >>> missing_data(torch.ones(10, 2), 3, 0.3)[..., -1].sum(-1).tolist()
        [7.0, 7.0, 7.0]
    """
    x = _check_packed(x)
    check_fraction(share, "missing")
    total = _count_observations(x)
    flat = x.reshape(-1, x.shape[-1])
    units = flat[:, -1].nonzero().squeeze(-1)
    dropped = min(max(1, round(share * total)), total - 1)
    chosen = units[torch.rand(num, total).argsort(-1)[:, :dropped]]
    variants = flat.repeat(num, 1, 1)
    variants[torch.arange(num).unsqueeze(-1), chosen] = 0
    return variants.reshape(num, *x.shape)


# ---- checks and summaries


def _check_packed(x: Any) -> Tensor:
    x = as_finite_tensor(x, "x").detach()
    if x.ndim < 2 or x.shape[-1] < 2 or not bool(((x[..., -1] == 0) | (x[..., -1] == 1)).all()):
        raise ValueError(
            "x must be one packed data set (..., observations, features + 1) whose last channel is a mask of 0 and 1, "
            f"got shape {tuple(x.shape)}."
        )
    return x


def _is_of_groups(x: Tensor, level: str) -> bool:
    check_choice(level, "level", ("groups", "observations"))
    if level == "groups" and x.ndim < 3:
        raise ValueError(f'x of shape {tuple(x.shape)} has no groups: give level="observations".')
    return level == "groups"


def _present_groups(x: Tensor) -> Tensor:
    present = (x[..., -1] > 0).flatten(1).any(1).nonzero().squeeze(-1)
    if len(present) < 2:
        raise ValueError(f"x must have at least two groups with observations, got {len(present)}.")
    return present


def _count_observations(x: Tensor) -> int:
    total = int(x[..., -1].sum())
    if total < 2:
        raise ValueError(f"x must have at least two observations, got {total}.")
    return total


def _is_over_models(posterior: Any) -> bool:
    """An ensemble has the methods of both kinds, so ask its members."""
    return hasattr(getattr(posterior, "members", [posterior])[0], "log_probs")


@torch.no_grad()
def _summaries(posterior: Any, batch: Tensor, num_samples: int, settings: dict[str, Any]) -> tuple[Tensor, ...]:
    """Means or probabilities (R, K) of data sets (R, *event), their standard errors, and the unit (K,) of shifts."""
    step = max(1, _NUMBERS_AT_A_TIME // batch[0].numel())
    if _is_over_models(posterior):
        probs = torch.cat([posterior.log_probs(part, **settings).exp().cpu() for part in batch.split(step)])
        return probs, torch.zeros_like(probs), torch.ones_like(probs[0])
    step = max(1, min(step, _DRAWS_AT_A_TIME // num_samples))
    member = getattr(posterior, "members", [posterior])[0]
    if "max_sampling_batch_size" in inspect.signature(member.sample_batched).parameters:
        largest = max(1, 100_000 // min(step, len(batch)))  # sbi warns of more
        settings = {"max_sampling_batch_size": min(num_samples, largest), **settings}
    means, sds = [], []
    for part in batch.split(step):
        draws = posterior.sample_batched((num_samples,), x=part, show_progress_bars=False, **settings).double().cpu()
        means.append(draws.mean(0))
        sds.append(draws.std(0))
    sd = torch.cat(sds)
    return torch.cat(means), sd / num_samples**0.5, sd[0]
