r"""Bounds on the information gain that use sbi's estimators: NPE, NLE, NRE.

The gain can be written with the posterior, the likelihood or their ratio. sbi has an estimator for each form (Klein et
al. 2026, arXiv 2602.06900):

    NPE   E[ log q(θ | h) − log p(θ) ]                                      ≤ EIG   (Barber and Agakov 2003),
    NLE   E[ log q(h | θ_0) − log 1/(L+1) Σ_{l=0..L} q(h | θ_l) ]           ≤ EIG,  q(h | θ) = Π_t q(y_t | θ, ξ_t),
    NRE   E[ r(h, θ_0) − log 1/(L+1) Σ_{l=0..L} exp r(h, θ_l) ]             ≤ EIG,

with θ_l from the prior: the parameters of other histories of the batch. The second is a lower bound for every q, since
any function of (h, θ) is a critic of InfoNCE; its q is fitted by maximum likelihood. The estimators learn from the
histories that the policy makes during its training.

Such a lower bound cannot exceed log(L + 1). There is a way around this for q(y | θ, ξ): it replaces the likelihood in the
policy's training, and contrastive samples near the truth (`LocalProposal`) then train gains of any size. This training
bound is an upper bound for q. The bound that is reported after training is the lower one, with draws of the prior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..neural_nets.embedding_nets.history import HistoryEmbedding
from ..neural_nets.trial_features import TrialFeatures
from ..simulators.base import DesignSimulator, parameter_indices, prior_log_prob
from ..simulators.experiments import Experiments
from ..simulators.sbi_prior import SBIPrior
from ..utils.checks import check_choice, check_count
from ..utils.history import split_history
from ..utils.seeding import seeded
from .base import NeuralBound
from .contrastive import snmc
from .critics import Standardize
from .pce import PCE
from .proposals import LocalProposal

if TYPE_CHECKING:
    from sbi.inference.posteriors import DirectPosterior

__all__ = ["LikelihoodBound", "PosteriorBound", "RatioBound"]


class PosteriorBound(NeuralBound):
    """The NPE form: a conditional density q(θ | h) of sbi, which is the posterior once training is done.

    Args:
        simulator: The experiment.
        horizon: Number T of trials; shorter histories are padded.
        model: Name of sbi's density estimator, as for `posterior_nn`.
        embedding_net: Histories (B, T, D + O + 1) → summaries; a `HistoryEmbedding` if None.
        fitting_steps: As for `NeuralBound`.
        max_design_gradient: As for `Bound`.
        of: The parameters z that the experiment is to tell about, all others a nuisance: indices of theta, or names where
            the simulator has `parameter_names`. The net is then q(z | h), and the bound on the gain about z is
            E[log q(z | h)] + H(z); H(z) is estimated once, from 20,000 draws of the prior. All of theta if None.
        **options: Further arguments of `posterior_nn`.

    Attributes:
        prior: The simulator's prior.
        of: Indices of z in theta, or None.
        estimator: sbi's density estimator q(θ | h), or q(z | h).

    Raises:
        ValueError: If theta is discrete in part: it has no density; or `of` names no parameters.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding, simulate_histories
        >>> simulator = LocationFinding()
        >>> theta, x = simulate_histories(simulator, RandomPolicy(simulator), 3, 16)
        >>> PosteriorBound(simulator, 3)(theta, x).shape
        torch.Size([16])
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        horizon: int,
        model: str = "mdn",
        embedding_net: torch.nn.Module | None = None,
        fitting_steps: int = 0,
        max_design_gradient: float | None = None,
        of: Sequence[int | str] | None = None,
        **options: Any,
    ):
        from sbi.neural_nets import posterior_nn  # importing sbi takes seconds

        from ..neural_nets.posterior_net import posterior_net

        super().__init__(fitting_steps, max_design_gradient)
        self.horizon, self.prior = check_count(horizon, "horizon"), simulator.prior
        embedding_net = HistoryEmbedding(simulator) if embedding_net is None else embedding_net
        self.of, theta = None if of is None else parameter_indices(simulator, of), _pilot(simulator)
        self._entropy = torch.zeros(())
        if self.of is None:
            build = posterior_net(simulator.prior, model, embedding_net, **options)
        else:
            build: Any = posterior_nn(model, embedding_net=embedding_net, z_score_x="none", **options)  # pyright: ignore
            theta, self.config["of"] = theta[:, self.of], self.of
            self.has_aim, self.lookahead = True, {"of": self.of}
            with seeded(0):
                self._entropy = _entropy(simulator.prior.sample((20_000,))[:, self.of])
        x = torch.zeros(2000, self.horizon, simulator.design_dim + simulator.outcome_dim + 1)
        self.estimator = build(theta, x)

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """Terms (B,) of theta (B, P) and their histories (B, n, D + O + 1), nats."""
        x = torch.nn.functional.pad(x, (0, 0, 0, self.horizon - x.shape[-2]))
        target = theta if self.of is None else theta[:, self.of]
        log_posterior = self.estimator.log_prob(target.unsqueeze(0), condition=x)[0]
        return log_posterior + (self._entropy if self.of is not None else -prior_log_prob(self.prior, theta))

    def held_out(self, experiments: Experiments, policy: Any, num: int, num_contrastive: int | None = None) -> Tensor:
        """Terms (num,) of new experiments: of some parameters by the likelihood, if there is one; else by the net."""
        if self.of is None or not experiments.simulator.has_likelihood:
            return super().held_out(experiments, policy, num)
        return PCE(of=self.of).held_out(experiments, policy, num, num_contrastive)

    def posterior(self) -> DirectPosterior:
        """The estimator as sbi's posterior, for histories packed to the horizon.

        Raises:
            ValueError: If the bound is about some parameters alone; `estimator` has their density.
        """
        if self.of is not None:
            raise ValueError("this bound has learned the posterior of some parameters alone: use its estimator.")
        from sbi.inference.posteriors import DirectPosterior

        return DirectPosterior(self.estimator.eval(), SBIPrior(self.prior))


