r"""One neural posterior for every context: prior, simulator and data choices as an input of the net.

With contexts c ~ p(c), θ ~ p(θ | c) and x ~ p(x | θ, c), a flow is trained on the negative log-posterior averaged over
contexts (Elsemüller et al. 2023, arXiv 2310.11122),

    min_q  −E_{c, θ, x} log q(θ | x, c),

whose minimum is the posterior p(θ | x, c) in each. The context is packed behind the data in one x, so that the flow is
sbi's, by name, and so is the loop that trains it (`_compat.py`); the learning rate falls along a cosine.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....neural_nets.embedding_nets.context import ContextEmbedding
from ....simulators.sensitivity.contexts import Contexts, LogUniform, UniformRange, prior_of_context
from ....simulators.sensitivity.power_scaled_prior import PowerScaledPrior
from ....utils.checks import as_finite_tensor
from ....utils.packing.contexts import pack_context
from ....utils.seeding import seeded
from ....utils.tracking import NoTracker
from ...posteriors.context_posterior import ContextPosterior, build_context_estimator
from ..epoch_checkpoint import EpochCheckpoint
from ..epoch_run import EpochRun
from ..epoch_settings import EpochSettings
from ..old_checkpoint import check_checkpoint_arguments
from ..shared_split import split_rows

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["ContextNPE"]

_NOT_SETTINGS = {
    "context": "what contexts are drawn from is contexts=",
    "x_dist": "the support of theta is known from prior, leave it out",
    "z_score_x": "data are scaled behind their masks, by embedding_net; leave it out",
}


class ContextNPE:
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
        contexts: What contexts are drawn from; None until simulations show their ranges, if none were given.

    Raises:
        TypeError: If `prior`, `embedding_net` or `contexts` is of another kind, or a setting is none.

    Example:
        >>> from torch.distributions import MultivariateNormal
        >>> from sbi_bed.simulators import simulate_with_context
        >>> prior = PowerScaledPrior(MultivariateNormal(torch.zeros(2), torch.eye(2)))
        >>> simulator = lambda theta: theta + 0.5 * torch.randn_like(theta)
        >>> theta, x, context = simulate_with_context(simulator, prior, 500, seed=0)
        >>> trainer = ContextNPE(prior, show_progress_bars=False).append_simulations(theta, x, context)
        >>> posterior = trainer.train(max_num_epochs=2, seed=0).build_posterior()
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
        if not (hasattr(prior, "condition") or hasattr(prior, "log_prob")):
            raise TypeError(
                f"prior must be a PowerScaledPrior or another prior with condition(context), got {prior!r}."
            )
        if embedding_net is not None and not isinstance(embedding_net, nn.Module):
            raise TypeError(f"embedding_net must be a torch module, got {embedding_net!r}.")
        if contexts is not None and not isinstance(contexts, Contexts):
            raise TypeError(f"contexts must be Contexts(...), which contexts are drawn from, got {contexts!r}.")
        for name in _NOT_SETTINGS.keys() & estimator_settings.keys():
            raise TypeError(f"{name} is no setting of the estimator: {_NOT_SETTINGS[name]}.")
        self.prior, self.contexts, self.embedding_net = prior, contexts, embedding_net
        self.density_estimator, self._estimator_settings = density_estimator, estimator_settings
        self.device, self._tracker, self._show_progress_bars = torch.device(device), tracker, show_progress_bars
        self._simulations: list[tuple[Tensor, Tensor, Tensor]] = []
        self.estimator: Any = None
        self.validation_losses: list[float] = []
        self.held_out_losses: Tensor | None = None

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
        stop_after_epochs: int = 20,
        max_num_epochs: int = 40,
        clip_max_norm: float | None = 5.0,
        seed: int | None = None,
        *,
        final_learning_rate: float = 0.01,
        max_seconds: float | None = None,
        split_seed: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
    ) -> ContextNPE:
        """Train, anew in the first call and on from the present weights in later ones.

        Args:
            training_batch_size: Simulations for each step.
            learning_rate: Of Adam, at first.
            validation_fraction: Share of simulations held out.
            stop_after_epochs: Epochs without a better validation loss after which to stop.
            max_num_epochs: Most epochs; the learning rate falls over them.
            clip_max_norm: Largest norm of gradients; None for no limit.
            seed: Seed; the global generator if None.
            final_learning_rate: Share of the first learning rate that is left at the end.
            max_seconds: Time limit, but for the last look at what is held out; the learning rate falls in this time.
            split_seed: Seed of which simulations are held out, for trainings that share them; drawn like all else if None.
            checkpoint: File that holds the training's state, written every `checkpoint_every` epochs.
            checkpoint_every: Epochs between checkpoints.
            resume: Go on from `checkpoint` where it exists; the result is that of an uninterrupted training.

        Returns:
            The trainer itself.

        Raises:
            ValueError: If an argument is out of range, there are too few simulations, the checkpoint is of another
                training, or the loss becomes NaN.
        """
        settings = EpochSettings.of(locals(), weight_decay=0.0, max_restarts=0)
        check_checkpoint_arguments(checkpoint, checkpoint_every, resume)
        theta, x, context = self._data()
        packed = pack_context(x, context)
        if self._tracker is not None:
            self._tracker.log_params(settings.as_plain_data())
        description = {**settings.as_plain_data(), **self._description(), "num_simulations": len(theta)}
        file = EpochCheckpoint(checkpoint, checkpoint_every, description)
        state = file.read({"rows"}) if resume else None
        with seeded(settings.seed, self.device):
            kept = None if state is None else state["rows"]
            rows, split = split_rows(len(theta), settings.validation_fraction, split_seed, kept, least=10)
            if self.estimator is None:
                self.estimator = self._build(theta[split[0]], packed[split[0]], tuple(x.shape[1:]))
            run = _FlowRun(self.estimator, settings, (theta, packed), split, self.device, time.perf_counter())
            run.train(file, {"rows": rows}, state, self._tracker or NoTracker(), self._show_progress_bars)
            self.validation_losses, self.held_out_losses = list(run.loop.validation_losses), run.held_out_losses()
        return self

    def build_posterior(self) -> ContextPosterior:
        """The posterior in any context, with a copy of the net as it is now, on the CPU.

        Raises:
            ValueError: If nothing was trained.
        """
        if self.estimator is None:
            raise ValueError("there is no net yet: call train() first.")
        estimator, event_shape = copy.deepcopy(self.estimator).cpu(), self._simulations[0][1].shape[1:]
        return ContextPosterior(estimator, self.prior, self._known_contexts(), tuple(event_shape), self._description())

    # ---- pieces of a training

    def _data(self) -> tuple[Tensor, Tensor, Tensor]:
        if not self._simulations:
            raise ValueError("there are no simulations: call append_simulations(theta, x, context) first.")
        if len(self._simulations) > 1:
            self._simulations = [tuple(torch.cat(parts) for parts in zip(*self._simulations, strict=True))]  # pyright: ignore
        return self._simulations[0]

    def _known_contexts(self) -> Contexts:
        """What contexts are drawn from, as given or as seen."""
        if self.contexts is None:
            num_gammas = self.prior.num_gammas if isinstance(self.prior, PowerScaledPrior) else 0
            self.contexts = _seen(self._data()[2], num_gammas)
        return self.contexts

    def _build(self, theta: Tensor, packed: Tensor, event_shape: tuple[int, ...]) -> nn.Module:
        """The net, scaled with these simulations."""
        self._check_prior(theta)
        contexts = self._known_contexts()
        embedding = ContextEmbedding(event_shape, contexts.dim, self.embedding_net, contexts.log_columns)
        embedding.fit_scale(packed[:5000])
        settings = self.density_estimator, self._estimator_settings
        return build_context_estimator(theta[:5000], packed[:100], embedding, *settings, self.prior).to(self.device)

    def _check_prior(self, theta: Tensor) -> None:
        prior = prior_of_context(self.prior, self._data()[2][:2])
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


class _FlowRun(EpochRun):
    """One training of a flow."""

    label = "training posterior in contexts"

    def _losses_of(self, batch: tuple[Tensor, ...]) -> Tensor:
        theta, x = batch
        return self._net.loss(theta, condition=x)  # pyright: ignore[reportCallIssue]


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
