"""Fit of a `ConditionalDensity` to simulations (θ, ξ) → y, a check on others, and an experiment that has its likelihood."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..base import DesignSimulator
from .conditional_density import ConditionalDensity

__all__ = ["LearnedSimulator", "LikelihoodReport", "check_density", "fit_density"]

_HELD_OUT = 0.1
_MOST_HELD_OUT = 5000
_MOST_STEPS, _EPOCHS = 1500, 40
_LATE = 0.05  # share of the time by which steps may be late before the time decides
_EVERY = 50  # steps between two looks at what was held out


@dataclass(frozen=True)
class LikelihoodReport:
    """How well a learned likelihood holds, on simulations that it has not seen.

    Attributes:
        num_simulations: Simulations that it was learned from, those held out included.
        num_failed: Runs that failed, and were left out: the likelihood is that of an outcome, given that the run succeeds.
        log_likelihood: Mean held-out log p(y | θ, ξ), nats.
        stderr: Its standard error.
        calibration_error: Largest distance between the distribution of the ranks F(y | θ, ξ) and a uniform one, over the
            values of an outcome (Kolmogorov and Smirnov); chance alone makes `calibration_noise` of it.
        calibration_noise: 99 % quantile of that distance under a perfect likelihood.
        seconds: Duration of simulations and learning.
    """

    num_simulations: int
    num_failed: int
    log_likelihood: float
    stderr: float
    calibration_error: float
    calibration_noise: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"likelihood learned from {self.num_simulations:,} simulations ({self.num_failed:,} failed) in "
            f"{self.seconds:.0f} s: held-out log-likelihood {self.log_likelihood:.3f} ± {self.stderr:.3f} nats, "
            f"calibration error {self.calibration_error:.3f} (chance {self.calibration_noise:.3f})"
        )


def split_held_out(num: int) -> Tensor:
    """Mask (num,) of what is held out: every tenth simulation, of the last ones where there are many."""
    index = torch.arange(num)
    return (index % round(1 / _HELD_OUT) == 0) & (index >= num - _MOST_HELD_OUT / _HELD_OUT)


@torch.enable_grad()
def fit_density(
    density: ConditionalDensity,
    theta: Tensor,
    design: Tensor,
    outcome: Tensor,
    *,
    num_steps: int | None = None,
    max_seconds: float | None = None,
    learning_rate: float = 3e-3,
) -> None:
    """Train by maximum likelihood, in place; the weights that are best on the held-out simulations stay.

    Args:
        density: What to train.
        theta: Parameters (N, P).
        design: Designs (N, D).
        outcome: Outcomes (N, O).
        num_steps: Gradient steps; if None 40 times through the simulations, at most 1,500.
        max_seconds: Time limit; the learning rate falls within it.
        learning_rate: First learning rate.

    Raises:
        ValueError: If a gradient becomes NaN or infinite.
    """
    begin, held_out = time.perf_counter(), split_held_out(len(theta))
    data = [x[~held_out] for x in (theta, design, outcome)]
    test = [x[held_out] for x in (theta, design, outcome)]
    batch_size = max(32, min(512, len(data[0]) // 8))
    if num_steps is None:
        num_steps = min(_MOST_STEPS, 100 + _EPOCHS * len(data[0]) // batch_size)
    # Weight decay lowers the error that 500 simulations leave; with 2,000 or 50,000 it makes no difference.
    optimizer = torch.optim.AdamW(density.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.1)
    best, best_weights = -math.inf, copy.deepcopy(density.state_dict())
    for step in range(num_steps + 1):
        used = 0.0 if max_seconds is None else (time.perf_counter() - begin) / max(max_seconds, 1e-9)
        done = used if used > step / num_steps + _LATE else step / num_steps  # else the same numbers on any machine
        if step % _EVERY == 0 or done >= 1:
            value = float(held_out_log_likelihood(density, *test).mean())
            if value > best:
                best, best_weights = value, copy.deepcopy(density.state_dict())
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
        rows = torch.randint(len(data[0]), (batch_size,))
        loss = -density.log_prob(data[0][rows], data[1][rows], data[2][rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(density.parameters(), 5.0)
        if not torch.isfinite(norm):
            raise ValueError("the fit of the likelihood became NaN: give outcomes of order one, in another unit.")
        optimizer.step()
    density.load_state_dict(best_weights)


@torch.no_grad()
def held_out_log_likelihood(density: ConditionalDensity, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
    """log p(y | θ, ξ), (N,); what is impossible counts as very unlikely, so that a mean exists."""
    return density.log_prob(theta, design, outcome).clamp_min(-1e3).nan_to_num(nan=-1e3)


@torch.no_grad()
def check_density(
    density: ConditionalDensity, theta: Tensor, design: Tensor, outcome: Tensor, num_failed: int, seconds: float
) -> LikelihoodReport:
    """Held-out likelihood and calibration; arguments as for `fit_density`."""
    held_out = split_held_out(len(theta))
    test = theta[held_out], design[held_out], outcome[held_out]
    value = held_out_log_likelihood(density, *test)
    ranks = density.ranks(*test).double().sort(0).values
    num = len(ranks)
    steps = torch.arange(num + 1).double().unsqueeze(-1) / num
    error = torch.maximum((ranks - steps[:-1]).abs().amax(), (ranks - steps[1:]).abs().amax())
    noise = math.sqrt(
        -0.5 * math.log(0.005 / ranks.shape[-1]) / num
    )  # Dvoretzky, Kiefer and Wolfowitz, over all values
    return LikelihoodReport(
        len(theta), num_failed, float(value.mean()), float(value.std()) / math.sqrt(num), float(error), noise, seconds
    )


class LearnedSimulator(DesignSimulator):
    """An experiment whose outcomes are drawn from a learned density."""

    def __init__(self, prior: Distribution, density: Any, design_space: Any, outcome_shape: tuple[int, ...]):
        mixed = not (density.is_continuous or density.is_discrete)
        super().__init__(
            prior,
            density.sample,
            design_space,
            density.log_prob,
            outcome_shape,
            reparameterized=not density.is_discrete,
            log_discrete=partial(density.log_prob, discrete_only=True) if mixed else None,
            outcome_space=_outcome_space(density),
        )
        self.density = density

    def simulate_alike(self, theta: Tensor, designs: Tensor, *, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return self.simulate(theta.unsqueeze(-3), designs.unsqueeze(-2), alike=-2)

    def check_outcome(self, outcome: Any) -> Tensor:
        outcome = super().check_outcome(outcome)
        self.density.warn_outside(outcome=outcome)
        return outcome

    def with_prior(self, prior: Distribution) -> DesignSimulator:
        return LearnedSimulator(prior, self.density, self.design_space, self.outcome_shape)


def _outcome_space(density: ConditionalDensity) -> Any:
    """A short range of whole numbers, where the one outcome is such; else the reals."""
    values = density.categories
    if values is None or (values[-1] - values[0] + 1) != len(values):
        return constraints.real
    return constraints.integer_interval(int(values[0]), int(values[-1]))
