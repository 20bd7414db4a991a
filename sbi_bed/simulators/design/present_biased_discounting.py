r"""Present-biased temporal discounting (Phelps and Pollak 1968; Laibson 1997): what is not now loses a share at once.

A person chooses between R now and 100 after D > 0 days, which are worth

    V_0 = R,   V_1 = 100 β exp(−k D),   β ~ Beta(4, 1),

to them: quasi-hyperbolic discounting with present bias β and daily discount factor δ = exp(−k). With β = 1 it is exponential
discounting. Choices, and the priors of k and α, as in `Discounting`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta, Distribution, HalfNormal, Normal

from .exponential_discounting import ExponentialDiscounting

__all__ = ["PresentBiasedDiscounting"]


class PresentBiasedDiscounting(ExponentialDiscounting):
    """Choices between an immediate and a delayed reward that loses a share 1 − β at once, and the rest exponentially.

    Theta is (log k, α, β), k in 1/days, α in reward units and β in [0, 1]; a design is (immediate reward R in (0, 100),
    delay D > 0 in days); an outcome is 1 where the later reward is preferred, else 0. `later_value` is without the bias.

    Args:
        prior: Distribution of (log k, α, β); the one above if None.
        lapse: ε, the probability of each answer that has nothing to do with the question, in [0, ½).
        design_space: Questions (R, D) that may be asked, as for `Discounting`.

    Raises:
        ValueError: If `lapse` is out of range, or designs have not two values.

    Example:
        >>> question, now = torch.tensor([[50.0, 30.0]]), torch.tensor([[0.0]])
        >>> theta = torch.tensor([-9.0, 5.0, 0.4])  # hardly any discounting by the day, but 100 later is worth 40 now
        >>> round(PresentBiasedDiscounting().log_likelihood(theta, question, now).exp().item(), 3)
        0.969
    """

    def __init__(self, prior: Distribution | None = None, lapse: float = 0.01, design_space: Any = None):
        super().__init__(_default_prior() if prior is None else prior, lapse, design_space)

    def scaled_preference(self, theta: Tensor, design: Tensor) -> Tensor:
        """(V_1 − V_0) / α, shape (...), for theta (..., 3) and design (..., 2)."""
        (log_k, noise, bias), (reward, delay) = theta.unbind(-1), design.unbind(-1)
        return (bias * self.later_value(log_k, delay) - reward) / noise.clamp_min(1e-6)


def _default_prior() -> Distribution:
    from sbi.utils import MultipleIndependent

    of_k = Normal(torch.tensor([-4.25]), torch.tensor([1.5]))
    of_bias = Beta(torch.tensor([4.0]), torch.tensor([1.0]))
    return MultipleIndependent([of_k, HalfNormal(torch.tensor([2.0])), of_bias], validate_args=False)
