r"""Exponential temporal discounting (Samuelson 1937): the same share of value is lost with every day.

A person chooses between R now and 100 after D days, which are worth

    V_0 = R,   V_1 = 100 exp(−k D)

to them; choices and priors as in `Discounting`.
"""

from __future__ import annotations

from torch import Tensor

from .discounting import Discounting

__all__ = ["ExponentialDiscounting"]


class ExponentialDiscounting(Discounting):
    """Choices between an immediate and a delayed reward whose value falls exponentially with delay.

    Theta is (log k, α), k in 1/days and α in reward units; a design is (immediate reward R in (0, 100), delay D > 0 in
    days); an outcome is 1 where the later reward is preferred, else 0.

    Args:
        prior: Distribution of (log k, α); the one of `Discounting` if None.
        lapse: ε, the probability of each answer that has nothing to do with the question, in [0, ½).
        design_space: Questions (R, D) that may be asked, as for `Discounting`.

    Example:
        >>> import torch
        >>> question, now = torch.tensor([[50.0, 30.0]]), torch.tensor([[0.0]])
        >>> theta = torch.tensor([0.05, 1.0]).log()  # a reward of 100 in 30 days is worth 100 e^(−1.5) = 22 now
        >>> round(ExponentialDiscounting().log_likelihood(theta, question, now).exp().item(), 3)
        0.99
    """

    def later_value(self, log_k: Tensor, delay: Tensor) -> Tensor:
        """V_1 = 100 exp(−k D), shape (...), for log k (...) and delay (...)."""
        return self.delayed_reward * (-log_k.exp() * delay).exp()
