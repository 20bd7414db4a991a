r"""Intervals for the mean of bounded scores that hold for any number of units: betting (Waudby-Smith & Ramdas 2023).

Outcomes lie in [l, h], and predictions are kept there. Given the past, the score Γ_t (`a2ipw.py`) then lies in an interval
[a_t, b_t] that is known before the arm is drawn, and has mean τ. If τ were m, a player who bets a share γ of what can be
lost on Γ_t > m or on Γ_t < m would have the capital

    K⁺_t(m) = Π_s (1 + γ (Γ_s − m) / (m − a_s)),    K⁻_t(m) = Π_s (1 + γ (m − Γ_s) / (b_s − m)),

two martingales with mean 1 that are never negative. So are their averages over several γ. By Ville's inequality either one
exceeds 2/α at any time with probability at most α/2. The m at which neither does are a confidence sequence: it covers τ at
all times at once with probability 1 − α, for every sample size and every distribution, whatever the design did
(arXiv 2010.09686; for adaptive propensities arXiv 2210.10768).

At one time t that is fixed beforehand the average takes only γ near the best one for t units, about √(2 log(2/α) / t) times
the ratio of range to standard deviation. The interval is then tighter and holds at that time.

All of this is exact where every outcome of the units that enter is there. Where outcomes are missing, scores and their
ranges rest on rates of observation that are estimated from all units (`observation.py`), not from the units before. Then
coverage is approximate.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....utils.checks import check_positive

__all__ = ["betting_intervals", "check_outcome_space", "check_outcomes", "outcome_range"]

_SHARES = 0.95 * 0.62 ** torch.arange(12, dtype=torch.float64)  # γ
_NUM_CANDIDATES = 201  # m
_LARGEST = 5_000_000  # numbers held at once
_MOST = 700.0  # log of a capital that still fits into float64


def check_outcome_space(space: Any) -> str | tuple[float, float]:
    """Return "real", "binary" or (low, high), the range of outcomes.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> check_outcome_space([0, 5])
        (0.0, 5.0)
    """
    if isinstance(space, str) and space in ("real", "binary"):
        return space
    try:
        low, high = (float(end) for end in space)
    except (TypeError, ValueError):
        raise ValueError(f"outcome_space must be 'real', 'binary' or (low, high), got {space!r}.") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"outcome_space (low, high) needs two finite numbers, low below high, got {space!r}.")
    return low, high


def outcome_range(space: Any) -> tuple[float, float] | None:
    """Lowest and highest outcome; None for real outcomes."""
    space = check_outcome_space(space)
    return None if space == "real" else (0.0, 1.0) if isinstance(space, str) else space


def check_outcomes(outcomes: Tensor, space: Any) -> None:
    """Raise a `ValueError` that names the first outcome outside the space, if there is one."""
    if (ends := outcome_range(space)) is None:
        return
    wrong = (outcomes < ends[0]) | (outcomes > ends[1])
    if space == "binary":
        wrong = (outcomes != 0) & (outcomes != 1)
    if wrong.any():
        expected = "0 or 1" if space == "binary" else f"between {ends[0]:g} and {ends[1]:g}"
        raise ValueError(f"outcome must be {expected}, as outcome_space says, got {float(outcomes[wrong][0]):g}.")


def betting_intervals(
    scores: Tensor, lowest: Tensor, highest: Tensor, width: float, level: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Interval at one fixed time, and confidence sequence, after each unit: lower and upper ends (..., T), float64.

    Args:
        scores: Γ_t, (..., T).
        lowest: a_t, (..., T).
        highest: b_t, (..., T).
        width: h − l; the mean of the scores lies in [−width, width].
        level: Level 1 − α of both.

    Raises:
        ValueError: If the width is not positive.

    Example:
        >>> none = torch.zeros(40, dtype=torch.float64)  # 40 units and no event, with propensity ½
        >>> interval, _ = betting_intervals(none, none - 2, none + 2, 1.0, 0.95)
        >>> round(float(interval[1][-1]), 2)
        0.24
    """
    width = check_positive(width, "width")
    shape, num_units = scores.shape, scores.shape[-1]
    rows = [part.reshape(-1, num_units) for part in (scores, lowest, highest)]
    per_chunk = max(1, _LARGEST // (num_units * _NUM_CANDIDATES * len(_SHARES)))
    ends = []
    for chunk in zip(*(part.split(per_chunk) for part in rows), strict=True):
        scores, lowest, highest = chunk
        lower = _lower_ends(scores, lowest, width, level)
        upper = _lower_ends(-scores, -highest, width, level)
        ends.append(torch.stack([lower[0], -upper[0], lower[1], -upper[1]]))
    fixed_low, fixed_high, low, high = torch.cat(ends, 1).reshape(4, *shape)
    return (fixed_low, fixed_high), (low, high)


def _lower_ends(scores: Tensor, lowest: Tensor, width: float, level: float) -> Tensor:
    """Lower ends (2, E, T): of the interval at a fixed time and of the sequence."""
    place = torch.linspace(-1, 1, _NUM_CANDIDATES, dtype=torch.float64)
    candidates = width * torch.sinh(6 * place) / math.sinh(6)  # finer about 0, where effects are
    count = torch.arange(1, scores.shape[-1] + 1, dtype=torch.float64)
    best = (2 * math.log(2 / (1 - level)) / count).sqrt().clamp_max(float(_SHARES[0])).unsqueeze(-1)
    near = (best / 3 <= _SHARES) & (15 * best >= _SHARES)
    near[:, 0] |= ~near.any(-1)
    weights = torch.stack([near.double(), torch.ones_like(near, dtype=torch.float64)])
    weights = weights / weights.sum(-1, keepdim=True)  # (2, T, shares)
    margin = (candidates - lowest.unsqueeze(-1)).clamp_min(1e-12)  # (E, T, m)
    gain = ((scores.unsqueeze(-1) - candidates) / margin).clamp_min(-1.0)
    capital = torch.zeros(2, *gain.shape, dtype=torch.float64)  # what is below the smallest float64 counts as lost
    for number, share in enumerate(_SHARES):
        one = (share * gain).log1p_().cumsum(-2).clamp_max_(_MOST).exp_()
        for total, weight in zip(capital, weights[:, :, number, None], strict=True):
            total.addcmul_(one, weight)
    rejected = capital >= 2 / (1 - level)
    # Candidates below the first that is not rejected are out; between the two the end is interpolated.
    first = rejected.cummin(-1).values.sum(-1)  # number of rejected candidates from the lowest on
    at, before = first.clamp_max(_NUM_CANDIDATES - 1), (first - 1).clamp_min(0)
    above, below = (capital.gather(-1, index.unsqueeze(-1)).squeeze(-1).log() for index in (at, before))
    share = ((below - math.log(2 / (1 - level))) / (below - above).clamp_min(1e-12)).clamp(0, 1)
    share = torch.where(torch.isfinite(share), share, 0.0)
    ends = candidates[before] + share * (candidates[at] - candidates[before])
    return torch.where(first == 0, -width, torch.where(first == _NUM_CANDIDATES, width, ends))
