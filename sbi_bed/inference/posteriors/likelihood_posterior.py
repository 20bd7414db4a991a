r"""The posterior given a history, as an ordinary posterior of sbi; the simulator must have a likelihood.

All three ways of sampling start from sequential Monte Carlo over the trials, which is quick, finds several modes, and
gives the evidence p(h) = Π_t p(y_t | h_{t−1}):

- ``"smc"``: draws are its particles, moved on by Metropolis steps;
- ``"importance"``: its particles shape a heavy-tailed, defensive proposal, and sbi's importance sampling does the rest;
- ``"mcmc"``: its particles are where sbi's chains start, so that modes are visited in proportion.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sbi.inference.posteriors import ImportanceSamplingPosterior, MCMCPosterior
from sbi.inference.posteriors.base_posterior import NeuralPosterior
from sbi.utils.torchutils import process_device
from torch import Tensor
from torch.distributions import Distribution

from ...simulators.base import DesignSimulator
from ...simulators.lapses import with_lapses
from ...utils.checks import check_choice, check_count
from ...utils.seeding import seeded
from ...utils.smc import ImpossibleOutcomeError, ParticleBelief, rejuvenate, weights_sample_size
from ...utils.transforms import to_unconstrained
from ...utils.warn_user import warn_user
from .defensive_proposal import DefensiveProposal
from .history_potential import HistoryPotential
from .predictive_check import PredictiveCheck, history_beliefs, predictive_check

__all__ = ["PosteriorReport", "SMCPosterior", "chain_sample_size", "likelihood_posterior"]

_ENOUGH = 30  # independent draws below which a posterior is not trusted
_CANDIDATES, _MOST_CANDIDATES = 16, 1024  # effective candidates for each draw of importance sampling, and most in all


@dataclass(frozen=True)
class PosteriorReport:
    """How far a posterior can be trusted.

    Attributes:
        sample_with: How it samples.
        num_trials: Number of trials in the history.
        effective_sample_size: Independent draws that its particles, weighted draws or last chains are worth.
        log_evidence: log p(h), nats.
        check: Whether the data look as the model and its prior said they would; see `PredictiveCheck`.
    """

    sample_with: str
    num_trials: int
    effective_sample_size: float
    log_evidence: float
    check: PredictiveCheck


def likelihood_posterior(
    simulator: DesignSimulator,
    history: Tensor,
    sample_with: str = "smc",
    *,
    num_particles: int = 4096,
    proposal: Any = None,
    prior: Distribution | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """The posterior of theta given a history, as a posterior of sbi with that history as its default x.

    Args:
        simulator: Experiment with a likelihood.
        history: Shape (n, D + O + 1) or (1, n, D + O + 1), padded or not; with no trials the posterior is the prior.
        sample_with: "smc", "importance" or "mcmc"; the last is only for priors without discrete parameters.
        num_particles: Particles of sequential Monte Carlo, and weighted draws for the evidence of "importance".
        proposal: For "importance" the proposal, for "mcmc" where chains start: a distribution with `sample` and
            `log_prob`. Adapted to the history if None.
        prior: Distribution of theta; the simulator's own if None.
        seed: Seed of this construction. Draws come from torch's global generator, as everywhere in sbi.
        **kwargs: Passed on: to sbi's `MCMCPosterior` (slice sampling, or `method="nuts_pyro"` with the extra `pyro`) or
            `ImportanceSamplingPosterior`, or to `assimilate` for "smc".

    Returns:
        A subclass of sbi's `MCMCPosterior` or `ImportanceSamplingPosterior`, or an `SMCPosterior`. `log_prob` is
        normalised in all three, `set_default_x` and `x=` infer again, and `.report` is a `PosteriorReport`.

    Raises:
        ValueError: If `sample_with` is none of the three, or "mcmc" for discrete parameters, the simulator has no
            likelihood, its likelihood has another shape, or the history is not finite, not one, or not of this simulator.

    Warns:
        UserWarning: If the history is impossible under the prior, which the posterior then forgives; and on `sample`, once,
            if draws are worth too few independent ones.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> history = torch.tensor([[0.0, 0.0, 2.0, 1.0], [1.0, 0.0, 0.5, 1.0]])
        >>> posterior = likelihood_posterior(LocationFinding(), history, seed=0)
        >>> posterior.sample((100,)).shape
        torch.Size([100, 2])
    """
    check_choice(sample_with, "sample_with", ("mcmc", "importance", "smc"))
    if sample_with == "smc" and proposal is not None:
        raise ValueError("sample_with='smc' starts from the prior and takes no proposal.")
    check_count(num_particles, "num_particles", 100)
    potential = HistoryPotential(simulator.surrogate, prior)
    with seeded(seed):
        settings = {"num_particles": num_particles, "proposal": proposal}
        if sample_with == "smc":
            posterior: _HistoryPosterior = SMCPosterior(potential, settings, **kwargs)
        elif sample_with == "importance":
            posterior = _ImportancePosterior(potential, settings, **kwargs)
        else:
            posterior = _MCMCPosterior(potential, settings, **kwargs)
        posterior.set_default_x(history)
    return posterior


class _HistoryPosterior(NeuralPosterior):
    """Common to all three: another history means new inference, and there is a report."""

    sample_with: str
    potential_fn: HistoryPotential
    log_evidence: float
    _settings: dict[str, Any]
    _assimilate_settings: dict[str, Any] | None = None
    _report: PosteriorReport | None = None
    _warned = False

    @cached_property
    def _strict(self) -> DesignSimulator:
        """The simulator as it was given, without lapses."""
        return self.potential_fn.simulator

    def set_default_x(self, x: Tensor) -> Any:
        """Condition on another history (n, D + O + 1), or (1, n, D + O + 1): infers again."""
        x = self.potential_fn.as_history(x)
        self.potential_fn.set_x(x)
        self._report, self._warned = None, False
        self.potential_fn.simulator = self._strict
        try:
            self._infer()
        except ImpossibleOutcomeError:
            warn_user(
                "the history is impossible under the prior: no particle has a positive likelihood. This posterior allows "
                "for outcomes that have nothing to do with theta, one in a thousand. Give the model a lapse rate or wider "
                "noise."
            )
            self.potential_fn.simulator = with_lapses(self._strict)
            self._infer()
        self._check_seed = int(torch.randint(2**31, ()))
        return super().set_default_x(x)

    def to(self, device: str | torch.device) -> Any:
        """Move to a device; infers again there."""
        self._device = process_device(device)  # pyright: ignore[reportArgumentType]
        prior = self.potential_fn.to(device).prior
        self.theta_transform = to_unconstrained(prior, keep_discrete=True)
        return self if self.default_x is None else self.set_default_x(self.default_x)

    def _infer(self) -> None:
        """Set what sampling needs, and `log_evidence`, for the history of the potential."""
        raise NotImplementedError

    def _belief(self) -> ParticleBelief:
        potential = self.potential_fn
        beliefs = history_beliefs(
            potential.simulator,
            potential.designs,
            potential.outcomes,
            potential.prior,
            self.theta_transform,
            self._settings["num_particles"],
            **(self._assimilate_settings or {}),
        )
        for belief in beliefs:
            last = belief
        return last

    def _at(self, x: Tensor | None) -> Any:
        """This posterior, or a copy of it for another history."""
        default = self.default_x
        if x is None or (default is not None and torch.equal(self.potential_fn.as_history(x).to(default), default)):
            self.potential_fn.set_x(default)
            return self
        other = copy.copy(self)
        other.potential_fn = copy.copy(self.potential_fn)
        return other.set_default_x(x)

    def sample(self, sample_shape: Any = (), x: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Draws (*sample_shape, P) given the default history or x; keywords as in sbi."""
        there = self._at(x)
        draws: Any = there._draw(torch.Size(sample_shape), **kwargs)
        there._warn_if_few(draws[0] if isinstance(draws, tuple) else draws)  # weighted draws come in a pair
        return draws  # pyright: ignore[reportReturnType]

    def _warn_if_few(self, theta: Tensor) -> None:
        """One warning for each history if the draws are worth too few independent ones."""
        rows = theta.reshape(-1, theta.shape[-1])
        if self._warned or len(rows) < 2:
            return
        size, enough = self.effective_sample_size, min(_ENOUGH, len(rows) / 2)
        whole = (rows == rows.round()).all()  # these repeat
        distinct = len(rows) if whole else len(rows.unique(dim=0))
        if min(size, distinct) < enough:
            self._warned = True
            warn_user(
                f"this posterior is not to be trusted: its draws are worth {size:.0f} independent ones, and {distinct} of "
                f"{len(rows)} are distinct. Take more num_particles=; or, where the noise is far smaller than the "
                "outcomes, give the prior and the data in float64."
            )

    def sample_batched(self, sample_shape: Any, x: Tensor, **kwargs: Any) -> Tensor:
        """Draws (*sample_shape, B, P) for histories x (B, n, D + O + 1), one after the other."""
        return torch.stack([self.sample(sample_shape, x=history, **kwargs) for history in x], dim=-2)

    def log_prob(self, theta: Tensor, x: Tensor | None = None, track_gradients: bool = False, **_: Any) -> Tensor:
        """Log posterior density (N,) of theta (N, P), normalised by the estimated evidence."""
        there = self._at(x)
        return there.potential(theta, track_gradients=track_gradients) - there.log_evidence

    def __getstate__(self) -> dict[str, Any]:
        # sbi hands out the object's own __dict__, which copy.copy would then share.
        return dict(super().__getstate__())

    def _draw(self, sample_shape: torch.Size, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    @property
    def effective_sample_size(self) -> float:
        """Independent draws that the particles, weighted draws or last chains are worth."""
        raise NotImplementedError

    @property
    def report(self) -> PosteriorReport:
        """Effective sample size, evidence and predictive checks at the default history; computed when first asked."""
        potential = self._at(None).potential_fn
        check = self._report.check if self._report is not None else None
        if check is None:
            check = predictive_check(potential.simulator, potential.x_o, potential.prior, seed=self._check_seed)
        ess = self.effective_sample_size
        self._report = PosteriorReport(self.sample_with, len(potential.designs), ess, self.log_evidence, check)
        return self._report


class SMCPosterior(_HistoryPosterior):
    """Posterior by sequential Monte Carlo over the trials; built by `likelihood_posterior(..., "smc")`.

    Attributes:
        belief: The particles.
        log_evidence: log p(h).
        theta_transform: Map from theta to the unconstrained coordinates in which sbi samples.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> history = torch.tensor([[0.0, 0.0, 0.4, 1.0]])  # one trial: design, outcome, mask
        >>> posterior = likelihood_posterior(LocationFinding(), history, "smc", num_particles=256, seed=0)
        >>> isinstance(posterior, SMCPosterior), posterior.sample((10,)).shape
        (True, torch.Size([10, 2]))
    """

    sample_with = "smc"

    def __init__(self, potential_fn: HistoryPotential, settings: dict[str, Any], **kwargs: Any):
        super().__init__(potential_fn, to_unconstrained(potential_fn.prior, keep_discrete=True))
        self._settings, self._assimilate_settings = settings, kwargs
        self._purpose = "It samples by sequential Monte Carlo and has a normalised .log_prob()."

    def _infer(self) -> None:
        self.belief = self._belief()
        self.log_evidence = self.belief.log_evidence.item()

    def _draw(self, sample_shape: torch.Size, show_progress_bars: bool = False) -> Tensor:
        num = sample_shape.numel()
        draws = self.belief.resample(max(num, self.belief.theta.shape[-2]))
        log_target = lambda theta: self.potential_fn(theta, track_gradients=False)  # noqa: E731
        return rejuvenate(draws, log_target, self.theta_transform).theta[:num].reshape(*sample_shape, -1)

    @property
    def effective_sample_size(self) -> float:
        """Independent draws that the particles are worth."""
        return self.belief.effective_sample_size.item()


class _ImportancePosterior(_HistoryPosterior, ImportanceSamplingPosterior):
    sample_with = "importance"

    def __init__(self, potential_fn: HistoryPotential, settings: dict[str, Any], **kwargs: Any):
        transform = to_unconstrained(potential_fn.prior, keep_discrete=True)
        ImportanceSamplingPosterior.__init__(self, potential_fn, settings["proposal"], transform, **kwargs)
        self._settings, self._at_least = settings, self.oversampling_factor

    @torch.no_grad()
    def _infer(self) -> None:
        potential, num = self.potential_fn, self._settings["num_particles"]
        if self._settings["proposal"] is None:
            self.proposal = DefensiveProposal(self._belief(), potential.prior, self.theta_transform)  # pyright: ignore
        theta = self.proposal.sample((num,))
        log_weights = potential(theta).double() - self.proposal.log_prob(theta).double()
        log_evidence = log_weights.logsumexp(0)
        if not torch.isfinite(log_evidence):
            raise ValueError("no draw of the proposal has a finite, positive weight: it does not cover the posterior.")
        self._ess = weights_sample_size(log_weights).item()
        # sbi picks each draw among this many candidates: where few of them count, more are needed.
        self.oversampling_factor = max(self._at_least, min(_MOST_CANDIDATES, math.ceil(_CANDIDATES * num / self._ess)))
        self.log_evidence = (log_evidence - np.log(num)).item()
        self._normalization_constant = torch.tensor(self.log_evidence).exp()

    def _draw(self, sample_shape: torch.Size, max_sampling_batch_size: int = 1000, **kwargs: Any) -> Any:
        settings = {"max_sampling_batch_size": max_sampling_batch_size, **kwargs}
        return ImportanceSamplingPosterior.sample(self, sample_shape, **settings)

    @property
    def effective_sample_size(self) -> float:
        return self._ess


class _MCMCPosterior(_HistoryPosterior, MCMCPosterior):
    sample_with = "mcmc"

    def __init__(self, potential_fn: HistoryPotential, settings: dict[str, Any], **kwargs: Any):
        transform = to_unconstrained(potential_fn.prior, keep_discrete=True)
        if transform.discrete.any():
            raise ValueError(
                "sample_with='mcmc' moves in continuous coordinates, but theta is discrete in part; use 'smc' or "
                "'importance'."
            )
        init = {"init_strategy": "sir", "init_strategy_parameters": {"num_candidate_samples": 32}}
        kwargs = {"num_chains": 50, "warmup_steps": 25, **init, **kwargs}
        MCMCPosterior.__init__(self, potential_fn, settings["proposal"], transform, **kwargs)
        self._settings, self._ess = settings, None

    def _infer(self) -> None:
        belief = self._belief()
        self.log_evidence = belief.log_evidence.item()
        if self._settings["proposal"] is None:
            self.proposal = DefensiveProposal(belief, self.potential_fn.prior, self.theta_transform)  # pyright: ignore
        self._ess = None

    def _draw(self, sample_shape: torch.Size, show_progress_bars: bool = False, **kwargs: Any) -> Tensor:
        with _numpy_seeded_by_torch():
            theta = MCMCPosterior.sample(self, sample_shape, show_progress_bars=show_progress_bars, **kwargs)
        num_chains = kwargs.get("num_chains") or self.num_chains
        per_chain = -(-sample_shape.numel() // num_chains)
        rows = theta.reshape(-1, theta.shape[-1])
        whole = rows[: len(rows) // per_chain * per_chain].reshape(-1, per_chain, theta.shape[-1])
        self._ess = chain_sample_size(whole).min().item()
        return theta

    @property
    def effective_sample_size(self) -> float:
        if self._ess is None:
            self.sample((1000,))
        return self._ess  # pyright: ignore[reportReturnType]


def chain_sample_size(chains: Tensor) -> Tensor:
    """Independent draws (P,) that chains (C, n, P) are worth: C n / (1 + 2 Σ ρ_k), Geyer's initial positive sequence.

    Autocorrelations are taken about the mean of all chains, so that chains stuck in different places count as few.
    """
    num_chains, length, _ = chains.shape
    deviation = (chains - chains.mean((0, 1))).double()
    spectrum = torch.fft.rfft(deviation, n=2 * length, dim=1)
    products = torch.fft.irfft(spectrum.abs().square(), n=2 * length, dim=1)[:, :length].sum(0)
    pairs = torch.arange(length, 0, -1).unsqueeze(-1) * num_chains
    correlation = (products / pairs) / (products[:1] / pairs[:1]).clamp_min(1e-300)
    even = correlation[: length - length % 2].reshape(-1, 2, correlation.shape[-1]).sum(1)
    positive = (even > 0).long().cumprod(0)
    time = (2 * (even * positive).sum(0) - 1).clamp_min(1 / len(chains)) if len(even) else torch.ones(1)
    return num_chains * length / time


@contextmanager
def _numpy_seeded_by_torch() -> Iterator[None]:
    """sbi's slice samplers draw from numpy's global generator: seed it from torch's, and put it back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(int(torch.randint(2**31, ())))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
