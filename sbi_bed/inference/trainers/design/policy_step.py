"""One step of a policy's training: simulate a batch of experiments, bound their gain, climb."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....objectives.bounds import sampler_of
from ....objectives.critics import NeuralBound
from ....objectives.losses import pathwise_loss, score_function_loss
from ....objectives.model_gain import model_gain_loss, sample_of_each_model
from ....objectives.proposals import LocalProposal
from ....policies.base import Policy
from ....policies.design.bounded_gradients import BoundedGradients
from ....simulators.base import DesignSimulator
from ....simulators.models.model_mixture import ModelMixture
from ....simulators.rollout import Rollout, rollout
from ....utils.history import continue_history
from ..settings import TrainingSettings
from .device import to_device
from .distributed import Shards

__all__ = ["Experiments", "PolicyStep"]


@dataclass
class Experiments:
    """The experiments that a policy is trained on.

    Attributes:
        simulator: What runs.
        num_trials: Trials that are simulated.
        history: Trials before, common to all, (n, D + O + 1), or None.
        prior: Where θ is drawn from: as for `sampler_of`.
        state: Hidden states (N, S) that belong to the draws `prior` (N, P), or None.
        device: Where all of it is.
    """

    simulator: DesignSimulator
    num_trials: int
    history: Tensor | None
    prior: Any
    state: Tensor | None
    device: torch.device

    def __post_init__(self):
        self.sample_theta = sampler_of(to_device(self.prior, self.device))
        if self.state is not None:
            if not isinstance(self.prior, Tensor) or len(self.prior) != len(self.state):
                raise ValueError("state= needs prior=, draws of theta (N, P), one for each of its N states.")
            self._states, self._draws = self.state.to(self.device), self.prior.to(self.device)

    def sample(self, num: int) -> tuple[Tensor, Tensor | None]:
        """Theta (num, P), and hidden states (num, S) where they belong to it."""
        if self.state is None:
            return self.sample_theta(num).to(self.device), None
        index = torch.randint(len(self._draws), (num,), device=self.device)
        return self._draws[index], self._states[index]

    def run(
        self, policy: Any, num: int, detach_outcomes: bool | None = None, num_trials: int | None = None
    ) -> tuple[Tensor, Rollout]:
        """Theta (num, P) and what was designed and observed, in the first `num_trials` trials or in all."""
        theta, state = self.sample(num)
        num_trials = self.num_trials if num_trials is None else num_trials
        return theta, rollout(self.simulator, policy, theta, num_trials, self.history, detach_outcomes, state)


class PolicyStep:
    """Takes one step of the optimiser when called: (step, share of the training behind) -> bound and gradient norm.

    Args:
        experiments: What to train on.
        policy: Policy to train.
        bound: Bound with a net inside, trained with it, or None for the contrastive bound.
        settings: Arguments of the training.
        shards: This process's share of each batch.
        optimizer: Optimiser of all weights.

    Raises:
        ValueError: If the settings do not suit the simulator or the bound.
    """

    def __init__(
        self,
        experiments: Experiments,
        policy: Policy,
        bound: NeuralBound | None,
        settings: TrainingSettings,
        shards: Shards,
        optimizer: torch.optim.Optimizer,
    ):
        self.experiments, self.policy, self.bound = experiments, policy, bound
        self.settings, self.shards, self.optimizer = settings, shards, optimizer
        if bound is not None:
            self.objective = self._neural_objective(bound)
        else:
            self.objective = self._model_objective() if settings.objective == "model" else self._contrastive_objective()
        self._nets: list[nn.Module] = [policy] if bound is None else [policy, bound]
        self._size = settings.batch_size // shards.num_shards
        largest = settings.max_design_gradient
        if largest is None:
            largest = 1.0 if bound is None else math.inf
        space = experiments.simulator.design_space
        self._bounded: Any = BoundedGradients(policy, space, largest) if largest < math.inf else policy

    def __call__(self, step: int, done: float) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(done)
        num_trials = self.settings.num_trials_at(done, self.experiments.num_trials)
        if self.bound is not None:
            for extra in range(1, self.settings.bound_steps + 1):
                self._fit(self.bound, num_trials, step, extra)
        # Asked for the score function, score outcomes whole; else differentiate what of them is reparameterised.
        detach_outcomes = True if self.settings.gradient == "score" else None

        def loss_of_shard() -> tuple[Tensor, Tensor]:
            loss, terms = self.objective(*self.experiments.run(self._bounded, self._size, detach_outcomes, num_trials))
            return loss, terms.mean()

        bound, norm = self._climb(loss_of_shard, self._nets, step)
        # On a GPU the question would wait for the device: it is asked when the bound is reported.
        if (bound.device.type == "cpu" or step % 20 == 19) and not torch.isfinite(norm):
            raise ValueError(
                "the gradient became NaN or infinite: check that log_likelihood is finite and differentiable for all "
                "theta of the prior and all designs of the space."
            )
        self.optimizer.step()
        return bound, norm

    def _fit(self, bound: NeuralBound, num_trials: int, *step: int) -> None:
        """One step of the net inside the bound alone, on new histories of the policy as it is."""

        def loss_of_shard() -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                theta, trials = self.experiments.run(self.policy, self._size, num_trials=num_trials)
            loss = bound.fitting_loss(theta, continue_history(self.experiments.history, *trials))
            return loss, loss.detach()

        self._climb(loss_of_shard, [bound], *step)
        self.optimizer.step()  # the policy has no gradients, and stays

    def _climb(
        self, loss_of_shard: Callable[[], tuple[Tensor, Tensor]], nets: list[nn.Module], *step: int
    ) -> tuple[Tensor, Tensor]:
        """Leave the gradients of the mean loss over all shards in the nets; mean value of the bound, gradients' norm."""
        self.optimizer.zero_grad(set_to_none=True)
        bound = torch.zeros((), device=self.experiments.device)
        for _ in self.shards.of_step(*step):
            loss, value = loss_of_shard()
            (loss / self.shards.num_shards).backward()
            bound += value / self.shards.num_shards
        gradients = [p.grad for net in nets for p in net.parameters() if p.grad is not None]
        self.shards.sum([bound, *gradients])
        # Each net by itself: the gradients of a critic are many times those of a policy.
        largest = self.settings.largest_norm
        norms = [torch.nn.utils.clip_grad_norm_(net.parameters(), largest) for net in nets]
        return bound, torch.stack(norms).norm()

    def _contrastive_objective(self) -> Callable[[Tensor, Rollout], tuple[Tensor, Tensor]]:
        """(theta, trials) -> loss and terms of a contrastive bound."""
        settings, simulator, prior = self.settings, self.experiments.simulator, self.experiments.prior
        if settings.gradient == "pathwise" and not simulator.pathwise:
            raise ValueError("pathwise gradients need a simulator with reparameterized=True and no discrete part.")
        pathwise = settings.gradient == "pathwise" or (settings.gradient == "auto" and simulator.pathwise)
        loss_of: Any = pathwise_loss if pathwise else score_function_loss
        options: dict[str, Any] = {"compile": settings.compile} | ({} if pathwise else {"baseline": settings.baseline})
        num, local = settings.num_contrastive, None
        if settings.proposal == "local":
            if not hasattr(prior, "log_prob"):
                raise ValueError('proposal="local" needs the density of the prior, and draws have none.')
            local = LocalProposal(to_device(prior, self.experiments.device))

        def objective(theta: Tensor, trials: Rollout) -> tuple[Tensor, Tensor]:
            if local is None:
                contrastive, log_weights = self.experiments.sample(num)[0], None
            else:
                contrastive, log_weights = local.sample(theta, num)
            return loss_of(simulator, theta, trials, contrastive, log_weights=log_weights, **options)

        return objective

    def _model_objective(self) -> Callable[[Tensor, Rollout], tuple[Tensor, Tensor]]:
        """(theta, trials) -> loss and terms of the bound on what is told about the model."""
        settings, mixture, experiments = self.settings, self.experiments.simulator, self.experiments
        if not isinstance(mixture, ModelMixture):
            raise ValueError(f'objective="model" needs a ModelMixture of models, got {type(mixture).__name__}.')
        if settings.gradient != "auto" or settings.proposal != "prior":
            raise ValueError('objective="model" chooses its gradients itself and draws from the models\' priors.')
        if experiments.prior is not mixture.prior or experiments.history is not None:
            raise ValueError('objective="model" plans whole experiments: it takes no prior and no history.')
        num = max(1, settings.num_contrastive // len(mixture.simulators))

        def objective(theta: Tensor, trials: Rollout) -> tuple[Tensor, Tensor]:
            contrastive = [draws.to(theta) for draws in sample_of_each_model(mixture, num)]
            return model_gain_loss(mixture, theta, trials, contrastive, settings.baseline, compile=settings.compile)  # pyright: ignore[reportArgumentType]

        return objective

    def _neural_objective(self, bound: NeuralBound) -> Callable[[Tensor, Rollout], tuple[Tensor, Tensor]]:
        """(theta, trials) -> loss and terms of a bound with a net inside, which reads whole histories."""
        if self.settings.objective != "parameters":
            raise ValueError('objective="model" needs models with a log_likelihood.')
        if self.settings.gradient == "score" or self.settings.proposal != "prior":
            raise ValueError("a bound with a net inside has neither score-function gradients nor proposals.")

        def objective(theta: Tensor, trials: Rollout) -> tuple[Tensor, Tensor]:
            return bound.loss(theta, continue_history(self.experiments.history, *trials))

        return objective
