r"""What an experiment is to tell about, if not all of θ: some parameters, or outcomes at designs of interest.

With a target z, the gain is I(z; h) = E[log p(h | z) − log p(h)] (for predictions, z = y* at a design ξ*, EPIG; Bickford
Smith et al. 2023, arXiv 2304.08151). Where p(h | θ) is known, both parts are means over parameters:

    p(h | z) = E[ p(h | z, η) ] over p(η | z), with z = θ[of] and a nuisance η;
    p(h | y*) = E[ p(y* | θ) p(h | θ) ] / E[ p(y* | θ) ] over p(θ).

A mean over draws without the truth is below in the logarithm, one with the truth above (on average, by Jensen's inequality
and as for sPCE). So with θ_1, …, θ_L ~ p(θ) and η_m ~ q(η | η_0), weighted by w_m = p(z_0, η_m) / q(η_m | η_0),

    E[ log Σ_{m≥1} w_m p(h | z_0, η_m) − log Σ_{m≥1} w_m − log 1/(L+1) Σ_{l≥0} p(h | θ_l) ]  ≤  I(z; h),

and with v_l = p(y* | θ_l)

    E[ log 1/L Σ_{l≥1} v_l p(h | θ_l) − log 1/(L+1) Σ_{l≥0} v_l − log 1/(L+1) Σ_{l≥0} p(h | θ_l) ]  ≤  I(y*; h).

With the truth where it was left out, and left out where it was, both are upper bounds; η_m must then not depend on η_0.
(Σ w_m estimates p(z_0), which no design changes. Its Monte Carlo error, of order 1/M, is all that is not a bound.)

In mid-experiment θ_0 and θ_l are posterior draws. The density of η given z_0 is then known up to a constant, too:
p(z_0, η) p(h_τ | z_0, η), and its draws need only the prior's density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..simulators.base import DesignSimulator, parameter_indices
from ..simulators.experiments import Batch, Experiments
from ..utils.checks import as_finite_tensor
from ..utils.history import split_history
from .contrastive import log_likelihood_of_history, log_sum_likelihood
from .proposals import ConditionalProposal

__all__ = ["GivenTarget", "OutcomesAt", "ParametersOf", "Target", "target_of"]


class GivenTarget(NamedTuple):
    """Parameters whose weighted likelihoods have the mean p(h | z).

    Attributes:
        theta: Draws (M, P) or (M, B, P).
        log_weights: Logs of their weights, (M, B).
        log_own: That of the truth, (B,).
        log_norm: Log of the sum of weights that they are relative to, (B,).
    """

    theta: Tensor
    log_weights: Tensor
    log_own: Tensor
    log_norm: Tensor


class Target:
    """What the experiment is to tell about.

    Attributes:
        description: The argument of `PCE` that it was made from, as plain data.
        lookahead: The arguments of `GreedyPolicy` that mean the same.
    """

    description: dict[str, Any]
    lookahead: dict[str, Any]

    def check(self, experiments: Experiments) -> None:
        """Look at the experiments before anything is simulated; a `ValueError` if there is no such target in them."""
        raise NotImplementedError

    def given(
        self, experiments: Experiments, theta: Tensor, contrastive: Tensor, log_weights: Tensor | None, upper: bool
    ) -> GivenTarget:
        """Parameters given the target of theta_0 (B, P), from contrastive samples (L, P) or (L, B, P) or of its own."""
        raise NotImplementedError

    def bounds(
        self,
        experiments: Experiments,
        batch: Batch,
        contrastive: Tensor,
        log_weights: Tensor | None = None,
        *,
        upper: bool = False,
        compile: bool = False,
    ) -> Tensor:
        """Bounds on the gain after each trial, (B, T), attached to the policy's weights.

        Args:
            experiments: Where the batch comes from.
            batch: Simulated experiments.
            contrastive: Draws of the prior, (L, P), or of a proposal near the truth, (L, B, P).
            log_weights: Logs of their weights, (L, B); None for draws of the prior. With weights the result is neither a
                lower nor an upper bound.
            upper: Whether the bound is an upper one.
            compile: As for `log_sum_likelihood`.
        """
        simulator, theta, trials = experiments.simulator, batch.theta, batch.trials
        given = self.given(experiments, theta, contrastive, log_weights, upper)
        own = log_likelihood_of_history(simulator, theta, *trials).cumsum(-1)
        options: Any = {"every_trial": True, "compile": compile}
        target = log_sum_likelihood(simulator, given.theta, *trials, given.log_weights, **options).T
        if upper:
            target = torch.logaddexp(target, own + given.log_own.unsqueeze(-1))
        marginal = log_sum_likelihood(simulator, contrastive, *trials, log_weights, **options).T
        num = len(contrastive)
        if not upper and log_weights is None:
            marginal, num = torch.logaddexp(marginal, own), num + 1
        return target - given.log_norm.unsqueeze(-1) - marginal + math.log(num)


class ParametersOf(Target):
    """Some parameters, the others a nuisance; `of` are indices or names."""

    def __init__(self, of: Sequence[int | str]):
        self.of: list[int | str] = [of] if isinstance(of, (str, int)) else list(of)
        self.description = self.lookahead = {"of": self.of}
        self._proposal: ConditionalProposal | None = None

    def check(self, experiments: Experiments) -> None:
        """Check the names, and that the prior has a density and coordinates of its own for these parameters."""
        simulator, prior = experiments.simulator, experiments.prior
        kept = parameter_indices(simulator, self.of)
        if len(kept) == simulator.theta_dim:
            raise ValueError("of= names all parameters: leave it out, and the gain is about all of theta.")
        if not hasattr(prior, "log_prob"):
            if experiments.history is None:
                raise ValueError("of= needs the density of the prior, and draws have none.")
            prior = simulator.prior
        self._proposal = ConditionalProposal(prior, kept)

    def given(
        self, experiments: Experiments, theta: Tensor, contrastive: Tensor, log_weights: Tensor | None, upper: bool
    ) -> GivenTarget:
        """Draws of the nuisance, half of them near its true values unless the bound is to be an upper one."""
        proposal: Any = self._proposal
        draws, weights, own = proposal.sample(theta, len(contrastive), near=not upper)
        if experiments.history is not None and not hasattr(experiments.prior, "log_prob"):
            weights = weights + _log_likelihood_so_far(experiments, draws)
            own = own + _log_likelihood_so_far(experiments, theta)
        norm = weights.logsumexp(0)
        return GivenTarget(draws, weights, own, norm + math.log1p(1 / len(draws)) if upper else norm)


class OutcomesAt(Target):
    """The outcome at one of some designs (J, D), which are equally likely."""

    def __init__(self, designs: Any):
        self.designs = as_finite_tensor(designs, "target_designs")
        self.description = {"target_designs": self.designs.tolist()}
        self.lookahead = {"objective": "prediction", **self.description}

    def check(self, experiments: Experiments) -> None:
        """Check that the designs lie in the design space."""
        self.designs = check_target_designs(experiments.simulator, self.designs)

    def given(
        self, experiments: Experiments, theta: Tensor, contrastive: Tensor, log_weights: Tensor | None, upper: bool
    ) -> GivenTarget:
        """The contrastive samples, weighted by how likely they make an outcome that θ_0 gives at a random target design."""
        simulator = experiments.simulator
        with torch.no_grad():
            index = torch.randint(len(self.designs), (len(theta),), device=theta.device)
            design = self.designs.to(theta)[index]
            outcome = simulator(theta, design)
            own = simulator.log_likelihood(theta, design, outcome)
            each = contrastive.unsqueeze(1) if contrastive.ndim == 2 else contrastive
            weights = simulator.log_likelihood(each, design, outcome)
        weights = weights if log_weights is None else weights + log_weights
        norm, one_more = weights.logsumexp(0), math.log1p(1 / len(contrastive))
        if upper:
            norm = norm + one_more
        elif log_weights is None:
            norm = torch.logaddexp(norm, own) - one_more
        return GivenTarget(contrastive, weights, own, norm)


def check_target_designs(simulator: DesignSimulator, designs: Any) -> Tensor:
    """Target designs as a tensor (J, D), all in the design space; a `ValueError` otherwise."""
    designs = as_finite_tensor(designs, "target_designs", last_dim=simulator.design_dim)
    if designs.ndim != 2 or len(designs) == 0:
        raise ValueError(f"target_designs must have shape (J, {simulator.design_dim}), got {tuple(designs.shape)}.")
    try:
        return simulator.design_space.check(designs)
    except ValueError as err:
        raise ValueError(f"target_designs: {err}") from err


def target_of(of: Sequence[int | str] | None, target_designs: Any) -> Target | None:
    """The target that these arguments describe; None for all of θ."""
    if of is not None and target_designs is not None:
        raise ValueError("of= asks about parameters, target_designs= about outcomes: give one of them.")
    if of is not None:
        return ParametersOf(of)
    return None if target_designs is None else OutcomesAt(target_designs)


def _log_likelihood_so_far(experiments: Experiments, theta: Tensor) -> Tensor:
    """log p(h_τ | θ), shape (...), of the trials before, for theta (..., P)."""
    simulator, history = experiments.simulator, experiments.history
    designs, outcomes, _ = split_history(history, simulator.design_dim)  # pyright: ignore[reportArgumentType]
    return log_likelihood_of_history(simulator, theta, designs, outcomes).sum(-1)
