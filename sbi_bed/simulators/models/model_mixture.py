r"""Several models of one experiment as one simulator, the model itself being a parameter.

With J models of the same designs and outcomes, theta = (j, θ) holds the index of a model and that model's parameters:

    p(j, θ) = p(M_j) p(θ | M_j),    p(y | (j, θ), ξ) = p(y | θ, ξ, M_j).

Parameters are padded with zeros to those of the model that has most. A model whose row it is not computes something all
the same; it is given parameters of its own prior instead, so that values and gradients stay finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ...utils.seeding import seeded
from ..base import DesignSimulator, prior_log_prob
from ..design_space import DesignSpace
from .model_family import as_log_prior

__all__ = ["ModelMixture"]


class ModelMixture(DesignSimulator):
    """An experiment of which it is not known which of several models holds.

    Theta is (1 + P,): the index j of the model as a number, and its parameters, padded with zeros to P, the largest number
    of parameters of a model. Designs and outcomes are those of the models. The prior's support is discrete: posteriors by
    importance sampling are right; whatever proposes theta from a density or by gradients (MCMC, proposals near the truth
    or the posterior) is not for it.

    Args:
        simulators: The models, which share design space and outcome space.
        model_prior: Positive weights (J,) of the models; equal ones if None.

    Attributes:
        log_model_prior: Logs of the prior probabilities of the models, (J,).

    Raises:
        ValueError: If there are no models, they differ in design space or outcome space, have hidden states, or the prior
            is not over them.
        TypeError: If a model is no `DesignSimulator`.

    Example:
        >>> from sbi_bed.simulators import ExponentialDiscounting, HyperbolicDiscounting
        >>> mixture = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()], model_prior=[0.7, 0.3])
        >>> theta = mixture.prior.sample((4,))
        >>> theta.shape, mixture(theta, torch.tensor([50.0, 30.0])).shape
        (torch.Size([4, 3]), torch.Size([4, 1]))
    """

    def __init__(self, simulators: Sequence[DesignSimulator], model_prior: Any = None):
        self.simulators = list(simulators)
        _check_alike(self.simulators)
        self.log_model_prior = as_log_prior(model_prior, len(self.simulators))
        first, pathwise = self.simulators[0], all(simulator.pathwise for simulator in self.simulators)
        with seeded(0):
            self._typical = [simulator.prior.sample() for simulator in self.simulators]
        reparameterized = all(simulator.reparameterized for simulator in self.simulators)
        super().__init__(
            prior=_MixturePrior([simulator.prior for simulator in self.simulators], self.log_model_prior),
            simulate=self._simulate,
            design_space=first.design_space,
            log_likelihood=self._log_prob if all(s.has_likelihood for s in self.simulators) else None,
            outcome_shape=first.outcome_shape,
            reparameterized=reparameterized,
            outcome_space=first.outcome_space,
            log_discrete=None if pathwise or not reparameterized else self._log_part,
        )

    @staticmethod
    def model_index(theta: Tensor) -> Tensor:
        """Index of the model, whole numbers (...), of theta (..., 1 + P)."""
        return theta[..., 0].round().long()

    def parameters(self, theta: Tensor, model_index: int) -> Tensor:
        """Parameters (..., P_j) of one model in theta (..., 1 + P); typical ones where theta is of another model."""
        typical = self._typical[model_index].to(theta)
        own = theta[..., 1 : 1 + len(typical)]
        return torch.where((self.model_index(theta) == model_index).unsqueeze(-1), own, typical)

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        outcomes = [s(self.parameters(theta, j), design) for j, s in enumerate(self.simulators)]
        return self._pick(theta, torch.stack(torch.broadcast_tensors(*outcomes)), trailing=1)

    def _log_prob(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        return self._of_each(theta, [s.log_likelihood for s in self.simulators], design, outcome)

    def _log_part(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        def none(theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
            return theta.new_zeros(torch.broadcast_shapes(*(value.shape[:-1] for value in (theta, design, outcome))))

        parts = [none if simulator.pathwise else simulator.log_discrete for simulator in self.simulators]
        return self._of_each(theta, parts, design, outcome)

    def _of_each(
        self, theta: Tensor, functions: Sequence[Callable[[Tensor, Tensor, Tensor], Tensor]], *given: Tensor
    ) -> Tensor:
        values = [function(self.parameters(theta, j), *given) for j, function in enumerate(functions)]
        return self._pick(theta, torch.stack(values), trailing=0)

    def _pick(self, theta: Tensor, values: Tensor, trailing: int) -> Tensor:
        """From values (J, ..., *trailing) those of each row's model."""
        index = self.model_index(theta)[(..., *[None] * trailing)]
        picked = values[0]
        for j in range(1, len(values)):
            picked = torch.where(index == j, values[j], picked)
        return picked


