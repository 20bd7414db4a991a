r"""Arms of a treatment trial, arm 0 the control: their probabilities, draws, and the best shares.

A propensity is the probability of arm 1, (...), if there are two arms, and the probability of each arm, (..., K), if there
are K > 2.

The effects of arms 1 … K − 1 against the control are estimated at a share π_a of units in arm a, with outcomes of variance
σ_a². Up to a constant the sum of their variances is

    Σ_{a ≥ 1} (σ_a² / π_a + σ_0² / π_0) = Σ_a w_a² σ_a² / π_a,    w_0 = √(K − 1), w_a = 1.

The shares that minimise it are π_a ∝ w_a σ_a (Neyman 1934; for equal variances Dunnett 1955), with the minimum
S² = (Σ_a w_a σ_a)². At other shares it is S² (1 + Σ_a (π_a − π*_a)² / π_a).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["arm_chances", "arm_indicators", "as_propensity", "clip_shares", "draw_arms", "weighted_sds"]


def arm_chances(propensity: Tensor, num_arms: int) -> Tensor:
    """Probability of each arm, (..., K), of a propensity: (...) for two arms, else (..., K).

    Example:
        >>> arm_chances(torch.tensor([0.25]), 2)
        tensor([[0.7500, 0.2500]])
    """
    return torch.stack([1 - propensity, propensity], -1) if num_arms == 2 else propensity


def as_propensity(shares: Tensor) -> Tensor:
    """The propensity, (...) for two arms, else (..., K), of shares (..., K).

    Example:
        >>> as_propensity(torch.tensor([[0.75, 0.25]]))
        tensor([0.2500])
    """
    return shares[..., 1] if shares.shape[-1] == 2 else shares


def arm_indicators(arm: Tensor, num_arms: int) -> Tensor:
    """1 in the place of the arm, 0 elsewhere, (..., K), in the dtype of `arm` (...).

    Example:
        >>> arm_indicators(torch.tensor([2.0, 0.0]), 3)
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    return (arm.unsqueeze(-1) == torch.arange(num_arms, device=arm.device)).to(arm.dtype)


def draw_arms(uniform: Tensor, propensity: Tensor, num_arms: int) -> Tensor:
    """Arms (...), int64, from uniform numbers (...): arm 1 lies lowest, then arm 2 and so on, arm 0 highest.

    Example:
        >>> draw_arms(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([0.5, 0.3, 0.2]).expand(3, 3), 3)
        tensor([1, 2, 0])
    """
    ends = arm_chances(propensity, num_arms)[..., 1:].cumsum(-1)
    passed = (uniform.unsqueeze(-1) >= ends).sum(-1)
    return torch.where(passed == num_arms - 1, 0, passed + 1)


def weighted_sds(sd: Tensor) -> Tensor:
    """w_a σ_a, (..., K), of standard deviations σ_a (..., K); the best shares are proportional to them.

    Example:
        >>> weighted_sds(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])).tolist()
        [2.0, 1.0, 1.0, 1.0, 1.0]
    """
    weights = torch.ones_like(sd)
    weights[..., 0] = (sd.shape[-1] - 1) ** 0.5
    return weights * sd


def clip_shares(shares: Tensor, clip: float, allowed: Tensor | None = None) -> Tensor:
    """Shares (..., K) with a smallest one: those below `clip` are raised to it, the others lowered by one factor.

    Args:
        shares: Shares that sum to one, (..., K).
        clip: Smallest share, at most one over the number of arms.
        allowed: Which arms may have units, (K,); all if None. The others get none.

    Example:
        >>> clip_shares(torch.tensor([0.9, 0.1, 0.0]), 0.05)
        tensor([0.8550, 0.0950, 0.0500])
    """
    allowed = torch.ones_like(shares[..., :1]) > 0 if allowed is None else allowed
    shares = torch.where(allowed, shares.clamp_min(1e-300), 0.0)
    low = torch.zeros_like(shares, dtype=torch.bool)
    for _ in range(shares.shape[-1]):
        free = 1 - clip * low.sum(-1, keepdim=True)
        rest = torch.where(low, 0.0, shares)
        scaled = torch.where(low, clip, rest * (free / rest.sum(-1, keepdim=True)))
        low = low | (allowed & (scaled < clip))
    return torch.where(low, clip, scaled)
