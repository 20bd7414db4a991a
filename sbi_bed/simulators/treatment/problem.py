r"""Treatment problems with known truth: the variance of the best design, and the loss of any other design.

Unit t has covariates X_t, an arm A_t drawn with probability e(X_t) for arm 1, and an outcome with mean f_a(x) and variance
σ_a²(x). No regular estimate of the average treatment effect τ = E[f_1(X) − f_0(X)] has an asymptotic variance below

    V(e) = E[σ_1²/e + σ_0²/(1 − e) + (f_1 − f_0 − τ)²],    V* = E[(σ_1 + σ_0)²] + Var(f_1(X) − f_0(X)),

(Hahn 1998), V* at the Neyman propensity e* = σ_1 / (σ_1 + σ_0), and V(e) − V* = E[(σ_1 + σ_0)² (e − e*)² / (e (1 − e))].
With more arms V is the sum over the effects of arms 1 … K − 1 against arm 0, and e* has the best shares (`arms.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...utils.checks import as_finite_tensor
from ...utils.quasi_random import quasi_random_draws
from .arms import arm_chances, as_propensity, weighted_sds

__all__ = [
    "TreatmentProblem",
    "binary_outcomes",
    "linear_benchmark",
    "multi_arm_benchmark",
    "normal_outcomes",
    "two_arm_benchmark",
]


def normal_outcomes(mean: Tensor, variance: Tensor) -> Tensor:
    """Normal draws, of the shape of `mean`.

    Example:
        >>> normal_outcomes(torch.tensor([2.0, 3.0]), torch.zeros(2))
        tensor([2., 3.])
    """
    return mean + variance.sqrt() * torch.randn_like(mean)


def binary_outcomes(mean: Tensor, variance: Tensor) -> Tensor:
    """Draws of 0 and 1 with these means.

    Example:
        >>> probability = torch.tensor([0.0, 1.0])
        >>> binary_outcomes(probability, probability * (1 - probability))
        tensor([0., 1.])
    """
    return torch.bernoulli(mean)


class TreatmentProblem:
    """One problem, or a batch of problems, with its true moments.

    Args:
        draw_covariates: Number n -> covariates of n new units in each problem, (*batch, n, d).
        moments: Covariates (*batch, n, d) -> means and variances of the outcomes, both (*batch, n, K), arm 0 first.
        nodes: Points (Q, d) of equal weight that represent the distribution of covariates.
        simulate: Means and variances (*batch, n, K) -> outcomes in each arm; normal if None.
        batch_shape: Shape of the batch of problems.
        smoothness_class: Of each problem, which class it was drawn from, (*batch), if there are classes.

    Example:
        Outcomes that are 0 or 1, with your own probabilities:

        >>> def moments(x):
        ...     p = torch.cat([0.2 + 0.1 * x, 0.3 + 0.6 * x], -1)
        ...     return p, p * (1 - p)
        >>> nodes = (torch.arange(100).unsqueeze(-1) + 0.5) / 100
        >>> problem = TreatmentProblem(lambda n: torch.rand(n, 1), moments, nodes, simulate=binary_outcomes)
        >>> round(float(problem.effect), 3)
        0.35
    """

    def __init__(
        self,
        draw_covariates: Callable[[int], Tensor],
        moments: Callable[[Tensor], tuple[Tensor, Tensor]],
        nodes: Tensor,
        simulate: Callable[[Tensor, Tensor], Tensor] | None = None,
        batch_shape: Sequence[int] = (),
        smoothness_class: Tensor | None = None,
    ):
        self.draw_covariates, self.moments = draw_covariates, moments
        self.nodes = as_finite_tensor(nodes, "nodes")
        self.batch_shape = torch.Size(batch_shape)
        self.smoothness_class = smoothness_class
        self._simulate = simulate or normal_outcomes

    @property
    def covariate_dim(self) -> int:
        """Number d of covariates."""
        return self.nodes.shape[-1]

    @property
    def num_arms(self) -> int:
        """Number K of arms, arm 0 the control."""
        return self.moments(self._nodes()[..., :1, :])[0].shape[-1]

    def outcomes(self, covariates: Tensor) -> Tensor:
        """Outcomes (*batch, n, K) that units with covariates (*batch, n, d) would have in each arm."""
        return self._simulate(*self.moments(covariates))

    def oracle(self, covariates: Tensor) -> Tensor:
        """The Neyman propensity e*(x): (*batch, n) for two arms, else the best shares (*batch, n, K)."""
        return as_propensity(self._best(covariates)[0])

    @property
    def effect(self) -> Tensor:
        """The average treatment effect τ: (*batch) for two arms, else of each against arm 0, (*batch, K − 1)."""
        effects = self._effects().mean(-2)
        return effects.squeeze(-1) if effects.shape[-1] == 1 else effects

    @property
    def bound(self) -> Tensor:
        """The smallest asymptotic variance V* of any design, summed over effects, (*batch)."""
        _, total = self._best(self._nodes())
        return total.square().mean(-1) + self._effects().var(-2, correction=0).sum(-1)

    def variance(self, propensity: Callable[[Tensor], Tensor]) -> Tensor:
        """V(e), (*batch), of a fixed design: covariates (*batch, n, d) -> propensities (*batch, n) or (*batch, n, K)."""
        return self.bound + self.regret(self._nodes(), propensity(self._nodes())).mean(-1)

    def regret(self, covariates: Tensor, propensity: Tensor) -> Tensor:
        """(σ_1 + σ_0)² (e − e*)² / (e (1 − e)), or its like for K arms, at each unit, (*batch, n); the mean is V(e) − V*.

        Raises:
            ValueError: If a propensity does not lie between 0 and 1.
        """
        if not bool(((propensity > 0) & (propensity < 1)).all()):
            raise ValueError("propensities must lie strictly between 0 and 1: give every unit a chance of both arms.")
        best, total = self._best(covariates)
        chances = arm_chances(propensity, best.shape[-1])
        return (total.unsqueeze(-1) * (chances - best)).square().div(chances).sum(-1)

    def _nodes(self) -> Tensor:
        return self.nodes.expand(*self.batch_shape, *self.nodes.shape)

    def _effects(self) -> Tensor:
        """Effects of arms 1 … K − 1 at the nodes, (*batch, Q, K − 1)."""
        mean = self.moments(self._nodes())[0]
        return mean[..., 1:] - mean[..., :1]

    def _best(self, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """The best shares, (*batch, n, K), and Σ_a w_a σ_a, (*batch, n)."""
        weighted = weighted_sds(self.moments(covariates)[1].sqrt())
        total = weighted.sum(-1)
        return weighted / total.unsqueeze(-1), total


def two_arm_benchmark() -> TreatmentProblem:
    """No covariates, standard deviations 1 and 3 in arms 0 and 1: V* = 16, e* = ¾, and V(½) = 20 (Neyman 1934).

    Example:
        >>> float(two_arm_benchmark().bound)
        16.0
    """
    return multi_arm_benchmark((1.0, 3.0))


def multi_arm_benchmark(
    sds: Sequence[float] = (3.0, 1.0, 1.0), means: Sequence[float] | None = None
) -> TreatmentProblem:
    """No covariates, normal outcomes: V* = (√(K − 1) σ_0 + σ_1 + … )².

    Args:
        sds: Standard deviation of the outcomes in each arm, (K,), arm 0 the control.
        means: Their means, (K,); 0 if None.

    Example:
        >>> problem = multi_arm_benchmark()
        >>> round(float(problem.bound), 2), [round(share, 2) for share in problem.oracle(problem.nodes)[0].tolist()]
        (38.97, [0.68, 0.16, 0.16])
    """

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        ones = x.new_ones(*x.shape[:-1], len(sds))
        return ones * x.new_tensor(means or [0.0] * len(sds)), ones * x.new_tensor([sd**2 for sd in sds])

    return TreatmentProblem(lambda num: torch.zeros(num, 0).double(), moments, torch.zeros(1, 0).double())


def linear_benchmark() -> TreatmentProblem:
    """X ~ N(0, I_5), f_a(x) = Σ_j x_j + (.3, .8), σ = (.3, .8): V* = 1.21, e* = 8/11, and V(½) = 1.46.

    Example:
        >>> round(float(linear_benchmark().bound), 2)
        1.21
    """

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.sum(-1, keepdim=True) + x.new_tensor([0.3, 0.8])
        return mean, torch.ones_like(mean) * x.new_tensor([0.09, 0.64])

    normal = torch.distributions.MultivariateNormal(torch.zeros(5).double(), torch.eye(5).double())
    return TreatmentProblem(lambda num: normal.sample((num,)), moments, quasi_random_draws(normal, 4096))
