r"""Which parameters the data of an experiment identify, and which experiment would identify them better.

**The report** uses posterior draws of the logarithms of (positive) parameters, where scaling laws are straight lines. With
covariances C of the posterior and C_0 of the prior, the solutions of

    C v = λ C_0 v

are directions, and λ is the share of prior variance that is left in each: near 0 identified, near 1 not at all. The
least-identified direction is the one of largest λ. For a quadratic cost with effort it runs along log β + (1 − w) log μ_0 =
const, where the likelihood is exactly constant: a person who avoids effort acts like one who expects small stimuli.

**The better experiment** has n_j trials at each of some candidate designs ξ_j. Near θ, a trial gives the Fisher
information F_j(θ) = E_y[∇log p(y | θ, ξ_j) ∇log p(y | θ, ξ_j)ᵀ], so that after the experiment log θ has about the covariance

    C(n, θ) = (C_0^{−1} + Σ_j n_j F_j(θ))^{−1}.

Averaged over draws of θ, the mean log variance of the parameters of interest is minimised over the shares n_j / n
(D_s-optimality under a prior: Chaloner & Verdinelli 1995), and shares are then rounded to whole trials. All trials are
chosen together. Greedy choice cannot do this: a trial that is uninformative by itself may make another one informative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...simulators.base import DesignSimulator
from ...utils.checks import as_finite_tensor, check_count
from ...utils.seeding import seeded
from ...utils.text_table import format_table

__all__ = ["Identifiability", "ResolvingDesigns", "fisher_information", "identifiability", "resolving_designs"]

_STEPS, _RATE = 400, 0.1  # of the ascent in log shares


@dataclass(frozen=True)
class Identifiability:
    """What the data leave open; about logarithms of parameters that are positive.

    Attributes:
        names: Names of the P parameters.
        correlation: Posterior correlations, (P, P).
        stddev: Posterior standard deviations, (P,).
        share_left: Share of prior variance that is left of each parameter, (P,).
        direction: Least-identified direction, (P,), of length 1.
        direction_share_left: Share of prior variance left along it.
    """

    names: tuple[str, ...]
    correlation: Tensor
    stddev: Tensor
    share_left: Tensor
    direction: Tensor
    direction_share_left: float

    def __str__(self) -> str:
        rows = [
            (name, f"{sd:.3f}", f"{share:.0%}", f"{part:+.2f}", *(f"{value:+.2f}" for value in correlations))
            for name, sd, share, part, correlations in zip(
                self.names,
                *(column.tolist() for column in (self.stddev, self.share_left, self.direction, self.correlation)),
                strict=True,
            )
        ]
        table = format_table(("log of", "sd", "variance left", "ridge", *self.names), rows)
        return f"{table}\nalong the ridge {self.direction_share_left:.0%} of the prior variance is left"


@dataclass(frozen=True)
class ResolvingDesigns:
    """An experiment that is more informative about some parameters.

    Attributes:
        designs: The trials, (T, D), in the order of the candidates.
        counts: Trials at each candidate, (J,).
        expected_sd: Geometric mean, over draws of theta, of the sd of each parameter of interest (of its logarithm, where
            positive) after this experiment, (K,).
        uniform_sd: The same after an experiment that uses all candidates equally often.
    """

    designs: Tensor
    counts: Tensor
    expected_sd: Tensor
    uniform_sd: Tensor


def identifiability(draws: Any, prior_draws: Any, names: Sequence[str] | None = None) -> Identifiability:
    """Find which directions of theta a posterior leaves open.

    Args:
        draws: Posterior draws (N, P).
        prior_draws: Prior draws (M, P).
        names: Names of the parameters; "theta_1" and so on if None.

    Raises:
        ValueError: If shapes do not fit, draws are not finite or fewer than 2 P, or a parameter does not vary.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch...
        >>> prior = torch.rand(1000, 2) + 0.5
        >>> product_is_known = torch.cat([prior[:, :1], 1 / prior[:, :1] + 0.01 * torch.rand(1000, 1)], -1)
        >>> report = identifiability(product_is_known, prior, ["a", "b"])
        >>> bool(report.correlation[0, 1] < -0.99), bool(report.direction.prod() < 0)
        (True, True)
    """
    draws, prior_draws = (as_finite_tensor(v, n).double() for v, n in ((draws, "draws"), (prior_draws, "prior_draws")))
    if draws.ndim != 2 or prior_draws.ndim != 2 or draws.shape[1] != prior_draws.shape[1]:
        raise ValueError(
            f"draws and prior_draws must be (N, P) and (M, P), got {tuple(draws.shape)} and {tuple(prior_draws.shape)}."
        )
    dim = draws.shape[1]
    if min(len(draws), len(prior_draws)) < 2 * dim:
        raise ValueError(f"at least {2 * dim} draws are needed, got {len(draws)} and {len(prior_draws)}.")
    names = tuple(f"theta_{i + 1}" for i in range(dim)) if names is None else tuple(names)
    if len(names) != dim:
        raise ValueError(f"names must have one entry for each of {dim} parameters, got {names}.")
    positive = (prior_draws > 0).all(0) & (draws > 0).all(0)
    draws, prior_draws = (_logs(values, positive) for values in (draws, prior_draws))
    left, before = torch.atleast_2d(draws.T.cov()), torch.atleast_2d(prior_draws.T.cov())
    for which, covariance in (("draws", left), ("prior_draws", before)):
        if (covariance.diagonal() <= 0).any():
            raise ValueError(f"{names[int((covariance.diagonal() <= 0).nonzero()[0])]} does not vary in {which}.")
    root = torch.linalg.cholesky(before)
    inverse = torch.linalg.inv(root)
    shares, vectors = torch.linalg.eigh(inverse @ left @ inverse.mT)
    # C v = λ C_0 v for v = R^{-T} u gives what is constrained; the direction that draws spread along is R u.
    direction = root @ vectors[:, -1]
    direction = direction / direction.norm()
    direction = direction * torch.sign(direction[direction.abs().argmax()])
    sd = left.diagonal().sqrt()
    share_left = left.diagonal() / before.diagonal()
    return Identifiability(names, left / sd.outer(sd), sd, share_left, direction, float(shares[-1]))


def fisher_information(
    simulator: DesignSimulator, theta: Tensor, designs: Tensor, num_outcomes: int = 128, *, seed: int | None = None
) -> Tensor:
    """Fisher information about theta of one trial at each design, (N, J, P, P), by simulated outcomes.

    Args:
        simulator: Experiment with a differentiable likelihood.
        theta: Parameters (N, P).
        designs: Designs (J, D).
        num_outcomes: Outcomes simulated for each pair.
        seed: Seed; torch's global generator if None.
    """
    num, dim = theta.shape
    leaf = theta[:, None, None].expand(num, len(designs), num_outcomes, dim).clone()
    with seeded(seed):
        outcome = simulator(leaf, designs[:, None].to(leaf)).detach()
    leaf.requires_grad_()
    (score,) = torch.autograd.grad(simulator.log_likelihood(leaf, designs[:, None].to(leaf), outcome).sum(), leaf)
    return score.mT @ score / num_outcomes


def resolving_designs(
    simulator: DesignSimulator,
    draws: Any,
    of_interest: Sequence[int],
    candidates: Any,
    num_trials: int,
    *,
    num_draws: int = 64,
    num_outcomes: int = 128,
    seed: int | None = None,
) -> ResolvingDesigns:
    """The experiment of `num_trials` trials that is expected to be most informative about some of the parameters.

    Args:
        simulator: Experiment with a differentiable likelihood.
        draws: Draws of theta (N, P), from the prior, or from a posterior that left a question open. The prior of the new
            experiment is the simulator's own.
        of_interest: Indices of the parameters of interest.
        candidates: Designs (J, D) to choose among.
        num_trials: Number T of trials.
        num_draws: Draws of theta in the expectation.
        num_outcomes: Simulated outcomes for each Fisher information.
        seed: Seed; torch's global generator if None.

    Raises:
        ValueError: If there is no likelihood, an index is out of range, or shapes do not fit.

    Example:
        >>> from sbi_bed.simulators import BayesianActor, OptimalActor, QuadraticEffortCost
        >>> simulator = BayesianActor(OptimalActor(QuadraticEffortCost()), noise_range=(0.05, 0.4))
        >>> grid = torch.cartesian_prod(torch.tensor([0.5, 5.0]), torch.tensor([0.05, 0.2, 0.4]))
        >>> better = resolving_designs(simulator, simulator.prior.sample((200,)), [1], grid, 30, seed=0)
        >>> better.designs.shape
        torch.Size([30, 2])
    """
    if not simulator.has_likelihood:
        raise ValueError("resolving_designs needs a simulator with log_likelihood=.")
    draws = as_finite_tensor(draws, "draws", last_dim=simulator.theta_dim).double()
    candidates = simulator.design_space.check(as_finite_tensor(candidates, "candidates", simulator.design_dim)).double()
    num_trials, interest = check_count(num_trials, "num_trials"), list(of_interest)
    if not interest or not all(0 <= index < simulator.theta_dim for index in interest):
        raise ValueError(f"of_interest must be indices below {simulator.theta_dim}, got {interest}.")
    with seeded(seed):
        prior_draws = simulator.prior.sample((4096,)).double()
        theta = draws.reshape(-1, draws.shape[-1])[torch.randperm(len(draws))[:num_draws]]
        information = fisher_information(simulator, theta, candidates, num_outcomes)
    positive = (prior_draws > 0).all(0) & (theta > 0).all(0)
    scale = torch.where(positive, theta, 1.0)  # d theta / d log theta
    information = information * scale[:, None, :, None] * scale[:, None, None, :]
    precision = torch.linalg.inv(torch.atleast_2d(_logs(prior_draws, positive).T.cov()))

    def log_variance(shares: Tensor) -> Tensor:
        """Mean over draws, (K,)."""
        total = precision + num_trials * torch.einsum("j,njpq->npq", shares, information)
        return torch.linalg.inv(total).diagonal(dim1=-2, dim2=-1)[:, interest].log().mean(0)

    uniform = torch.full((len(candidates),), 1 / len(candidates), dtype=torch.float64)
    counts = _round(_best_shares(log_variance, uniform), num_trials)
    sds = [(0.5 * log_variance(shares)).exp() for shares in (counts.double() / num_trials, uniform)]
    designs = candidates.repeat_interleave(counts, 0).to(torch.get_default_dtype())
    return ResolvingDesigns(designs, counts, *sds)


def _best_shares(log_variance: Any, start: Tensor) -> Tensor:
    """Shares of trials by Adam in their logarithms."""
    free = torch.zeros_like(start).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=_RATE)
    with torch.enable_grad():
        for _ in range(_STEPS):
            (free.grad,) = torch.autograd.grad(log_variance(free.softmax(0)).sum(), free)
            optimizer.step()
    return free.detach().softmax(0)


def _round(shares: Tensor, num_trials: int) -> Tensor:
    """Whole numbers of trials that sum to `num_trials`, largest remainders first."""
    counts = (shares * num_trials).floor()
    missing = int(num_trials - counts.sum())
    counts[(shares * num_trials - counts).topk(missing).indices] += 1
    return counts.long()


def _logs(values: Tensor, positive: Tensor) -> Tensor:
    return torch.where(positive, torch.where(positive, values, 1.0).log(), values)
