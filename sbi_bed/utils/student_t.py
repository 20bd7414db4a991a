r"""Density of the multivariate Student-t, for those who have the distance and the scale at hand.

log t_ν(x; m, L Lᵀ) = log Γ((ν+P)/2) − log Γ(ν/2) − ½ P log νπ − log det L − ½ (ν+P) log(1 + |L⁻¹(x − m)|² / ν)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["log_student_t"]


def log_student_t(squared_distance: Tensor, scale: Tensor, degrees_of_freedom: float) -> Tensor:
    """Log density (...).

    Args:
        squared_distance: |L⁻¹(x − m)|², (...).
        scale: Lower factor L, (..., P, P), whose leading dimensions broadcast with the distance.
        degrees_of_freedom: ν.

    Example:
        >>> log_student_t(torch.tensor(0.0), torch.eye(1), 1.0).exp()  # a Cauchy density at its centre, 1 / π
        tensor(0.3183)
    """
    dim, df = scale.shape[-1], degrees_of_freedom
    constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - dim / 2 * math.log(df * math.pi)
    log_det = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return constant - log_det - (df + dim) / 2 * torch.log1p(squared_distance / df)
