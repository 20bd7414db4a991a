r"""The average treatment effect of an adaptive experiment: A2IPW, its standard error, and two kinds of interval.

Unit t has covariates X_t, an arm A_t ∈ {0, 1} drawn with P(A_t = 1) = e_t, and an outcome Y_t. With predictions f̂_t(x, a)
of the outcome that are made, as e_t is, before the outcome is known,

    Γ_t = f̂_1 − f̂_0 + A_t (Y_t − f̂_1) / e_t − (1 − A_t) (Y_t − f̂_0) / (1 − e_t)

has mean τ given the past, whatever f̂ is: Γ_t − τ is a martingale difference. So τ̂_t = t⁻¹ Σ Γ_s is unbiased, and by the
martingale central limit theorem, studentised by the realised quadratic variation σ̂_t² = (t − 1)⁻¹ Σ (Γ_s − τ̂_t)², which
e_t need not settle for (Hahn, Hirano, Karlan 2011; Kato et al. 2020, arXiv 2002.05308),

    τ̂_t ± z_{1−α/2} σ̂_t / √t

covers τ with probability 1 − α at one t that was fixed beforehand. Looked at again and again it fails. The (asymptotic)
confidence sequence (Waudby-Smith et al. 2024, arXiv 2103.06476)

    τ̂_t ± σ̂_t √( 2 (tρ² + 1) / (t²ρ²) · log( √(tρ² + 1) / α ) )

covers τ at all t at once. It is tightest at the t where s = tρ² solves s = log(s + 1) + 2 log(1/α).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ....utils.checks import as_finite_tensor, check_count, check_fraction

__all__ = [
    "AteEstimate",
    "a2ipw_scores",
    "check_arm",
    "check_propensity",
    "estimate_ate",
    "mixture_scale",
]

FIRST_LOOK = 20  # below this many units σ̂ is too rough for an asymptotic confidence sequence, which is then infinite


@dataclass(frozen=True)
class AteEstimate:
    """Average treatment effect with a standard error and intervals; numbers, or tensors of one shape.

    Attributes:
        ate: Estimate, in the outcome's unit.
        stderr: Its standard error; infinite with fewer than two units.
        interval: Lower and upper end of the Wald interval, for one look at a time fixed beforehand.
        confidence_sequence: Lower and upper end of the interval that holds however often one looks; infinite below 20
            units.
        num_units: Number of units that it rests on.
        level: Level of both intervals.
    """

    ate: Any
    stderr: Any
    interval: tuple[Any, Any]
    confidence_sequence: tuple[Any, Any]
    num_units: Any
    level: float

    def at(self, index: Any) -> AteEstimate:
        """The same at one place of tensors; numbers if that is a single one.

        Example:
            >>> running = estimate_ate(torch.tensor([1.0, 3.0, 2.0]))
            >>> running.at(-1).ate, running.at(-1).num_units
            (2.0, 3)
        """

        def pick(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(pick(part) for part in value)
            value = value[index] if isinstance(value, Tensor) else value
            return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value

        return AteEstimate(**{field.name: pick(getattr(self, field.name)) for field in fields(self)})

    def __str__(self) -> str:
        if isinstance(self.ate, Tensor):
            return f"AteEstimate of shape {tuple(self.ate.shape)} at level {self.level:g}"
        return (
            f"effect {self.ate:.4g} ± {self.stderr:.2g}, {self.level:.0%} interval "
            f"[{self.interval[0]:.4g}, {self.interval[1]:.4g}], at any time "
            f"[{self.confidence_sequence[0]:.4g}, {self.confidence_sequence[1]:.4g}] ({self.num_units} units)"
        )


def a2ipw_scores(arm: Any, outcome: Any, propensity: Any, predicted: Any) -> Tensor:
    """Γ_t of each unit, (..., T), float64.

    Args:
        arm: Arm of each unit, 0 or 1, shape (..., T).
        outcome: Outcome (..., T).
        propensity: Probability of arm 1 when it was drawn, strictly between 0 and 1, shape (..., T).
        predicted: Outcome predicted for arm 0 and for arm 1 before it was known, (..., T, 2); zeros give plain inverse
            weighting.

    Raises:
        ValueError: If shapes do not match, a number is not finite, an arm not 0 or 1, or a propensity not within (0, 1).

    Example:
        >>> a2ipw_scores([1, 0], [3.0, 1.0], [0.5, 0.5], [[1.0, 2.0], [1.0, 2.0]])
        tensor([3., 1.], dtype=torch.float64)
    """
    arm, propensity = check_arm(arm), check_propensity(propensity)
    outcome = as_finite_tensor(outcome, "outcome").double()
    predicted = as_finite_tensor(predicted, "predicted", last_dim=2).double()
    shapes = [tuple(x.shape) for x in (arm, outcome, propensity, predicted[..., 0])]
    if len(set(shapes)) > 1:
        raise ValueError(
            "arm, outcome, propensity and predicted must have shapes (..., T), (..., T), (..., T) and (..., T, 2), got "
            f"{shapes[0]}, {shapes[1]}, {shapes[2]} and {tuple(predicted.shape)}."
        )
    f0, f1 = predicted.unbind(-1)
    return f1 - f0 + arm * (outcome - f1) / propensity - (1 - arm) * (outcome - f0) / (1 - propensity)


def estimate_ate(scores: Any, level: float = 0.95, tightest_at: int = 200) -> AteEstimate:
    """Estimate, standard error and intervals after each unit: tensors (..., T).

    Args:
        scores: Γ_t of each unit, (..., T), as `a2ipw_scores` gives them.
        level: Level of the intervals.
        tightest_at: Number of units at which the confidence sequence is tightest; to be fixed before seeing outcomes.

    Raises:
        ValueError: If there is no unit, a score is not finite, or the level not within (0, 1).

    Example:
        >>> running = estimate_ate(torch.randn(1000, 400, generator=torch.Generator().manual_seed(0)))
        >>> low, high = running.interval
        >>> bool(((low < 0) & (0 < high))[:, -1].float().mean() > 0.93)
        True
    """
    level, scores = check_fraction(level, "level"), as_finite_tensor(scores, "scores").double()
    if scores.shape[-1] == 0:
        raise ValueError("scores must have at least one unit, got none.")
    count = torch.arange(1, scores.shape[-1] + 1, dtype=torch.float64, device=scores.device)
    ate = scores.cumsum(-1) / count
    shifted = scores - scores[..., :1]  # the sum of squares cancels less about a value of the sample's own size
    centre = shifted.cumsum(-1) / count
    squares = (shifted.square().cumsum(-1) - count * centre.square()).clamp_min(0)
    sd = torch.where(count > 1, squares / (count - 1).clamp_min(1), torch.inf).sqrt()
    stderr = sd / count.sqrt()
    wald = NormalDist().inv_cdf(0.5 + level / 2) * stderr
    width = torch.where(count < FIRST_LOOK, torch.inf, stderr * squared_width(count, level, tightest_at).sqrt())
    return AteEstimate(
        ate, stderr, (ate - wald, ate + wald), (ate - width, ate + width), count.long().expand_as(ate), level
    )


def squared_width(count: Tensor, level: float, tightest_at: int) -> Tensor:
    """Squared half-width of the confidence sequence in standard errors, after `count` units."""
    s = count * mixture_scale(level, tightest_at) ** 2
    return 2 * (s + 1) / s * (0.5 * (s + 1).log() - math.log(1 - level))


def mixture_scale(level: float, tightest_at: int) -> float:
    """ρ of the confidence sequence that is tightest after `tightest_at` units.

    Example:
        >>> round(200 * mixture_scale(0.95, 200) ** 2, 2)
        8.21
    """
    log_inverse = -2 * math.log(1 - check_fraction(level, "level"))
    s = log_inverse + 1
    for _ in range(100):  # a contraction: its slope is 1 / (s + 1)
        s = math.log(s + 1) + log_inverse
    return math.sqrt(s / check_count(tightest_at, "tightest_at"))


def check_arm(arm: Any, name: str = "arm") -> Tensor:
    """Return arms as float64, all 0 or 1; a `ValueError` that names the first bad index otherwise."""
    arm = as_finite_tensor(arm, name).double()
    bad = (arm != 0) & (arm != 1)
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{name} must be 0 or 1, got {arm[index].item():g} at index {index}.")
    return arm


def check_propensity(propensity: Any, name: str = "propensity") -> Tensor:
    """Return propensities as float64, all strictly between 0 and 1; a `ValueError` that names the first bad index."""
    propensity = as_finite_tensor(propensity, name).double()
    bad = (propensity <= 0) | (propensity >= 1)
    if bad.any():
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} must be strictly between 0 and 1, got {propensity[index].item():g} at index {index}: an arm that is "
            "never or always given leaves no effect to estimate."
        )
    return propensity
