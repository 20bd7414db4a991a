r"""One neural posterior for every context: prior, simulator and data choices as an input of the net.

With contexts c ~ p(c), θ ~ p(θ | c) and x ~ p(x | θ, c), a flow is trained on the negative log-posterior averaged over
contexts (Elsemüller et al. 2023, arXiv 2310.11122),

    min_q  −E_{c, θ, x} log q(θ | x, c),

whose minimum is the posterior p(θ | x, c) in each context. The context is packed behind the data in one x, so that any of
sbi's flows can be used, by its name.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ....neural_nets.embedding_nets.context import ContextEmbedding
from ....neural_nets.embedding_nets.hierarchical import HierarchicalEmbedding
from ....neural_nets.first_weights import redraw_first_weights
from ....simulators.sbi_prior import SBIPrior
from ....simulators.sensitivity.contexts import Contexts, LogUniform, UniformRange, prior_of_context
from ....simulators.sensitivity.power_scaled_prior import PowerScaledPrior
from ....utils.checks import as_finite_tensor
from ....utils.packing.contexts import pack_context
from ....utils.transforms import to_unconstrained
from ...posteriors.context_posterior import ContextPosterior, build_context_estimator
from ..by_epochs import EpochSettings, EpochTrainer

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["ContextNPE"]

_NOT_SETTINGS = {
    "context": "what contexts are drawn from is contexts=",
    "x_dist": "the support of theta is known from prior, leave it out",
    "z_score_x": "data are scaled behind their masks, by embedding_net; leave it out",
}


class ContextNPE(EpochTrainer):
    """Trains a posterior over parameters that is told the context.

    Args:
        prior: `PowerScaledPrior`, whose powers are the first values of a context; an object with `condition(context)`,
            contexts (B, C) → distribution of batch shape (B,); or a distribution that is the same for all contexts.
        density_estimator: sbi's name of a conditional density estimator: "zuko_maf", "zuko_nsf", "mdn", …. Each layer of
            sbi's "maf" gives its first parameter neither data nor context; where random permutations put the same one first
            in all of T layers, one fit in P^(T − 1), it is never learned.
        device: Where to train.
        tracker: An sbi `Tracker` for losses; nothing is written if None.
        show_progress_bars: Whether to show progress with the validation loss.
        embedding_net: Net for the data without context, (B, *event) → (B, S); if None the data themselves.
        contexts: What contexts are drawn from; the ranges seen in simulations if None.
        **estimator_settings: Further keywords of sbi's `posterior_nn`: `hidden_features`, `num_transforms`, …. For bounded
            or positive parameters ``z_score_theta="transform_to_unconstrained"`` puts "zuko" flows into logs or logits,
            where skewed priors are learned far sooner and nothing leaks; not where the support moves with the context.

    Attributes:
        estimator: The net, once training has begun.
        validation_losses: Mean validation loss after each epoch, nats.
        held_out_losses: Loss of each held-out simulation, (N,), nats, once trained.
        num_epochs: Epochs of the last training.
        varied_sizes: Whether the last training varied the sizes of data sets.
        contexts: What contexts are drawn from; None until simulations show their ranges, if none were given.

    Raises:
        TypeError: If `prior`, `embedding_net` or `contexts` is of another kind, or a setting is none.
        ValueError: If theta is discrete in part: a net has no density for it.

    Example:
        >>> from torch.distributions import MultivariateNormal
        >>> from sbi_bed.simulators import simulate_with_context
        >>> prior = PowerScaledPrior(MultivariateNormal(torch.zeros(2), torch.eye(2)))
        >>> simulator = lambda theta: theta + 0.5 * torch.randn_like(theta)
        >>> theta, x, context = simulate_with_context(simulator, prior, 500, seed=0)
        >>> trainer = ContextNPE(prior, show_progress_bars=False).append_simulations(theta, x, context)
        >>> estimator = trainer.train(max_num_epochs=2, seed=0)
        >>> posterior = trainer.build_posterior()
        >>> posterior.sample((10,), x=x[0], context=[1.0, 1.0]).shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        prior: Any,
        density_estimator: str = "zuko_maf",
        device: str | torch.device = "cpu",
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        *,
        embedding_net: nn.Module | None = None,
        contexts: Contexts | None = None,
        **estimator_settings: Any,
    ):
        super().__init__(device, tracker, show_progress_bars)
        if not (hasattr(prior, "condition") or hasattr(prior, "log_prob")):
            raise TypeError(
                f"prior must be a PowerScaledPrior or another prior with condition(context), got {prior!r}."
            )
        if not hasattr(prior, "condition"):
            prior = prior if isinstance(prior, Distribution) else SBIPrior(prior)
            to_unconstrained(prior)
        if embedding_net is not None and not isinstance(embedding_net, nn.Module):
            raise TypeError(f"embedding_net must be a torch module, got {embedding_net!r}.")
        if contexts is not None and not isinstance(contexts, Contexts):
            raise TypeError(f"contexts must be Contexts(...), which contexts are drawn from, got {contexts!r}.")
        for name in _NOT_SETTINGS.keys() & estimator_settings.keys():
            raise TypeError(f"{name} is no setting of the estimator: {_NOT_SETTINGS[name]}.")
        self.prior, self.contexts, self.embedding_net = prior, contexts, embedding_net
        self.density_estimator = density_estimator
        self._estimator_settings = {  # numpy's numbers cannot be saved as plain data
            name: value.item() if isinstance(value, np.generic) else value for name, value in estimator_settings.items()
        }
        self.estimator: Any = None

    def append_simulations(self, theta: Any, x: Any, context: Any) -> ContextNPE:
        """Add simulations; returns the trainer itself.

        Args:
            theta: Parameters, (N, P), each drawn from the prior of its context.
            x: Data, (N, *event), of one shape in all calls.
            context: Contexts, (N, C).

        Raises:
            ValueError: If lengths or shapes differ, a number is not finite, or a context lies outside `contexts` of the
                constructor.
        """
        theta, x, context = (
            as_finite_tensor(value, name).detach().float()
            for value, name in ((theta, "theta"), (x, "x"), (context, "context"))
        )
        if theta.ndim != 2 or x.ndim < 2 or context.ndim != 2 or not len(theta) == len(x) == len(context):
            raise ValueError(
                "theta (N, P), x (N, ...) and context (N, C) must have one length, got "
                f"{tuple(theta.shape)}, {tuple(x.shape)} and {tuple(context.shape)}."
            )
        if self.contexts is not None:
            self.contexts.check_inside(context)
        new = theta, x, context
        for name, part, before in zip(("theta", "x", "context"), new, (self._simulations or [new])[0], strict=True):
            if part.shape[1:] != before.shape[1:]:
                raise ValueError(
                    f"{name} must have one shape in all calls, got {tuple(part.shape[1:])} after {tuple(before.shape[1:])}."
                )
        if isinstance(self.prior, PowerScaledPrior) and context.shape[1] < self.prior.num_gammas:
            raise ValueError(
                f"context must begin with the {self.prior.num_gammas} powers of the prior, got {context.shape[1]} values."
            )
        self._simulations.append(new)
        return self

    def train(
        self,
        training_batch_size: int = 256,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.05,
        stop_after_epochs: int | None = None,
        max_num_epochs: int = 40,
        clip_max_norm: float | None = 5.0,
        *,
        seed: int | None = None,
        split_seed: int | None = None,
        vary_sizes: bool | None = None,
        **settings: Any,
    ) -> Any:
        """Train on all simulations so far: a new net in the first call, from its present weights in later ones.

        Args:
            training_batch_size: Simulations in each step.
            learning_rate: First learning rate of Adam.
            validation_fraction: Share of the simulations that is held out.
            stop_after_epochs: Stop after so many epochs without a lower validation loss; None for all epochs, over which the
                learning rate falls.
            max_num_epochs: Most epochs; the learning rate falls over them.
            clip_max_norm: Largest norm of gradients; None for no limit.
            seed: Seed of the whole training, also of the first weights of a net that is new; the global generator if None.
                An embedding net that you wrote yourself keeps the weights it has: seed torch before you build it.
            split_seed: Seed of which simulations are held out, for trainings that share them; drawn like all else if None.
            vary_sizes: Whether data sets are trained on in random sizes, as for `ModelComparison.train`.
            **settings: `final_learning_rate` (0.01), `max_seconds`, `checkpoint`, `checkpoint_every` (1 epoch) and `resume`,
                as for every trainer; see `sbi_bed.inference.StepSettings`.

        Returns:
            The net, sbi's density estimator of (data, context).

        Raises:
            TypeError: If a keyword is no setting.
            ValueError: If an argument is out of range, there are too few simulations, the checkpoint is of another
                training, or the loss becomes NaN.
        """
        settings |= {"training_batch_size": training_batch_size, "validation_fraction": validation_fraction}
        settings |= {"stop_after_epochs": stop_after_epochs, "max_num_epochs": max_num_epochs}
        settings |= {"learning_rate": learning_rate, "clip_max_norm": clip_max_norm}
        settings |= {"seed": seed, "split_seed": split_seed, "vary_sizes": vary_sizes}
        return self._train(EpochSettings.of(settings))

    def build_posterior(self) -> ContextPosterior:
        """The posterior in any context, with a copy of the net as it is now, on the CPU.

        Raises:
            ValueError: If nothing was trained.
        """
        if self.estimator is None:
            raise ValueError("there is no net yet: call train() first.")
        estimator, event_shape = copy.deepcopy(self.estimator).cpu(), self._simulations[0][1].shape[1:]
        return ContextPosterior(estimator, self.prior, self._known_contexts(), tuple(event_shape), self._description())

    # ---- what the loop asks

    label = "training posterior in contexts"
    fewest_simulations = 10

    def _tensors(self) -> tuple[Tensor, ...]:
        theta, x, context = self._simulated()
        self._pairs = theta, pack_context(x, context)
        return self._pairs

    def _grouped_data(self) -> tuple[HierarchicalEmbedding, Tensor] | None:
        net = self.embedding_net
        return (net, self._simulations[0][1]) if isinstance(net, HierarchicalEmbedding) else None

    def _losses(self, batch: tuple[Tensor, ...]) -> Tensor:
        theta, x = batch
        return self._net.loss(theta, condition=x)  # pyright: ignore[reportCallIssue]

    def _known_contexts(self) -> Contexts:
        """What contexts are drawn from, as given or as seen."""
        if self.contexts is None:
            num_gammas = self.prior.num_gammas if isinstance(self.prior, PowerScaledPrior) else 0
            self.contexts = _seen(self._simulated()[2], num_gammas)
        return self.contexts

    def _build(self, rows: Tensor) -> nn.Module:
        if self.estimator is None:
            if self._settings.seed is not None and self.embedding_net is not None:
                redraw_first_weights(self.embedding_net)
            theta, packed = (tensor[rows[:5000]] for tensor in self._pairs)
            self._check_prior(theta)
            event_shape, contexts = tuple(self._simulations[0][1].shape[1:]), self._known_contexts()
            embedding = ContextEmbedding(event_shape, contexts.dim, self.embedding_net, contexts.log_columns)
            embedding.fit_scale(packed)
            settings = self.density_estimator, self._estimator_settings
            self.estimator = build_context_estimator(theta, packed[:100], embedding, *settings, self.prior)
        return self.estimator

    def _check_prior(self, theta: Tensor) -> None:
        prior = prior_of_context(self.prior, self._simulated()[2][:2])
        if tuple(prior.event_shape) != (theta.shape[1],):
            raise ValueError(
                f"the prior is over {tuple(prior.event_shape)} parameters, theta (N, P) has shape {tuple(theta.shape)}."
            )

    def _description(self) -> dict[str, Any]:
        net = self.embedding_net
        return {
            "model": self.density_estimator,
            "model_settings": dict(self._estimator_settings),
            "theta_dim": self._simulations[0][0].shape[1],
            "embedding": None if net is None else type(net).__name__,
            "embedding_config": getattr(net, "config", None),
        }


def _seen(context: Tensor, num_gammas: int) -> Contexts:
    """The ranges of simulated contexts (N, C), a little wider: draws do not reach their bounds."""
    parts = {}
    for index, column in enumerate(context.double().unbind(1)):
        is_power = index < num_gammas
        value = column.log() if is_power else column
        low, high = float(value.min()), float(value.max())
        slack = max(0.01, 10 / len(context)) * (high - low) + 1e-6
        if set(column.unique().tolist()) <= {0.0, 1.0}:
            low, high, slack = 0.0, 1.0, 0.0
        low, high = low - slack, high + slack
        if is_power:
            parts[f"gamma[{index}]"] = LogUniform(math.exp(low), math.exp(high))
        else:
            parts[f"context[{index}]"] = UniformRange(low, high)
    return Contexts(**parts)
