r"""What an estimate cannot know yet: standard errors that do not vanish, and sequences that wait for enough events.

Asymptotic intervals trust the observed spread of the scores. That fails while one arm has seen few events: with rare events
the spread is 0 until the first one comes. Let r be the outcomes less their median, and

    k_a = (Σ r²)² / Σ r⁴ over arm a,    c = Σ r⁴ / Σ r² over both arms,

the effective number of events and the square of their size: k events of one size have k_a = k, and normal outcomes n / 3.

- Standard error: an arm with k_a < 3 gets the events that it lacks, as in the rule of three. To the sum of squared scores
  (3 − k_a) c / p_a² is added, p_a the mean probability of the arm. While all outcomes are equal it is infinite.
- Fixed time: n scores are worth m = min(n, 3 k) normal ones, k of the scores about the estimate. If m is below n / 2,
  the normal quantile is raised by the ratio of Student's quantiles for 2 m and for n units.
- Confidence sequence: with b the squared width in standard errors, it is widened by √(m / (m − b)), and infinite for m ≤ b.
  This is the width of a self-normalised sequence, whose variance is taken about the candidate effect (de la Peña 1999),
  with m in place of the number of units.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FEWEST_EVENTS", "effective_events", "effective_number", "missing_events", "sequence_factor"]

FEWEST_EVENTS = 3.0


def effective_events(values: Tensor) -> Tensor:
    """(Σ v²)² / Σ v⁴ of the values up to each one, (..., T); 0 while all are 0.

    Example:
        >>> effective_events(torch.tensor([0.0, 2.0, 0.0, 2.0])).tolist()
        [0.0, 1.0, 1.0, 2.0]
    """
    scale = values.abs().amax(-1, keepdim=True) if values.shape[-1] else values.new_ones(1)
    squares = (values / torch.where(scale > 0, scale, 1.0)).square()
    fourth = squares.square().cumsum(-1)
    return squares.cumsum(-1).square() / torch.where(fourth > 0, fourth, 1.0)


def missing_events(
    deviation: Tensor, arm: Tensor, propensity: Tensor, size_at_first: float | None = None
) -> tuple[Tensor, Tensor]:
    """What the sum of squared scores lacks after each unit, (..., T), and each arm's effective events, (..., T, 2).

    Args:
        deviation: Outcome less the median, 0 where it is missing, (..., T).
        arm: Shape (..., T).
        propensity: Of arm 1, (..., T).
        size_at_first: Size of an event before there is any; infinite if None.
    """
    squares = deviation.square()
    total = squares.cumsum(-1)
    size = squares.square().cumsum(-1) / torch.where(total > 0, total, 1.0)
    size = torch.where(total > 0, size, torch.inf if size_at_first is None else size_at_first**2)
    count = torch.arange(1, deviation.shape[-1] + 1, dtype=torch.float64)
    lacking, events = torch.zeros_like(total), []
    for a, chance in enumerate((1 - propensity, propensity)):
        found = effective_events(deviation * (arm == a))
        short = (FEWEST_EVENTS - found).clamp_min(0)
        weight = (count / chance.cumsum(-1)).square()
        lacking = lacking + torch.where(short > 0, short * size * weight, 0.0)
        events.append(found)
    return lacking, torch.stack(events, -1)


def effective_number(scores: Tensor) -> Tensor:
    """n · 3 / kurtosis of the scores up to each one, at most n, (..., T): how many normal scores they are worth."""
    count = torch.arange(1, scores.shape[-1] + 1, dtype=torch.float64)
    shifted = scores - scores.mean(-1, keepdim=True)
    first, second, third, fourth = (shifted.pow(power).cumsum(-1) / count for power in range(1, 5))
    variance = (second - first.square()).clamp_min(0)
    moment = fourth - 4 * first * third + 6 * first.square() * second - 3 * first.pow(4)
    return torch.where(moment > 0, 3 * count * variance.square() / moment.clamp_min(1e-300), 0.0).minimum(count)


def sequence_factor(squared_width: Tensor, num: Tensor) -> Tensor:
    """√(m / (m − b)), infinite for m ≤ b, for b (T,) and effective numbers m (..., T) of scores."""
    room = num - squared_width
    return torch.where(room > 0, num / room.clamp_min(1e-12), torch.inf).sqrt()
