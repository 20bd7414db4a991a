r"""Do the data look as the model and its prior said they would? Three p-values, for any likelihood and any policy.

With h_t the history after t trials and n trials in all:

1. **Deviance** (posterior predictive; Gelman, Meng & Stern 1996): the probability, over θ ~ p(θ | h_n) and replicated
   outcomes at the same designs, that −Σ_t log p(y_t | θ, ξ_t) is at least that of the data. The data are used twice,
   so it is conservative: under the right model it falls below .05 less often than one time in twenty.
2. **Surprise** (prequential; Dawid 1984): U_t is the probability under p(y | h_{t−1}, ξ_t) of an outcome whose
   predictive density is no larger than the observed one's, ties broken at random. Under the right model the U_t are
   independent and uniform whatever adaptive policy chose the designs; −2 Σ_t log U_t ~ χ²(2n) (Fisher).
3. **Prior conflict**: the same, with a density ratio in place of the density: U_t is the probability of an outcome that
   supports a wider prior at least as strongly as the observed one, by p_wide(y | h_{t−1}, ξ_t) / p(y | h_{t−1}, ξ_t),
   where the wide prior has three times the prior's spread in unconstrained coordinates. The ratio does not depend on
   the units of the outcome, and is the sharpest statistic against that alternative (Neyman & Pearson). The first
   trials meet the prior most, so they weigh most: Σ_t Φ⁻¹(U_t)/√t, standardised, is normal (Stouffer).

Only the third notices a misplaced prior. Share of runs with p < .05 (and p < .01) for location finding with one
source, prior N(0, I), ten random N(0, I) designs and the truth drawn from N(shift, I); 200 to 600 runs each:

    shift             0            1            2            3
    deviance          .02 (.00)    .02 (.00)    .01 (.00)    .00 (.00)
    surprise          .04 (.01)    .04 (.01)    .02 (.00)    .00 (.00)
    prior conflict    .06 (.01)    .24 (.08)    .65 (.39)    .91 (.73)

The other two are there for a misspecified likelihood.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...simulators.base import DesignSimulator, prior_log_prob
from ...utils.checks import check_count
from ...utils.seeding import seeded
from ...utils.smc import ParticleBelief, assimilate
from ...utils.transforms import to_unconstrained
from .history_potential import HistoryPotential, history_log_likelihood

__all__ = ["PredictiveCheck", "WidenedPrior", "history_beliefs", "predictive_check"]


@dataclass(frozen=True)
class PredictiveCheck:
    """P-values of a history under a model; small means that the model did not expect it.

    Attributes:
        deviance_p_value: Posterior-predictive, of the deviance; conservative.
        surprise_p_value: Prequential, of the predictive density; uniform under the model.
        prior_conflict_p_value: Prequential, against a wider prior; uniform under the model.
        trial_surprise: The U_t of the second, shape (n,).
        trial_prior_conflict: The U_t of the third, shape (n,).
    """

    deviance_p_value: float
    surprise_p_value: float
    prior_conflict_p_value: float
    trial_surprise: Tensor
    trial_prior_conflict: Tensor


class WidenedPrior:
    """A prior stretched about its mean in unconstrained coordinates, u ↦ m + factor · (u − m).

    Args:
        prior: Distribution of theta.
        transform: Bijection from theta to unconstrained coordinates.
        factor: By how much to stretch.
        num_samples: Draws from which the mean is taken.
    """

    def __init__(self, prior: Distribution, transform: Any, factor: float = 3.0, num_samples: int = 1000):
        self._prior, self._transform = prior, transform
        free = transform(prior.sample((num_samples,)))
        discrete = getattr(transform, "discrete", torch.zeros(free.shape[-1], dtype=torch.bool))
        # Discrete parameters stay as they are: there is no scale to stretch.
        self._mean = torch.where(discrete, 0.0, free.mean(0))
        self._factor = torch.where(discrete, 1.0, factor).to(free)

    def sample(self, sample_shape: tuple[int] = (1,)) -> Tensor:
        """Draws of shape (N, P)."""
        free = self._transform(self._prior.sample(sample_shape))
        return self._transform.inv(self._mean + self._factor * (free - self._mean))

    def log_prob(self, theta: Tensor) -> Tensor:
        """Log density (N,) of theta (N, P)."""
        free = self._transform(theta)
        narrow_free = self._mean + (free - self._mean) / self._factor
        narrow = self._transform.inv(narrow_free)
        stretch = self._transform.log_abs_det_jacobian(theta, free)
        stretch = stretch - self._transform.log_abs_det_jacobian(narrow, narrow_free)
        return prior_log_prob(self._prior, narrow) + stretch - self._factor.log().sum()


def history_beliefs(
    simulator: DesignSimulator,
    designs: Tensor,
    outcomes: Tensor,
    prior: Any,
    transform: Any,
    num_particles: int,
    **settings: Any,
) -> Iterator[ParticleBelief]:
    """The beliefs before the first trial, after the first, …, after the last: n + 1 of them.

    Args:
        simulator: Experiment with a likelihood.
        designs: Shape (n, D).
        outcomes: Shape (n, O).
        prior: Distribution of theta with `sample` and `log_prob`.
        transform: Bijection from theta to unconstrained coordinates.
        num_particles: Number N of particles.
        **settings: Passed on to `assimilate`.
    """
    belief = ParticleBelief.from_samples(prior.sample((num_particles,)))
    yield belief
    for trial in range(len(designs)):
        past = designs[:trial], outcomes[:trial]

        def log_target(theta: Tensor, past: tuple[Tensor, Tensor] = past) -> Tensor:
            return prior_log_prob(prior, theta) + history_log_likelihood(simulator, theta, *past)

        def log_likelihood(theta: Tensor, trial: int = trial) -> Tensor:
            return simulator.log_likelihood(theta, designs[trial], outcomes[trial])

        belief = assimilate(belief, log_likelihood, log_target, transform, **settings)
        yield belief


def predictive_check(
    simulator: DesignSimulator,
    history: Tensor,
    prior: Distribution | None = None,
    *,
    num_particles: int = 1000,
    num_replicates: int = 500,
    widening: float = 3.0,
    seed: int | None = None,
) -> PredictiveCheck:
    """Check a history against the model that is to explain it.

    Args:
        simulator: Experiment with a likelihood.
        history: Shape (n, D + O + 1) or (1, n, D + O + 1), padded or not. Without trials all p-values are 1.
        prior: Distribution of theta; the simulator's own if None.
        num_particles: Particles of each of the two beliefs (under the prior and under the wider one).
        num_replicates: Replicated outcomes for each trial.
        widening: Spread of the wider prior over that of the prior.
        seed: Seed; torch's global generator if None.

    Raises:
        ValueError: If there is no likelihood, or the history is not one of this simulator.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding, PolicySimulator
        >>> simulator = LocationFinding()
        >>> with seeded(0):
        ...     history = PolicySimulator(simulator, RandomPolicy(simulator), horizon=4)(torch.zeros(1, 2))[0]
        >>> check = predictive_check(simulator, history, num_particles=200, num_replicates=50, seed=0)
        >>> 0 <= check.prior_conflict_p_value <= 1, check.trial_surprise.shape
        (True, torch.Size([4]))
    """
    check_count(num_replicates, "num_replicates", 10)
    check_count(num_particles, "num_particles", 100)
    potential = HistoryPotential(simulator.surrogate, prior, history)
    with seeded(seed), torch.no_grad():
        return _run_check(potential, num_particles, num_replicates, widening)


def _run_check(potential: HistoryPotential, num_particles: int, num: int, widening: float) -> PredictiveCheck:
    simulator, prior, data = potential.simulator, potential.prior, (potential.designs, potential.outcomes)
    if len(data[0]) == 0:
        return PredictiveCheck(1.0, 1.0, 1.0, torch.zeros(0), torch.zeros(0))
    transform = to_unconstrained(prior, keep_discrete=True)
    beliefs = history_beliefs(simulator, *data, prior, transform, num_particles)
    wide_prior = WidenedPrior(prior, transform, widening)  # pyright: ignore[reportArgumentType]
    wide_beliefs = history_beliefs(_Forgiving(simulator), *data, wide_prior, transform, num_particles)  # pyright: ignore
    surprise, conflict = [], []
    belief, wide = next(beliefs), next(wide_beliefs)
    for design, outcome in zip(*data, strict=True):
        generate, score = belief.resample(2 * num).theta.split(num)
        lower, against = _trial_p_values(simulator, generate, score, wide.resample(num).theta, design, outcome)
        surprise.append(lower)
        conflict.append(against)
        belief, wide = next(beliefs), next(wide_beliefs)
    trial_surprise, trial_conflict = torch.stack(surprise), torch.stack(conflict)
    return PredictiveCheck(
        _deviance_p_value(simulator, belief.resample(num).theta, *data),
        _fisher(trial_surprise),
        _stouffer(trial_conflict),
        trial_surprise,
        trial_conflict,
    )


class _Forgiving:
    """A simulator's likelihood at parameters its prior would hardly draw: what cannot be computed is impossible."""

    def __init__(self, simulator: DesignSimulator):
        self._simulator = simulator

    def log_likelihood(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        return torch.nan_to_num(
            self._simulator.log_likelihood(theta, design, outcome), -torch.inf, -torch.inf, -torch.inf
        )


def _trial_p_values(
    simulator: DesignSimulator, generate: Tensor, score: Tensor, wide: Tensor, design: Tensor, outcome: Tensor
) -> tuple[Tensor, Tensor]:
    """U_t for the density and for the density ratio.

    Outcomes are replicated from other particles (M, P) than those whose mixture scores them: had each replicate its own
    parent in the mixture, and the data theirs not, the data would look less likely than they are.
    """
    outcomes = torch.cat([simulator(generate, design), outcome.unsqueeze(0)])
    density = simulator.log_likelihood(score.unsqueeze(-2), design, outcomes).double().logsumexp(0)
    wide_density = _Forgiving(simulator).log_likelihood(wide.unsqueeze(-2), design, outcomes).double().logsumexp(0)
    ratio = torch.nan_to_num(wide_density - density, nan=torch.inf)
    return _rank(density), _rank(-ratio)


def _rank(values: Tensor) -> Tensor:
    """Where the last of (M + 1) exchangeable values stands, uniform on (0, 1), ties broken at random."""
    others, last = values[:-1], values[-1]
    ties = torch.isclose(others, last, rtol=1e-9, atol=1e-9)  # equal discrete outcomes, but for rounding
    below, ties = ((others < last) & ~ties).sum(), ties.sum()
    return ((below + torch.rand((), dtype=torch.float64) * (1 + ties)) / len(values)).clamp(1e-12, 1 - 1e-12)


def _deviance_p_value(simulator: DesignSimulator, theta: Tensor, designs: Tensor, outcomes: Tensor) -> float:
    replicated = simulator(theta.unsqueeze(-2), designs)
    of_replicates = simulator.log_likelihood(theta.unsqueeze(-2), designs, replicated).double().sum(-1)
    of_data = history_log_likelihood(simulator, theta, designs, outcomes).double()
    above, ties = (of_replicates < of_data).double().mean(), (of_replicates == of_data).double().mean()
    return (above + torch.rand(()) * ties).item()


def _fisher(p_values: Tensor) -> float:
    """P(χ²(2n) ≥ −2 Σ log p)."""
    return torch.special.gammaincc(torch.tensor(float(len(p_values))).double(), -p_values.log().sum()).item()


def _stouffer(p_values: Tensor) -> float:
    weights = torch.arange(1, len(p_values) + 1).double().rsqrt()
    return torch.special.ndtr((weights * torch.special.ndtri(p_values)).sum() / weights.norm()).item()
