r"""What an estimate cannot know yet: standard errors that do not vanish, and sequences that wait for enough events.

Asymptotic intervals trust the observed spread of the scores. That fails while one arm has seen few events: with rare events
the spread is 0 until the first one comes. Let r be the outcomes less the median of their arm, and

    k_a = (Σ r²)² / Σ r⁴ over arm a,    c = Σ r⁴ / Σ r² over both arms,

the effective number of events and the square of their size: k events of one size have k_a = k, and normal outcomes n / 3.

- Standard error: an arm with k_a < 3 gets the events that it lacks, as in the rule of three. To the sum of squared scores
  (3 − k_a) c / p_a² is added, p_a the mean probability of the arm. While all outcomes are equal it is infinite.
- Fixed time: n scores are worth m = min(n, 3 k, 3 k_0, 3 k_1) normal ones, k of the scores about the estimate. If m is
  below n / 2, the normal quantile is raised by the ratio of Student's quantiles for 2 m and for n units.
- Confidence sequence: let b be its squared width in standard errors, and g the skewness of the scores. It is widened by
  √(m / (m − b)) (1 + ⅔ |g| √(b / n)), and infinite for m ≤ b. The first factor
  gives the width of a self-normalised sequence, whose variance is taken about the candidate effect (de la Peña 1999), with
  m in place of the number of units. The tail of a skewed studentised mean is exp(−x²/2 + |g| x³ / (3 √n)); the second factor
  brings it back to that of a normal one. It counts g twice, since a sample shows less skewness than there is.

No interval for the mean of unbounded outcomes holds for every distribution (Bahadur & Savage 1956). So all this is
asymptotic: an event that has never come is not foreseen. The constants are such that the measured probability that the
sequence ever excludes the effect is below its level for the outcomes that `tests/benchmarks` lists, also if only one arm is
skewed or has rare events. Intervals that hold by construction need a range of outcomes (`betting.py`).
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
    deviation: Tensor, arm: Tensor, chances: Tensor, size_at_first: float | None = None
) -> tuple[Tensor, Tensor]:
    """What the sum of squared scores lacks after each unit, (..., T), and each arm's effective events, (..., T, 2).

    Args:
        deviation: Outcome less the median, 0 where it is missing, (..., T).
        arm: Shape (..., T).
        chances: Probability of each of both arms, (..., T, 2).
        size_at_first: Size of an event before there is any; infinite if None.
    """
    squares = deviation.square()
    total = squares.cumsum(-1)
    size = squares.square().cumsum(-1) / torch.where(total > 0, total, 1.0)
    size = torch.where(total > 0, size, torch.inf if size_at_first is None else size_at_first**2)
    count = torch.arange(1, deviation.shape[-1] + 1, dtype=torch.float64)
    lacking, events = torch.zeros_like(total), []
    for a, chance in enumerate(chances.unbind(-1)):
        found = effective_events(deviation * (arm == a))
        short = (FEWEST_EVENTS - found).clamp_min(0)
        weight = (count / chance.cumsum(-1)).square()
        lacking = lacking + torch.where(short > 0, short * size * weight, 0.0)
        events.append(found)
    return lacking, torch.stack(events, -1)


def effective_number(scores: Tensor, events: Tensor) -> Tensor:
    """How many normal scores the scores up to each one are worth, m, (..., T).

    Args:
        scores: Shape (..., T).
        events: Effective events of both arms, (..., T, 2).
    """
    count, variance, _, fourth = _moments(scores)
    of_scores = torch.where(fourth > 0, count * variance.square() / fourth.clamp_min(1e-300), 0.0)
    return 3 * of_scores.minimum(events.amin(-1)).minimum(count / 3)


def sequence_factor(squared_width: Tensor, scores: Tensor, num: Tensor) -> Tensor:
    """What a sequence is widened by, (..., T), infinite for m ≤ b.

    Args:
        squared_width: b, (T,).
        scores: Shape (..., T).
        num: m, (..., T).
    """
    count, variance, third, _ = _moments(scores)
    room = num - squared_width
    factor = torch.where(room > 0, num / room.clamp_min(1e-12), torch.inf).sqrt()
    skewness = torch.where(variance > 0, third / variance.clamp_min(1e-300).pow(1.5), 0.0).abs()
    return factor * (1 + 2 / 3 * skewness * (squared_width / count).sqrt())


def _moments(scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Number of scores up to each one, (T,), and their second, third and fourth central moments, (..., T)."""
    count = torch.arange(1, scores.shape[-1] + 1, dtype=torch.float64)
    shifted = scores - scores.mean(-1, keepdim=True)
    size = shifted.abs().amax(-1, keepdim=True)  # moments of scores in any unit fit into float64
    shifted = shifted / torch.where(size > 0, size, 1.0)
    first, second, third, fourth = (shifted.pow(power).cumsum(-1) / count for power in range(1, 5))
    variance = (second - first.square()).clamp_min(0)
    return (
        count,
        variance,
        third - 3 * first * second + 2 * first.pow(3),
        fourth - 4 * first * third + 6 * first.square() * second - 3 * first.pow(4),
    )
