r"""The posterior p(θ | x, c) in any context inside the range of training, and as a posterior of sbi in one context.

A flow q(θ | x, c) may put mass outside the support of the prior. The posterior is

    p̂(θ | x, c) = q(θ | x, c) 1[p(θ | c) > 0] / A(x, c),    A(x, c) = Pr_q[p(θ | c) > 0],

with the support of the prior **in this context**. Draws outside are rejected. A is estimated from 10,000 draws.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sbi.inference.posteriors import DirectPosterior
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from sbi.samplers.rejection.rejection import accept_reject_sample
from sbi.utils.sbiutils import within_support
from torch import Tensor, nn
from torch.distributions import Distribution

from ..._compat import forget_leakage
from ...neural_nets.embedding_nets.context import ContextEmbedding
from ...neural_nets.posterior_net import posterior_net
from ...simulators.sbi_prior import SBIPrior
from ...simulators.sensitivity.contexts import Contexts, prior_of_context
from ...simulators.sensitivity.power_scaled_prior import PowerScaledPrior
from ...utils.checks import as_finite_tensor
from ...utils.files import load_file, load_weights, rebuilding, save_file
from ...utils.packing.contexts import pack_context
from ...utils.packing.sizes import watch_sizes
from ...utils.transforms import inside_support

__all__ = ["ContextPosterior", "build_context_estimator"]

_DRAWS_FOR_LEAKAGE = 10_000
_AT_A_TIME = 100_000  # draws of all data sets together
_PARTS = {"model", "model_settings", "event_shape", "theta_dim", "contexts", "embedding", "embedding_config", "weights"}


class ContextPosterior:
    """Posterior over parameters in a context; built by `ContextNPE`.

    A context is a vector (C,); `posterior.contexts.vector(...)` makes one. Contexts outside the range of training are
    refused.

    Args:
        estimator: sbi's conditional density estimator of θ given [x | context].
        prior: `PowerScaledPrior`, an object with `condition(context)`, or a distribution that is the same in all contexts.
        contexts: Distribution of contexts in training.
        event_shape: Shape of one data set.
        description: Plain data from which the estimator can be built again.

    Attributes:
        default_x: Data that are used if none are given, (*event), or None.

    Example:
        >>> from sbi_bed.inference import ContextNPE
        >>> from sbi_bed.simulators import PowerScaledPrior, simulate_with_context
        >>> prior = PowerScaledPrior(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        >>> theta, x, context = simulate_with_context(lambda theta: theta + torch.randn_like(theta), prior, 300, seed=0)
        >>> trainer = ContextNPE(prior, show_progress_bars=False).append_simulations(theta, x, context)
        >>> estimator = trainer.train(max_num_epochs=1, seed=0)
        >>> posterior = trainer.build_posterior()
        >>> posterior.sample((5,), x=x[0], context=[0.7, 1.0]).shape
        torch.Size([5, 2])
        >>> posterior.condition_on([0.7, 1.0]).set_default_x(x[0]).log_prob(torch.zeros(1, 2)).shape  # one of sbi's own
        torch.Size([1])
    """

    def __init__(
        self,
        estimator: ConditionalDensityEstimator,
        prior: Any,
        contexts: Contexts,
        event_shape: Sequence[int],
        description: dict[str, Any],
    ):
        self.estimator, self.prior, self.contexts = estimator.eval(), prior, contexts
        self.event_shape, self._description = tuple(event_shape), description
        self.default_x: Tensor | None = None

    def set_default_x(self, x: Any) -> ContextPosterior:
        """Set the data that are used if none are given; returns the posterior itself."""
        self.default_x = self._one_x(x)
        return self

    def condition_on(self, context: Any) -> DirectPosterior:
        """The posterior in one context as a posterior of sbi, with the prior in that context: MAP, MCMC, SBC, TARP take it.

        Args:
            context: Shape (C,).

        Raises:
            ValueError: If the context is missing, or outside the range of training.
        """
        context = self._contexts_of(context)
        if context.ndim != 1:
            raise ValueError(f"condition_on takes one context (C,), got {tuple(context.shape)}.")
        estimator = _EstimatorInContext(copy.deepcopy(self.estimator), context, self.event_shape)
        posterior = _PosteriorInContext(estimator.eval(), SBIPrior(prior_of_context(self.prior, context)))
        return posterior if self.default_x is None else posterior.set_default_x(self.default_x)  # pyright: ignore

    def sample(
        self, sample_shape: Sequence[int] = (), x: Any = None, context: Any = None, show_progress_bars: bool = False
    ) -> Tensor:
        """Draws (*sample_shape, P) given one data set and one context.

        Args:
            sample_shape: Shape of the draws.
            x: Data (*event) or (1, *event); the default data if None.
            context: Context (C,).
            show_progress_bars: Whether to show progress.

        Raises:
            ValueError: If data or context are missing or of another shape, or the context is outside the range of training.
        """
        x, context = self._one_x(x), self._one_context(context)
        draws = self.sample_batched(sample_shape, x.unsqueeze(0), context, show_progress_bars)
        return draws.squeeze(len(sample_shape))

    @torch.no_grad()
    def sample_batched(
        self, sample_shape: Sequence[int], x: Any, context: Any, show_progress_bars: bool = False
    ) -> Tensor:
        """Draws (*sample_shape, B, P) for data sets (B, *event) in contexts (B, C); one of either serves all of the other.

        Raises:
            ValueError: As for `sample`, or if the numbers of data sets and contexts differ and neither is 1.
        """
        packed, context = self._batch(x, context)
        num = torch.Size(sample_shape).numel()
        settings = {"show_progress_bars": show_progress_bars, "max_sampling_batch_size": self._at_a_time(len(packed))}
        with watch_sizes():
            draws = self._accepted(packed, context, num, **settings)[0]
        return draws.reshape(*sample_shape, *draws.shape[1:])

    def log_prob(self, theta: Any, x: Any = None, context: Any = None, norm_posterior: bool = True) -> Tensor:
        """Log density (N,) of theta (N, P), or (P,), given one data set and one context; −inf outside the prior.

        Args:
            theta: Parameters.
            x: Data (*event) or (1, *event); the default data if None.
            context: Context (C,).
            norm_posterior: Whether to divide by A(x, c).

        Raises:
            ValueError: As for `sample`.
        """
        x, context = self._one_x(x), self._one_context(context)
        theta = as_finite_tensor(theta, "theta").float()
        theta = theta.reshape(-1, 1, theta.shape[-1])
        return self.log_prob_batched(theta, x.unsqueeze(0), context, norm_posterior).squeeze(1)

    @torch.no_grad()
    def log_prob_batched(self, theta: Any, x: Any, context: Any, norm_posterior: bool = True) -> Tensor:
        """Log densities (*sample_shape, B) of theta (*sample_shape, B, P), for data and contexts as for `sample_batched`.

        Raises:
            ValueError: As for `sample_batched`.
        """
        packed, context = self._batch(x, context)
        theta = as_finite_tensor(theta, "theta").float()
        sample_shape = theta.shape[:-2]
        theta = theta.reshape(-1, *theta.shape[-2:])
        settings = {"sample_for_correction_factor": True, "max_sampling_batch_size": self._at_a_time(len(packed))}
        with watch_sizes():
            value = self.estimator.log_prob(theta, condition=packed)
            value = torch.where(self._within_support(theta, context), value, -torch.inf)
            if norm_posterior:
                share = self._accepted(packed, context, _DRAWS_FOR_LEAKAGE, **settings)[1]
                value = value - share.to(value).log()
        return value.reshape(*sample_shape, len(packed))

    def save(self, path: str | Path) -> None:
        """Save weights and description in one file, for `load`; the prior is not in it."""
        weights = {name: value.cpu() for name, value in self.estimator.state_dict().items()}
        contexts = {"contexts": self.contexts.description(), "event_shape": list(self.event_shape)}
        save_file(path, "context_posterior", {**self._description, **contexts, "weights": weights})

    @classmethod
    def load(cls, path: str | Path, prior: Any, embedding_net: nn.Module | None = None) -> ContextPosterior:
        """Load a posterior that `save` wrote.

        Args:
            path: The file.
            prior: The prior that the net was trained with.
            embedding_net: A net like the saved one; its weights are replaced. Needed if the net cannot be rebuilt from
                plain data.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated or of another kind, or `embedding_net` is needed or of another kind.
        """
        content = load_file(path, "context_posterior")
        if not content.keys() >= _PARTS:
            raise ValueError(f"{path} lacks parts of a context posterior.")
        with rebuilding(path):
            weights = content.pop("weights")
            contexts, event_shape = Contexts.from_description(content["contexts"]), tuple(content["event_shape"])
            net = _restore_net(content["embedding"], content["embedding_config"], embedding_net)
            embedding = ContextEmbedding(event_shape, contexts.dim, net, contexts.log_columns)
            theta = torch.randn(4, content["theta_dim"])
            x = pack_context(torch.ones(4, *event_shape), contexts.sample((4,)))  # masks are 1
            estimator = build_context_estimator(theta, x, embedding, content["model"], content["model_settings"], prior)
            load_weights(estimator, weights, embedding_net)
            return cls(estimator, prior, contexts, event_shape, content)

    # ---- checks and rejection

    def _one_x(self, x: Any) -> Tensor:
        if x is None and self.default_x is None:
            raise ValueError("x must be given, or set with set_default_x.")
        x = self.default_x if x is None else as_finite_tensor(x, "x").float()
        if tuple(x.shape) == (1, *self.event_shape):
            x = x.squeeze(0)
        if tuple(x.shape) != self.event_shape:
            raise ValueError(
                f"x must be one data set of shape {self.event_shape}, got {tuple(x.shape)}; for several, use sample_batched "
                "and log_prob_batched."
            )
        return x

    def _contexts_of(self, context: Any) -> Tensor:
        if context is None:
            raise ValueError(f"context must be given, with the values {self.contexts.columns}.")
        return self.contexts.check_inside(context)

    def _one_context(self, context: Any) -> Tensor:
        context = self._contexts_of(context)
        if context.shape[:-1] not in ((), (1,)):
            raise ValueError(f"context must be one, (C,), got {tuple(context.shape)}; for several use sample_batched.")
        return context.reshape(-1)

    def _batch(self, x: Any, context: Any) -> tuple[Tensor, Tensor]:
        """Packed (B, E + C) and contexts (B, C)."""
        x, context = as_finite_tensor(x, "x").float(), self._contexts_of(context)
        context = context.unsqueeze(0) if context.ndim == 1 else context
        if tuple(x.shape[1:]) != self.event_shape or context.ndim != 2:
            raise ValueError(
                f"x must be (B, {', '.join(map(str, self.event_shape))}) and context (B, C) or (C,), "
                f"got {tuple(x.shape)} and {tuple(context.shape)}."
            )
        x = x.expand(len(context), *self.event_shape) if len(x) == 1 else x
        context = context.expand(len(x), -1) if len(context) == 1 else context
        return pack_context(x, context), context

    def _accepted(self, packed: Tensor, context: Tensor, num: int, **settings: Any) -> tuple[Tensor, Tensor]:
        """Draws (num, B, P) inside the support of the prior in each context, and the share (B,) of draws inside."""
        return accept_reject_sample(
            self.estimator.sample,
            lambda theta: self._within_support(theta, context),
            num,
            proposal_sampling_kwargs={"condition": packed},
            **settings,
        )

    def _within_support(self, theta: Tensor, context: Tensor) -> Tensor:
        """Whether theta (n, B, P) is inside the support of the prior in each context (B, C), (n, B)."""
        prior = prior_of_context(self.prior, context)
        if not prior.batch_shape:
            return inside_support(prior, theta.flatten(0, -2)).reshape(theta.shape[:-1])
        return within_support(prior, theta)

    @staticmethod
    def _at_a_time(num: int) -> int:
        return max(1, _AT_A_TIME // num)


class _EstimatorInContext(ConditionalDensityEstimator):
    """q(θ | x, c) as a function of θ and x alone."""

    context: Tensor

    def __init__(self, estimator: ConditionalDensityEstimator, context: Tensor, event_shape: tuple[int, ...]):
        super().__init__(estimator, estimator.input_shape, torch.Size(event_shape))
        self.register_buffer("context", context)

    @property
    def embedding_net(self) -> nn.Module:
        """Net of data and context."""
        return self.net.embedding_net  # pyright: ignore

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        return self.net.log_prob(input, condition=self._pack(condition), **kwargs)  # pyright: ignore

    def sample(self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any) -> Tensor:
        return self.net.sample(sample_shape, condition=self._pack(condition), **kwargs)  # pyright: ignore

    def sample_and_log_prob(self, sample_shape: torch.Size, condition: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.net.sample_and_log_prob(sample_shape, condition=self._pack(condition), **kwargs)  # pyright: ignore

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        return self.net.loss(input, condition=self._pack(condition), **kwargs)  # pyright: ignore

    def _pack(self, condition: Tensor) -> Tensor:
        flat = condition.flatten(condition.ndim - len(self.condition_shape))
        return torch.cat([flat, self.context.to(flat).expand(*flat.shape[:-1], -1)], -1)


class _PosteriorInContext(DirectPosterior):
    """sbi's posterior, with a leakage correction that is computed anew for other data, and one warning of their sizes."""

    def set_default_x(self, x: Tensor) -> _PosteriorInContext:
        """As in sbi; the leakage correction for the data before is forgotten."""
        forget_leakage(self)
        return super().set_default_x(x)  # pyright: ignore

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in sbi."""
        with watch_sizes():
            return super().sample(*args, **kwargs)

    def sample_batched(
        self, sample_shape: Sequence[int], x: Tensor, max_sampling_batch_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """As in sbi, whose default batch size is chosen such that it has nothing to say about it."""
        at_a_time = max_sampling_batch_size or min(10_000, max(1, _AT_A_TIME // len(x)))
        with watch_sizes():
            return super().sample_batched(sample_shape, x, max_sampling_batch_size=at_a_time, **kwargs)  # pyright: ignore

    def log_prob(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in sbi."""
        with watch_sizes():
            return super().log_prob(*args, **kwargs)

    def log_prob_batched(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in sbi."""
        with watch_sizes():
            return super().log_prob_batched(*args, **kwargs)


def build_context_estimator(
    theta: Tensor, x: Tensor, embedding: ContextEmbedding, model: str, settings: dict[str, Any], prior: Any
) -> ConditionalDensityEstimator:
    """sbi's estimator of theta (N, P) given packed x (N, E + C).

    Args:
        theta: Parameters; they set the scale of the estimator.
        x: Data with contexts.
        embedding: Embedding net of x.
        model: One of sbi's names, such as "maf".
        settings: Keywords of `posterior_nn`.
        prior: As for `ContextPosterior`; its support gives unconstrained coordinates of theta if `settings` ask for them.

    Raises:
        ValueError: If sbi has no such model, or unconstrained coordinates are asked for and the support is not fixed.
    """
    from sbi.neural_nets import posterior_nn

    fixed = prior.prior if isinstance(prior, PowerScaledPrior) else prior
    if settings.get("z_score_theta") == "transform_to_unconstrained":
        if not isinstance(fixed, Distribution):
            raise ValueError(
                'z_score_theta="transform_to_unconstrained" needs a support that is the same in all contexts: a '
                f"PowerScaledPrior or a distribution, got {prior!r}."
            )
        settings = {**settings, "x_dist": fixed}
    try:
        if isinstance(fixed, Distribution):
            return posterior_net(fixed, model, embedding, **settings)(theta, x)
        build: Any = posterior_nn(model=model, embedding_net=embedding, z_score_x="none", **settings)  # pyright: ignore
        return build(theta, x)
    except NotImplementedError as err:
        raise ValueError(f"density_estimator must be one that sbi's posterior_nn knows, got {model!r}.") from err


def _restore_net(name: str | None, config: dict[str, Any] | None, given: nn.Module | None) -> nn.Module | None:
    import sbi_bed.neural_nets as room

    if given is not None:
        return copy.deepcopy(given)
    if name is None:
        return None
    if config is None or name not in room.__all__:
        raise ValueError(f"the saved {name} cannot be rebuilt from plain data: give embedding_net=, one like it.")
    return getattr(room, name)(**config)
