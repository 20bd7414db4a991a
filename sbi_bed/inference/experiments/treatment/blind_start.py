r"""The first units of an experiment, about which nothing was known: predictions that do not depend on the unit of outcomes.

A policy that learns the location of outcomes from them predicts 0 for the units before the first outcome. The A2IPW score
of such a unit varies by the size of the outcome itself, e.g. ±2 Y with a coin, so outcomes with a large mean would ruin
the estimate. A unit's propensity is drawn without regard to the outcomes of units assigned before it, even if these come
later. So they may serve for its prediction, and the score still has mean τ given all that came before in the order of
assignment. Each blind unit is predicted by the arms' means over the units before it. The first one, and those before the
first outcome, cannot be predicted, and do not enter the estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....simulators.treatment.arms import arm_indicators

__all__ = ["start_blind"]


def start_blind(
    arm: Tensor, outcome: Tensor, observed: Tensor, predicted: Tensor, num_blind: int
) -> tuple[Tensor, Tensor]:
    """Predictions (..., T, 2) with those of the first `num_blind` units replaced, and which units may enter, (T,).

    Args:
        arm: 0 or 1, (..., T); 2 for units of any other arm.
        outcome: Shape (..., T).
        observed: Whether the outcome is there, (..., T); all are in a batch of experiments.
        predicted: Outcomes of arms 0 and 1 as predicted at assignment, (..., T, 2).
        num_blind: Number of units that were assigned before any outcome was known.

    Example:
        >>> seen = torch.tensor([True, True, True])
        >>> arm, outcome = torch.tensor([0, 1, 1]), torch.tensor([5.0, 7.0, 9.0])
        >>> start_blind(arm, outcome, seen, torch.zeros(3, 2), num_blind=3)
        (tensor([[0., 0.],
                [5., 5.],
                [5., 7.]], dtype=torch.float64), tensor([False,  True,  True]))
    """
    predicted, rows = predicted.double(), slice(0, num_blind)
    enters = torch.ones(arm.shape[-1], dtype=torch.bool)
    if num_blind == 0:
        return predicted, enters
    seen = observed[..., rows].double()
    weight = arm_indicators(arm[..., rows], 2).double() * seen.unsqueeze(-1)
    parts = weight, weight * outcome[..., rows].double().unsqueeze(-1)
    count, total = (part.cumsum(-2) - part for part in parts)  # over the units before
    overall = total.sum(-1, keepdim=True) / count.sum(-1, keepdim=True).clamp_min(1)
    means = torch.where(count > 0, total / count.clamp_min(1), overall)
    known = (count.sum(-1).unsqueeze(0).flatten(0, -2) > 0).all(0)
    predicted = predicted.clone()
    predicted[..., rows, :] = torch.where(known.unsqueeze(-1), means, predicted[..., rows, :])
    enters[rows] = known
    return predicted, enters
