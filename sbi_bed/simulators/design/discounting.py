r"""Choices between money now and more money later: what models of discounting share, and three of them.

A person chooses between R now and 100 after D > 0 days. With discount rate k, choice noise α, and V_1 what the later
reward is worth today,

    V_0 = R,   p(y = 1: prefers later) = ε + (1 − 2ε) Φ((V_1 − V_0) / α),   ε = 0.01,
    log k ~ N(−4.25, 1.5²),   α ~ |N(0, 2²)|.

The link is the normal distribution function Φ. The models differ in V_1:

- hyperbolic (Mazur 1987; as a design benchmark in arXiv 2103.02438 and 2507.14057): V_1 = 100 / (1 + k D). DAD's own
  program uses erf without the √2, a steeper link than Φ: its published 5.02 nats belong to that;
- exponential (Samuelson 1937): V_1 = 100 exp(−k D). The same share of value is lost with every day;
- present-biased (Phelps and Pollak 1968; Laibson 1997): V_1 = 100 β exp(−k D), β ~ Beta(4, 1). This is quasi-hyperbolic
  discounting with present bias β and daily discount factor δ = exp(−k). With β = 1 it is exponential discounting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta, Distribution, HalfNormal, Normal, constraints

from ..base import DesignSimulator
from ..design_space import DesignSpace

__all__ = ["Discounting", "ExponentialDiscounting", "HyperbolicDiscounting", "PresentBiasedDiscounting"]


class Discounting(DesignSimulator, ABC):
    """Choices between an immediate and a delayed reward; a subclass says in `later_value` how delay devalues.

    Theta is (log k, α), k in 1/days and α in reward units; a design is (immediate reward R in (0, 100), delay D > 0 in
    days); an outcome is 1 where the later reward is preferred, else 0.

    Args:
        prior: Distribution of (log k, α); the one above if None.
        lapse: ε, the probability of each answer that has nothing to do with the question, in [0, ½).
        design_space: Questions (R, D) that may be asked: a `DesignSpace`, a torch constraint or candidates (N, 2); the one
            above if None.

    Raises:
        ValueError: If `lapse` is out of range, or designs have not two values.

    Example:
        >>> class Additive(Discounting):
        ...     def later_value(self, log_k, delay):
        ...         return self.delayed_reward - log_k.exp() * delay
        >>> Additive()(torch.tensor([-4.0, 0.1]), torch.tensor([[1.0, 10.0]] * 4)).shape
        torch.Size([4, 1])
    """

    delayed_reward = 100.0

    def __init__(self, prior: Distribution | None = None, lapse: float = 0.01, design_space: Any = None):
        if not 0 <= lapse < 0.5:
            raise ValueError(f"lapse must lie in [0, 0.5), got {lapse}.")
        self.lapse = lapse
        super().__init__(
            prior=_default_prior() if prior is None else prior,
            simulate=self._simulate,
            design_space=_all_questions(self.delayed_reward) if design_space is None else design_space,
            log_likelihood=self._log_probability,
            outcome_space=constraints.boolean,
        )
        if self.design_dim != 2:
            raise ValueError(
                f"a question is (immediate reward, delay): design_space must have 2 values, got {self.design_dim}."
            )

    @abstractmethod
    def later_value(self, log_k: Tensor, delay: Tensor) -> Tensor:
        """V_1, what the later reward is worth today, shape (...), for log k (...) and delay (...)."""

    def scaled_preference(self, theta: Tensor, design: Tensor) -> Tensor:
        """(V_1 − V_0) / α, shape (...), for theta (..., 2) and design (..., 2)."""
        (log_k, noise), (reward, delay) = theta.unbind(-1), design.unbind(-1)
        return (self.later_value(log_k, delay) - reward) / noise.clamp_min(1e-6)

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        later = self.lapse + (1 - 2 * self.lapse) * torch.special.ndtr(self.scaled_preference(theta, design))
        return torch.bernoulli(later).unsqueeze(-1)

    def _log_probability(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        sign = 2 * outcome.squeeze(-1) - 1
        chosen = torch.special.ndtr(sign * self.scaled_preference(theta, design))
        return torch.log(self.lapse + (1 - 2 * self.lapse) * chosen)


class HyperbolicDiscounting(Discounting):
    """Choices between an immediate and a delayed reward whose value falls as a hyperbola of delay.

    Theta is (log k, α), k in 1/days and α in reward units; a design is (immediate reward R in (0, 100), delay D > 0 in
    days); an outcome is 1 where the later reward is preferred, else 0.

    Arguments and errors are those of `Discounting`.

    Example:
        >>> question, now = torch.tensor([[50.0, 30.0]]), torch.tensor([[0.0]])
        >>> theta = torch.tensor([0.05, 1.0]).log()  # a reward of 100 in 30 days is worth 100 / (1 + 1.5) = 40 now
        >>> round(HyperbolicDiscounting().log_likelihood(theta, question, now).exp().item(), 3)
        0.99
    """

    def later_value(self, log_k: Tensor, delay: Tensor) -> Tensor:
        """V_1 = 100 / (1 + k D), shape (...), for log k (...) and delay (...)."""
        return self.delayed_reward / (1 + log_k.exp() * delay)


class ExponentialDiscounting(Discounting):
    """Choices between an immediate and a delayed reward whose value falls exponentially with delay.

    Theta is (log k, α), k in 1/days and α in reward units; a design is (immediate reward R in (0, 100), delay D > 0 in
    days); an outcome is 1 where the later reward is preferred, else 0.

    Arguments and errors are those of `Discounting`.

    Example:
        >>> question, now = torch.tensor([[50.0, 30.0]]), torch.tensor([[0.0]])
        >>> theta = torch.tensor([0.05, 1.0]).log()  # a reward of 100 in 30 days is worth 100 e^(−1.5) = 22 now
        >>> round(ExponentialDiscounting().log_likelihood(theta, question, now).exp().item(), 3)
        0.99
    """

    def later_value(self, log_k: Tensor, delay: Tensor) -> Tensor:
        """V_1 = 100 exp(−k D), shape (...), for log k (...) and delay (...)."""
        return self.delayed_reward * (-log_k.exp() * delay).exp()


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
        super().__init__(_default_prior(with_bias=True) if prior is None else prior, lapse, design_space)

    def scaled_preference(self, theta: Tensor, design: Tensor) -> Tensor:
        """(V_1 − V_0) / α, shape (...), for theta (..., 3) and design (..., 2)."""
        (log_k, noise, bias), (reward, delay) = theta.unbind(-1), design.unbind(-1)
        return (bias * self.later_value(log_k, delay) - reward) / noise.clamp_min(1e-6)


def _all_questions(delayed_reward: float) -> DesignSpace:
    reward, delay = constraints.interval(0.0, delayed_reward), constraints.positive
    return DesignSpace(
        constraints.cat([reward, delay], dim=-1, lengths=[1, 1]),
        loc=torch.tensor([0.0, 4.25]),
        scale=torch.tensor([1.5, 1.5]),
        names=("immediate_reward", "delay_days"),
    )


def _default_prior(with_bias: bool = False) -> Distribution:
    from sbi.utils import MultipleIndependent

    parts = [Normal(torch.tensor([-4.25]), torch.tensor([1.5])), HalfNormal(torch.tensor([2.0]))]
    if with_bias:
        parts.append(Beta(torch.tensor([4.0]), torch.tensor([1.0])))
    return MultipleIndependent(parts, validate_args=False)
