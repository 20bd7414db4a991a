r"""Hyperbolic temporal discounting (Mazur 1987; as a design benchmark in arXiv 2103.02438 and 2507.14057).

A person chooses between R now and 100 after D days, which are worth

    V_0 = R,   V_1 = 100 / (1 + k D)

to them; choices and priors as in `Discounting`. (DAD's own program uses erf without the √2, which is a steeper link than
Φ: its published 5.02 nats belong to that.)
"""

from __future__ import annotations

from torch import Tensor

from .discounting import Discounting

__all__ = ["HyperbolicDiscounting"]


class HyperbolicDiscounting(Discounting):
    """Choices between an immediate and a delayed reward whose value falls as a hyperbola of delay.

    Theta is (log k, α), k in 1/days and α in reward units; a design is (immediate reward R in (0, 100), delay D > 0 in
    days); an outcome is 1 where the later reward is preferred, else 0.

    Args:
        prior: Distribution of (log k, α); the one of `Discounting` if None.
        lapse: ε, the probability of each answer that has nothing to do with the question, in [0, ½).
        design_space: Questions (R, D) that may be asked, as for `Discounting`.

    Example:
        >>> import torch
        >>> question, now = torch.tensor([[50.0, 30.0]]), torch.tensor([[0.0]])
        >>> theta = torch.tensor([0.05, 1.0]).log()  # a reward of 100 in 30 days is worth 100 / (1 + 1.5) = 40 now
        >>> round(HyperbolicDiscounting().log_likelihood(theta, question, now).exp().item(), 3)
        0.99
    """

    def later_value(self, log_k: Tensor, delay: Tensor) -> Tensor:
        """V_1 = 100 / (1 + k D), shape (...), for log k (...) and delay (...)."""
        return self.delayed_reward / (1 + log_k.exp() * delay)