class _ContrastiveBound(NeuralBound):
    """InfoNCE over the parameters of L other histories of the batch."""

    num_contrastive: int

    def scores(self, theta: Tensor, x: Tensor) -> Tensor:
        """U(h_i, θ_l), shape (B, L + 1), for theta (B, L + 1, P) and x (B, n, D + O + 1)."""
        raise NotImplementedError

    def forward(self, theta: Tensor, x: Tensor) -> Tensor:
        """Terms (B,) of theta (B, P) and their histories (B, n, D + O + 1), nats."""
        num = min(self.num_contrastive, len(theta) - 1)
        each = torch.arange(len(theta), device=theta.device)
        index = (each.unsqueeze(-1) + torch.arange(num + 1, device=theta.device)) % len(theta)
        scores = self.scores(theta[index], x)
        return scores[:, 0] - scores.logsumexp(-1) + math.log(num + 1)


class LikelihoodBound(_ContrastiveBound):
    """The NLE form: a conditional density q(y | θ, ξ) of sbi for one trial.

    The policy can only be right where this density is. `fitting_steps` gives the density more steps than the policy has.

    Args:
        simulator: The experiment; its trials must be independent given theta.
        model: Name of sbi's density estimator, as for `likelihood_nn`.
        num_contrastive: Number L of other parameters; as a lower bound it cannot exceed log(L + 1).
        proposal: Where the contrastive samples that train the policy come from: "prior", or "local", half of them from
            near the truth, for gains above log L.
        fitting_steps: As for `NeuralBound`.
        max_design_gradient: As for `Bound`.
        **options: Further arguments of `likelihood_nn`.

    Attributes:
        design_dim: Size D of a design.
        local: `LocalProposal` of contrastive samples, or None.
        standardize: Centres and scales theta.
        features: What is read of a trial.
        num_given: Number of values that q is conditional on.
        estimator: sbi's density estimator q(y | θ, ξ).

    Raises:
        ValueError: If the simulator has a hidden state, or "local" meets a prior without density.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding, simulate_histories
        >>> simulator = LocationFinding()
        >>> theta, x = simulate_histories(simulator, RandomPolicy(simulator), 3, 16)
        >>> terms = LikelihoodBound(simulator, num_contrastive=7)(theta, x)
        >>> bool((terms <= math.log(8)).all())
        True
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        model: str = "mdn",
        num_contrastive: int = 63,
        proposal: Literal["prior", "local"] = "prior",
        fitting_steps: int = 0,
        max_design_gradient: float | None = None,
        **options: Any,
    ):
        from sbi.neural_nets import likelihood_nn

        super().__init__(fitting_steps, max_design_gradient)
        if simulator.has_state:
            raise ValueError("trials that share a hidden state are not independent: q(h | θ) is no product over them.")
        check_choice(proposal, "proposal", ("prior", "local"))
        if proposal == "local" and not hasattr(simulator.prior, "log_prob"):
            raise ValueError('proposal="local" needs the density of the prior.')
        self.num_contrastive, self.design_dim = check_count(num_contrastive, "num_contrastive"), simulator.design_dim
        self.local = LocalProposal(simulator.prior) if proposal == "local" else None
        self.standardize, self.features = Standardize(simulator), TrialFeatures(simulator)
        self.num_given = simulator.theta_dim + simulator.design_space.num_features
        build = likelihood_nn(model, z_score_theta="none", z_score_x="none", **options)
        num_read = self.features.output_dim - simulator.design_space.num_features
        self.estimator = build(torch.randn(64, self.num_given), torch.randn(64, num_read))

    def scores(self, theta: Tensor, x: Tensor) -> Tensor:
        """log q(h_i | θ_l), shape (B, L + 1); the part that does not depend on θ is left out."""
        designs, outcomes, _ = split_history(x, self.design_dim)
        read = self.features(designs, outcomes).unsqueeze(1)  # (B, 1, n, F)
        num_designs = self.num_given - theta.shape[-1]
        shape = (*theta.shape[:2], x.shape[-2])
        given = torch.cat(
            [self.standardize(theta).unsqueeze(2).expand(*shape, -1), read[..., :num_designs].expand(*shape, -1)],
            dim=-1,
        )
        outcome = read[..., num_designs:].expand(*shape, -1)
        log_q = self.estimator.log_prob(outcome.flatten(0, 2).unsqueeze(0), condition=given.flatten(0, 2))
        return (log_q.reshape(shape) * x[..., -1].unsqueeze(1)).sum(-1)

    def loss(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """−bound, which trains the policy alone, and the negative log-likelihood, which makes q a likelihood."""
        self.estimator.requires_grad_(False)
        if self.local is None:
            terms = self(theta, x)
        else:
            contrastive, log_weights = self.local.sample(theta, self.num_contrastive)
            scores = self.scores(torch.cat([theta.unsqueeze(0), contrastive]).transpose(0, 1), x)
            terms = snmc(scores[:, 0], (scores[:, 1:] + log_weights.T).logsumexp(-1), self.num_contrastive)
        self.estimator.requires_grad_(True)
        return self.fitting_loss(theta, x.detach()) - terms.mean(), terms.detach()

    def fitting_loss(self, theta: Tensor, x: Tensor) -> Tensor:
        """Negative log-likelihood of histories as they are."""
        return -self.scores(theta.unsqueeze(1), x).mean()


class RatioBound(_ContrastiveBound):
    """The NRE form: a classifier of sbi, whose logit is r(h, θ).

    Args:
        simulator: The experiment.
        model: Name of sbi's classifier, as for `classifier_nn`.
        num_contrastive: Number L of other parameters; the bound cannot exceed log(L + 1).
        embedding_net: Histories (B, n, D + O + 1) → summaries (B, output_dim); a `HistoryEmbedding` if None.
        fitting_steps: As for `NeuralBound`.
        max_design_gradient: As for `Bound`.
        **options: Further arguments of `classifier_nn`.

    Attributes:
        estimator: sbi's classifier.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding, simulate_histories
        >>> simulator = LocationFinding()
        >>> theta, x = simulate_histories(simulator, RandomPolicy(simulator), 3, 16)
        >>> terms = RatioBound(simulator, num_contrastive=7)(theta, x)
        >>> bool((terms <= math.log(8)).all())
        True
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        model: str = "resnet",
        num_contrastive: int = 63,
        embedding_net: torch.nn.Module | None = None,
        fitting_steps: int = 0,
        max_design_gradient: float | None = None,
        **options: Any,
    ):
        from sbi.neural_nets import classifier_nn

        super().__init__(fitting_steps, max_design_gradient)
        self.num_contrastive = check_count(num_contrastive, "num_contrastive")
        self.embedding_net: Any = HistoryEmbedding(simulator) if embedding_net is None else embedding_net
        build = classifier_nn(model, z_score_x="none", **options)
        self.estimator = build(_pilot(simulator), torch.zeros(2000, self.embedding_net.output_dim))

    def scores(self, theta: Tensor, x: Tensor) -> Tensor:
        """r(h_i, θ_l), shape (B, L + 1)."""
        summary = self.embedding_net(x).unsqueeze(1).expand(*theta.shape[:2], -1)
        log_ratio = self.estimator.unnormalized_log_ratio(theta.flatten(0, 1), summary.flatten(0, 1))
        return log_ratio.reshape(theta.shape[:2])


def _entropy(values: Tensor) -> Tensor:
    """Entropy of the distribution of values (N, K), nats, from nearest neighbours (Kozachenko and Leonenko 1987).

    Raises:
        ValueError: If many values are equal, so that there is no density.
    """
    from scipy.spatial import KDTree  # takes a while

    num, dim = values.shape
    scale = values.double().std(0)
    points = (values.double() / scale).numpy()
    distance = torch.from_numpy(
        KDTree(points).query(points, 4)[0][:, 3]
    )  # the third neighbour, as 0 is the point itself
    if bool((scale == 0).any()) or bool((distance == 0).any()):
        raise ValueError("of= names parameters that are discrete: they have no density.")
    log_ball = 0.5 * dim * math.log(math.pi) - math.lgamma(0.5 * dim + 1)
    digamma = torch.digamma(torch.tensor([float(num), 3.0], dtype=torch.float64))
    return (digamma[0] - digamma[1] + log_ball + dim * distance.log().mean() + scale.log().sum()).float()


def _pilot(simulator: DesignSimulator) -> Tensor:
    """Parameters (2000, P) that show an estimator their mean and sd."""
    with seeded(0):
        return simulator.prior.sample((2000,)).float()
