r"""Several readings before the next decision: plates, blocks in a scanner, blood samples that are analysed together.

B readings at designs ξ_1, …, ξ_B, chosen together and independent given θ, are one trial of another experiment,

    design (ξ_1, …, ξ_B) ∈ ℝ^{B·D},   outcome (y_1, …, y_B) ∈ ℝ^{B·O},   log p(y | θ, ξ) = Σ_b log p(y_b | θ, ξ_b),

so that policies, trainers, live runs and posteriors take it as any other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution, constraints

from ..utils.checks import check_count
from .base import DesignSimulator

__all__ = ["BatchedSimulator"]


class BatchedSimulator(DesignSimulator):
    """An experiment in which `batch_size` readings are chosen together; `horizon` then counts batches.

    Args:
        simulator: The experiment of single readings.
        batch_size: Number B of readings before the next decision.

    Attributes:
        simulator: As above.
        batch_size: As above.
        parameter_names: Those of `simulator`, if it has any.

    Raises:
        ValueError: If readings share a hidden state, or the design space depends on the history.

    Example:
        >>> import torch
        >>> from sbi_bed.simulators import Pharmacokinetics
        >>> simulator = BatchedSimulator(Pharmacokinetics(), batch_size=4)
        >>> simulator.design_dim, simulator.outcome_dim, simulator.design_space.names[:2]
        (4, 4, ('time_1', 'time_2'))
        >>> outcome = simulator(simulator.prior.sample(), torch.tensor([1.0, 2.0, 8.0, 20.0]))
        >>> simulator.readings(outcome).shape
        torch.Size([4, 1])
    """

    def __init__(self, simulator: DesignSimulator, batch_size: int):
        if not isinstance(simulator, DesignSimulator):
            raise TypeError(f"simulator must be a DesignSimulator, got {simulator!r}.")
        if simulator.has_state:
            raise ValueError(
                "readings that share a hidden state depend on their order: they cannot be chosen together."
            )
        self.simulator, self.batch_size = simulator, check_count(batch_size, "batch_size")
        has_part = simulator.reparameterized and not simulator.pathwise
        super().__init__(
            simulator.prior,
            self._simulate,
            simulator.design_space.repeated(self.batch_size),
            self._log_prob if simulator.has_likelihood else None,
            (self.batch_size * simulator.outcome_dim,),
            simulator.reparameterized,
            outcome_space=_repeated(simulator.outcome_space, simulator.outcome_dim, self.batch_size),
            log_discrete=self._log_part if has_part else None,
        )
        if hasattr(simulator, "parameter_names"):
            self.parameter_names = simulator.parameter_names  # pyright: ignore[reportAttributeAccessIssue]

    def readings(self, values: Tensor) -> Tensor:
        """Designs (..., B · D) or outcomes (..., B · O), reading by reading, (..., B, D) or (..., B, O).

        Raises:
            ValueError: If they are not of B readings.
        """
        size, left = divmod(values.shape[-1], self.batch_size)
        if left:
            raise ValueError(f"{values.shape[-1]} values are not those of {self.batch_size} readings.")
        return values.unflatten(-1, (self.batch_size, size))

    @property
    def surrogate(self) -> DesignSimulator:
        """What policies plan with: batches of what they plan with for single readings."""
        planned = self.simulator.surrogate
        return self if planned is self.simulator else BatchedSimulator(planned, self.batch_size)

    @property
    def learns_likelihood(self) -> bool:
        """Whether the likelihood of a reading is learned."""
        return self.simulator.learns_likelihood

    @property
    def seconds_per_run(self) -> float:
        """How long one batch takes."""
        return self.batch_size * self.simulator.seconds_per_run

    def prepare_planning(self, max_seconds: float | None = None) -> int:
        """As for single readings; returns a number of batches."""
        return self.simulator.prepare_planning(max_seconds) // self.batch_size

    def improve_likelihood(
        self, theta: Tensor, designs: Tensor, *, seed: int | None = None, max_seconds: float | None = None
    ) -> None:
        """As for single readings, for batches theta (N, P), designs (N, B · D)."""
        rows = theta.unsqueeze(-2).expand(-1, self.batch_size, -1).flatten(0, 1)
        self.simulator.improve_likelihood(
            rows, self.readings(designs).flatten(0, 1), seed=seed, max_seconds=max_seconds
        )

    def with_prior(self, prior: Distribution) -> DesignSimulator:
        """The same experiment under another prior."""
        return BatchedSimulator(self.simulator.with_prior(prior), self.batch_size)

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        return self.simulator(theta.unsqueeze(-2), self.readings(design)).flatten(-2)

    def _log_prob(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        return self.simulator.log_likelihood(theta.unsqueeze(-2), *self._both(design, outcome)).sum(-1)

    def _log_part(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        return self.simulator.log_discrete(theta.unsqueeze(-2), *self._both(design, outcome)).sum(-1)

    def _both(self, design: Tensor, outcome: Tensor) -> tuple[Tensor, Tensor]:
        return self.readings(design), self.readings(outcome)


def _repeated(space: Any, size: int, times: int) -> Any:
    """The space of `times` outcomes (size,) one after the other."""
    base = space
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    bounds = [getattr(base, name, None) for name in ("lower_bound", "upper_bound")]
    is_plain = base.event_dim == 0 and not hasattr(base, "cseq")
    if is_plain and not any(isinstance(bound, Tensor) and bound.ndim for bound in bounds):
        return base
    return constraints.cat([space] * times, dim=-1, lengths=[size] * times)
