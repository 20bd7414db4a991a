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

With K > 2 arms, arm 0 the control, each of the effects τ_1 … τ_{K−1} against it has its own scores, in which units of the
other arms count as units of neither. Intervals that hold for all effects together take α / (K − 1) for each (Bonferroni).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ....simulators.treatment.arms import arm_chances, arm_indicators
from ....utils.checks import as_finite_tensor, check_count, check_fraction
from ....utils.text_table import format_table

__all__ = [
    "AteEstimate",
    "a2ipw_scores",
    "check_arm",
    "check_propensity",
    "contrast_scores",
    "estimate_ate",
    "mixture_scale",
]

FIRST_LOOK = 20  # below this many units σ̂ is too rough for an asymptotic confidence sequence, which is then infinite


@dataclass(frozen=True)
class AteEstimate:
    """Average treatment effect with a standard error and intervals; numbers, or tensors of one shape.

    With K > 2 arms the last dimension are the effects of arms 1 … K − 1 against arm 0, (..., K − 1).

    Attributes:
        ate: Estimate, in the outcome's unit.
        stderr: Its standard error; infinite with fewer than two units.
        interval: Lower and upper end of the Wald interval of each effect, for one look at a time fixed beforehand.
        confidence_sequence: Lower and upper end of the interval that holds however often one looks, for all effects
            together; infinite below 20 units.
        num_units: Number of units that it rests on.
        level: Level of all intervals.
        joint_interval: As `interval`, but intervals that hold for all effects together; the same with two arms.
        num_arms: Number K of arms.
    """

    ate: Any
    stderr: Any
    interval: tuple[Any, Any]
    confidence_sequence: tuple[Any, Any]
    num_units: Any
    level: float
    joint_interval: tuple[Any, Any]
    num_arms: int = 2

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
        if self.num_arms > 2 and self.ate.ndim == 1:
            each = zip(self.ate, self.stderr, *self.interval, *self.confidence_sequence, self.num_units, strict=True)
            rows = [
                (
                    f"arm {a} − arm 0",
                    f"{t:.4g} ± {s:.2g}",
                    f"[{lo:.4g}, {up:.4g}]",
                    f"[{first:.4g}, {last:.4g}]",
                    f"{n}",
                )
                for a, (t, s, lo, up, first, last, n) in enumerate(each, 1)
            ]
            return format_table(("", "effect", f"{self.level:.0%} interval", "all, at any time", "units"), rows)
        if isinstance(self.ate, Tensor):
            return f"AteEstimate of shape {tuple(self.ate.shape)} at level {self.level:g}"
        return (
            f"effect {self.ate:.4g} ± {self.stderr:.2g}, {self.level:.0%} interval "
            f"[{self.interval[0]:.4g}, {self.interval[1]:.4g}], at any time "
            f"[{self.confidence_sequence[0]:.4g}, {self.confidence_sequence[1]:.4g}] ({self.num_units} units)"
        )


def a2ipw_scores(arm: Any, outcome: Any, propensity: Any, predicted: Any) -> Tensor:
    """Γ_t of each unit, (..., T), float64; with K > 2 arms of each effect, (..., T, K − 1).

    Args:
        arm: Arm of each unit, 0 … K − 1, shape (..., T).
        outcome: Outcome (..., T).
        propensity: Probability of arm 1 when it was drawn, strictly between 0 and 1, shape (..., T); with K > 2 arms of
            each arm, (..., T, K).
        predicted: Outcome predicted for each arm before it was known, (..., T, K); zeros give plain inverse weighting.

    Raises:
        ValueError: If shapes do not match, a number is not finite, an arm unknown, or a propensity not within (0, 1).

    Example:
        >>> a2ipw_scores([1, 0], [3.0, 1.0], [0.5, 0.5], [[1.0, 2.0], [1.0, 2.0]])
        tensor([3., 1.], dtype=torch.float64)
    """
    outcome, propensity = as_finite_tensor(outcome, "outcome").double(), check_propensity(propensity)
    predicted = as_finite_tensor(predicted, "predicted", None if propensity.ndim > outcome.ndim else 2).double()
    num_arms = predicted.shape[-1]
    arm = check_arm(arm, num_arms)
    wanted = [*[arm.shape] * 2, arm.shape if num_arms == 2 else (*arm.shape, num_arms), (*arm.shape, num_arms)]
    if [outcome.shape, arm.shape, propensity.shape, predicted.shape] != wanted:
        raise ValueError(
            "arm, outcome, propensity and predicted must have shapes (..., T), (..., T), (..., T) and (..., T, 2), or with "
            f"K > 2 arms (..., T), (..., T), (..., T, K) and (..., T, K), got {tuple(arm.shape)}, {tuple(outcome.shape)}, "
            f"{tuple(propensity.shape)} and {tuple(predicted.shape)}."
        )
    scores = contrast_scores(arm, outcome, arm_chances(propensity, num_arms), predicted)
    return scores.squeeze(-1) if num_arms == 2 else scores


def contrast_scores(arm: Tensor, outcome: Tensor, chances: Tensor, predicted: Tensor) -> Tensor:
    """Γ of each effect against arm 0, (..., T, K − 1), of units with probabilities `chances` (..., T, K) of each arm.

    A unit whose arm is none of 0 … K − 1 counts for its predictions only.

    Example:
        >>> chances, predicted = torch.full((2, 2), 0.25), torch.tensor([1.0, 2.0]).expand(2, 2)
        >>> contrast_scores(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 9.0]), chances, predicted)
        tensor([[5.],
                [1.]])
    """
    weighted = arm_indicators(arm, predicted.shape[-1]) * (outcome.unsqueeze(-1) - predicted) / chances
    return predicted[..., 1:] - predicted[..., :1] + weighted[..., 1:] - weighted[..., :1]


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
    interval, sequence = (ate - wald, ate + wald), (ate - width, ate + width)
    return AteEstimate(ate, stderr, interval, sequence, count.long().expand_as(ate), level, interval)


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


def check_arm(arm: Any, num_arms: int = 2) -> Tensor:
    """Return arms as float64, all 0 … K − 1; a `ValueError` that names the first bad index otherwise."""
    arm = as_finite_tensor(arm, "arm").double()
    bad = arm_indicators(arm, num_arms).sum(-1) == 0
    if bad.any():
        index, allowed = tuple(bad.nonzero()[0].tolist()), " or ".join(map(str, range(num_arms)))
        raise ValueError(f"arm must be {allowed}, got {arm[index].item():g} at index {index}.")
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
