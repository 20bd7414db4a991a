"""Experiments whose exact answers are known, shared by the tests."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal, constraints

from sbi_bed.policies import Policy
from sbi_bed.simulators import DesignSimulator, DesignSpace, Pharmacokinetics, PowerScaledPrior


def gaussian_prior(dim: int, dtype: torch.dtype = torch.float32) -> MultivariateNormal:
    return MultivariateNormal(torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype))


class LinearGaussian(DesignSimulator):
    """y ~ N(θ · ξ, σ²), θ ~ N(0, I_P), ξ in the box [−1, 1]^P.

    The posterior covariance does not depend on outcomes, so the gain of designs is ½ log det(I + Σ_t ξ_t ξ_tᵀ / σ²),
    and a policy's is the mean of that over its histories. tr Σ ξξᵀ ≤ P T, so no designs gain more than
    ½ P log(1 + T / σ²); P = 1 reaches it with |ξ| = 1, P = 2 for even T with half the designs on each diagonal.
    """

    def __init__(
        self, dim: int = 1, noise_sd: float = 0.5, dtype: torch.dtype = torch.float32, reparameterized: bool = True
    ):
        self.dim, self.noise_sd = dim, noise_sd
        super().__init__(
            prior=gaussian_prior(dim, dtype),
            simulate=self._simulate,
            design_space=constraints.interval(-torch.ones(dim), torch.ones(dim)),
            log_likelihood=self._log_density,
            reparameterized=reparameterized,
        )

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        mean = (theta * design).sum(-1, keepdim=True)
        return mean + self.noise_sd * torch.randn_like(mean)

    def _log_density(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        z = (outcome.squeeze(-1) - (theta * design).sum(-1)) / self.noise_sd
        return -0.5 * z.square() - math.log(self.noise_sd * math.sqrt(2 * math.pi))

    def gain_of(self, designs: Tensor) -> Tensor:
        """Exact information gain (...) of designs (..., T, P), in nats."""
        designs = designs.double()
        precision = torch.eye(self.dim, dtype=torch.float64) + designs.mT @ designs / self.noise_sd**2
        return 0.5 * torch.logdet(precision)

    def best_gain(self, horizon: int) -> float:
        """Largest gain of `horizon` trials, P = 1, or P = 2 and an even horizon."""
        assert self.dim == 1 or (self.dim == 2 and horizon % 2 == 0)
        return 0.5 * self.dim * math.log(1 + horizon / self.noise_sd**2)


def linear_in(prior: object) -> DesignSimulator:
    """y ~ N(θ · ξ, 1) under any prior of theta, any real designs."""
    theta = prior.sample() if hasattr(prior, "sample") else None
    dim = theta.shape[-1] if isinstance(theta, Tensor) and theta.ndim else 1

    def simulate(theta: Tensor, design: Tensor) -> Tensor:
        mean = (theta * design).sum(-1, keepdim=True)
        return mean + torch.randn_like(mean)

    def log_likelihood(theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        return Normal((theta * design).sum(-1), 1.0).log_prob(outcome.squeeze(-1))

    return DesignSimulator(
        prior, simulate, DesignSpace(constraints.real, dim=dim), log_likelihood, reparameterized=True
    )


class YesNo(DesignSimulator):
    """y ~ Bernoulli(sigmoid(3 θ ξ)), θ ~ N(0, 1), ξ real: few enough outcomes to enumerate every history."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__(
            prior=gaussian_prior(1, dtype),
            simulate=lambda theta, design: torch.bernoulli(torch.sigmoid(3 * theta * design)),
            design_space=DesignSpace(constraints.real, dim=1),
            log_likelihood=lambda theta, design, outcome: torch.nn.functional.logsigmoid(
                (2 * outcome - 1) * 3 * theta * design
            ).squeeze(-1),
            outcome_space=constraints.boolean,
        )

    @staticmethod
    def all_outcomes(num_trials: int) -> Tensor:
        """Every sequence of outcomes, (2^T, T, 1)."""
        return torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_trials)), dtype=torch.float64).unsqueeze(-1)