class _IndexAndParameters(constraints.Constraint):
    """(j, θ): j a whole number below J, zeros after the P_j parameters of model j. Discrete: nothing moves j smoothly."""

    is_discrete, event_dim = True, 1  # pyright: ignore[reportAssignmentType]

    def __init__(self, dims: list[int]):
        self._dims = dims
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        of_each = [(value[..., 0] == j) & (value[..., 1 + d :] == 0).all(-1) for j, d in enumerate(self._dims)]
        return torch.stack(of_each).any(0)


class _MixturePrior(Distribution):
    """(j, θ) with j ~ Categorical and θ of model j, padded with zeros."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012

    def __init__(self, priors: list[Any], log_model_prior: Tensor):
        with seeded(0):
            self._dims = [prior.sample().shape[-1] for prior in priors]
        self.log_model_prior = log_model_prior.float()
        for j, prior in enumerate(priors):  # as attributes, so that moving a distribution to a device finds them
            setattr(self, f"prior_{j}", prior)
        super().__init__(event_shape=torch.Size([1 + max(self._dims)]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return _IndexAndParameters(self._dims)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        index = (
            torch.multinomial(self.log_model_prior.exp(), shape.numel(), replacement=True) if shape.numel() else None
        )
        if index is None:
            return self.log_model_prior.new_zeros(*shape, *self.event_shape)
        theta = self.log_model_prior.new_zeros(len(index), *self.event_shape)
        theta[:, 0] = index.to(theta)
        for j, dim in enumerate(self._dims):
            rows = index == j
            theta[rows, 1 : 1 + dim] = getattr(self, f"prior_{j}").sample((int(rows.sum()),)).to(theta)
        return theta.reshape(*shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        rows = value.reshape(-1, value.shape[-1])
        total = torch.full_like(rows[:, 0], -torch.inf)
        for j, dim in enumerate(self._dims):
            of_model = (rows[:, 0] == j) & (rows[:, 1 + dim :] == 0).all(-1)
            if of_model.any():
                density = prior_log_prob(getattr(self, f"prior_{j}"), rows[of_model, 1 : 1 + dim])
                total = total.masked_scatter(of_model, self.log_model_prior[j].to(density) + density)
        return total.reshape(value.shape[:-1])


def _check_alike(simulators: list[Any]) -> None:
    if not simulators:
        raise ValueError("a mixture needs models, got none.")
    for j, simulator in enumerate(simulators):
        if not isinstance(simulator, DesignSimulator):
            raise TypeError(f"simulators[{j}] must be a DesignSimulator, got {type(simulator).__name__}.")
        if simulator.has_state:
            raise ValueError(f"simulators[{j}] has a hidden state, which models of a mixture cannot have.")
        first = simulators[0]
        if not _same_space(simulator.design_space, first.design_space):
            raise ValueError(
                f"models must share one design space: simulators[{j}] has {simulator.design_space}, simulators[0] "
                f"{first.design_space}."
            )
        mine, theirs = ((s.outcome_shape, str(s.outcome_space)) for s in (simulator, first))
        if mine != theirs:
            raise ValueError(
                f"models must share one outcome space: simulators[{j}] has outcomes {mine}, simulators[0] {theirs}."
            )


def _same_space(space: DesignSpace, other: DesignSpace) -> bool:
    """Whether two design spaces have the same names, candidates and map from free coordinates, tried at a few points."""
    if space is other:
        return True
    if space.names != other.names or space.free_dim != other.free_dim or space.depends_on_history:
        return False
    if space.candidates is not None or other.candidates is not None:
        mine, theirs = space.candidates, other.candidates
        return mine is not None and theirs is not None and torch.equal(mine, theirs)
    points = torch.linspace(-2, 2, 5).unsqueeze(-1).expand(-1, space.free_dim)
    return not other.depends_on_history and torch.equal(space.from_free(points), other.from_free(points))