class RandomWalk(DesignSimulator):
    """y_t = s_t + θ ξ_t with a hidden state s_t = s_{t−1} + 1 that starts anywhere: y_t − θ ξ_t − t is one number a run."""

    def __init__(self):
        super().__init__(
            prior=gaussian_prior(1),
            simulate=lambda theta, design, state: (state + theta * design, state + 1),
            design_space=constraints.interval(-torch.ones(1), torch.ones(1)),
            initial_state=lambda theta: 10 * torch.randn_like(theta),
        )


def later_than_the_last(history: Tensor) -> constraints.Constraint:
    """Times up to 24 after the last of a history."""
    last = history[..., -1, :1] if history.shape[-2] else history.new_zeros(*history.shape[:-2], 1)
    return constraints.interval(last, 24.0)


def blood_samples_in_order() -> DesignSimulator:
    """`Pharmacokinetics` whose times increase: no hidden state, a likelihood, a design space that depends on history."""
    model = Pharmacokinetics()
    space = DesignSpace(constraints.interval(0.0, 24.0), loc=-1.0, given=later_than_the_last)
    return DesignSimulator(model.prior, model.simulate, space, model.log_likelihood, reparameterized=True)


class TinyPolicy(Policy):
    """ξ_{t+1} = tanh(a + b Σ y + c t) in every coordinate: three weights, adaptive, smooth."""

    def __init__(self, simulator: DesignSimulator, start: float = 0.4):
        super().__init__(simulator, start=start)
        self.weights = nn.Parameter(torch.tensor([start, 0.5, -0.3]))

    def initial_state(self, batch_shape=()):
        return torch.zeros(*batch_shape, 2, dtype=self.weights.dtype)

    def update(self, state, design, outcome):
        return torch.stack([state[..., 0] + outcome.sum(-1), state[..., 1] + 1], -1)

    def propose(self, state):
        value = torch.tanh(self.weights[0] + state @ self.weights[1:]).unsqueeze(-1)
        return value * torch.tensor([1.0, 0.8, 0.6][: self.design_dim], dtype=value.dtype)


def numerical_gradient(function, parameter: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar `function()` in each element of `parameter` (float64)."""
    gradient = torch.zeros_like(parameter)
    with torch.no_grad():
        for index in range(parameter.numel()):
            value = parameter.view(-1)[index].item()
            parameter.view(-1)[index] = value + step
            high = float(function())
            parameter.view(-1)[index] = value - step
            low = float(function())
            parameter.view(-1)[index] = value
            gradient.view(-1)[index] = (high - low) / (2 * step)
    return gradient


class LinearGaussianData:
    """x ~ N(Aθ, σ² I), 4 numbers about 3 parameters, θ_j ~ N(0, 1/γ_j): the exact posterior at every γ.

    Its precision is diag(γ) + AᵀA/σ², whatever x is, and its mean the covariance times Aᵀx/σ².
    """

    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.3, 0.0, 1.0], [0.5, -0.5, 0.5]])

    def __init__(self, noise_sd: float = 1.2):
        self.noise_sd = noise_sd
        self.prior = PowerScaledPrior(Independent(Normal(torch.zeros(3), torch.ones(3)), 1))

    def __call__(self, theta: Tensor) -> Tensor:
        mean = theta @ self.matrix.T
        return mean + self.noise_sd * torch.randn_like(mean)

    def posterior(self, x: Tensor, gamma: Tensor) -> MultivariateNormal:
        """Exact posteriors, batch shape (...), float64, given x (..., 4) and γ (..., 3)."""
        matrix = self.matrix.double() / self.noise_sd
        covariance = torch.linalg.inv(torch.diag_embed(gamma.double()) + matrix.T @ matrix)
        weighted = (x.double() / self.noise_sd) @ matrix
        return MultivariateNormal((covariance @ weighted.unsqueeze(-1)).squeeze(-1), covariance)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x | θ), shape (...)."""
        return Normal(theta @ self.matrix.T, self.noise_sd).log_prob(x).sum(-1)
