r"""Simulators with a design, x ~ p(x | θ, ξ), composed from plain callables.

sbi's simulator is a callable θ → x. An experiment has one more input, the design ξ. A `DesignSimulator` joins the prior
p(θ), the simulator (θ, ξ) → y, the space of designs and, where there is one, the log-likelihood log p(y | θ, ξ).

Where trials of one run share something unseen (the path of an epidemic, a learner's memory), the run has a hidden state,
s_0 ~ p(s | θ) and (y_t, s_t) ~ p(y, s | θ, ξ_t, s_{t−1}). Outcomes are then not independent given θ, so that no
likelihood of single trials exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

from ..utils.checks import as_finite_tensor, check_count
from ..utils.seeding import seeded
from ..utils.transforms import inside_support
from .design_space import DesignSpace, as_design_space

__all__ = ["DesignSimulator", "parameter_indices", "prior_log_prob"]

_NUM_CHECKED = 7  # draws of a prior that are looked at


class DesignSimulator:
    """A simulator whose outcome depends on parameters and a chosen design.

    Leading dimensions of theta (..., P), design (..., D) and outcome (..., O) broadcast against each other in every call.

    Args:
        prior: Distribution of theta, event shape (P,), as sbi takes it, or any object with `sample` and `log_prob`. It
            may be discrete in part, on a simplex, or a mixture. Its dtype is that of theta, and
            `simulate` and `log_likelihood` get designs in at least that; nets compute in that of their parameters.
        simulate: Callable (theta, design) -> outcome (..., O), random; with a hidden state (theta, design, state) ->
            (outcome, state).
        design_space: A torch constraint, candidates of shape (N, D), or a `DesignSpace`.
        log_likelihood: Callable (theta, design, outcome) -> (...), the log density or log probability; or None.
        outcome_shape: Shape of one outcome, (O,).
        reparameterized: Whether an outcome is a differentiable function of theta and design given the random numbers.
        outcome_space: Constraint on outcomes; nets read outcomes through the inverse of its bijection (so a positive
            outcome is read in logs).
        log_discrete: For outcomes that are discrete in part (a censored slider: at an end, or between), the callable
            (theta, design, outcome) -> (...) with the log-probability of that part; `reparameterized` then speaks of
            the rest, given that part.
        initial_state: For trials that share a hidden state, the callable theta (..., P) -> state (..., S), random, from
            which a run starts.

    Attributes:
        theta_dim: Number P of parameters.
        dtype: Precision of theta, the prior's.
        design_dim: Number D of design values.
        outcome_dim: Number O of values of an outcome.

    Raises:
        ValueError: If the prior is not over vectors, or has no density at its own draws, the outcome is not a vector, or
            there are both a hidden state and a likelihood.
        TypeError: If `prior` is not a distribution, or `simulate`, `log_likelihood` or `initial_state` cannot be called.

    Example:
        >>> prior = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> simulator = DesignSimulator(
        ...     prior,
        ...     lambda theta, design: theta * design + torch.randn_like(theta * design),
        ...     constraints.interval(torch.zeros(1), torch.ones(1)),
        ... )
        >>> simulator(prior.sample((5,)), torch.tensor([0.3])).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        prior: Distribution,
        simulate: Callable[..., Any],
        design_space: Any,
        log_likelihood: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        outcome_shape: tuple[int, ...] = (1,),
        reparameterized: bool = False,
        *,
        outcome_space: constraints.Constraint = constraints.real,
        log_discrete: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        initial_state: Callable[[Tensor], Tensor] | None = None,
    ):
        _check_callables(simulate, log_likelihood, log_discrete, initial_state)
        if not hasattr(prior, "sample") or not hasattr(prior, "log_prob"):
            raise TypeError(f"prior must be a distribution with sample and log_prob, got {prior!r}.")
        theta = _check_draws(prior)
        if len(outcome_shape) != 1:
            raise ValueError(f"outcome_shape must be (O,), got {tuple(outcome_shape)}; flatten the outcome.")
        self.prior = prior
        self.simulate = simulate
        self.design_space: DesignSpace = as_design_space(design_space)
        self.outcome_shape = tuple(outcome_shape)
        self.outcome_space = outcome_space
        self.reparameterized = reparameterized
        self.theta_dim, self.dtype = theta.shape[0], theta.dtype
        self.design_dim = self.design_space.dim
        self.outcome_dim = check_count(outcome_shape[0], "outcome_shape[0]")
        self._log_likelihood = log_likelihood
        self._log_discrete = log_discrete
        self._initial_state = initial_state

    @property
    def has_likelihood(self) -> bool:
        """Whether a log-likelihood was given."""
        return self._log_likelihood is not None

    @property
    def discrete(self) -> bool:
        """Whether outcomes are discrete."""
        return bool(getattr(self.outcome_space, "is_discrete", False))

    @property
    def has_state(self) -> bool:
        """Whether the trials of a run share a hidden state."""
        return self._initial_state is not None

    def check_gradients(self) -> None:
        """Look whether outcomes that are said to be reparameterised carry gradients to designs.

        Raises:
            ValueError: If they depend on the design, but without a gradient.
        """
        with seeded(0), torch.enable_grad():
            theta, others = self.prior.sample((32,)), self.design_space.sample((32,))
            design = self.design_space.sample((32,)).requires_grad_()
            with seeded(1):
                outcome = self(theta, design)
            with seeded(1):
                depends = not torch.equal(outcome.detach(), self(theta, others).detach())
            found = torch.autograd.grad(outcome.sum(), design, allow_unused=True)[0] if outcome.requires_grad else None
        if depends and (found is None or not found.any()):
            raise ValueError(
                "the simulator says reparameterized=True, but its outcomes carry no gradient to the design: look for "
                ".detach(), numpy or rounding in simulate, or leave reparameterized= out."
            )

    def simulate_alike(self, theta: Tensor, designs: Tensor, *, seed: int) -> Tensor:
        """Outcomes (..., J, N, O) of theta (..., N, P) at each of designs (..., J, D), all by the same random numbers.

        Differences between designs are then not lost in noise. The caller's generator is reseeded: call it inside `seeded`.
        """
        outcomes = []
        for design in designs.unbind(-2):
            torch.manual_seed(seed)
            outcomes.append(self(theta, design.unsqueeze(-2)))
        return torch.stack(outcomes, -3)

    @property
    def surrogate(self) -> DesignSimulator:
        """What policies plan with: itself; the learned likelihood of a simulator that `process_design_simulator` made."""
        return self

    @property
    def learns_likelihood(self) -> bool:
        """Whether its likelihood is learned from simulations: it takes longer, and gives lower bounds alone."""
        return False

    @property
    def seconds_per_run(self) -> float:
        """How long one run takes, where it is known: what many runs cost may decide what they are used for."""
        return 0.0

    def prepare_planning(self, max_seconds: float | None = None) -> int:
        """Learn what policies plan with, if it is not there yet, in a share of a time limit of training and all.

        Returns:
            Number of trials at the designs of a policy that would improve what was learned; 0 if nothing was.
        """
        return 0

    def learned_state(self) -> dict[str, Any] | None:
        """What was learned for planning, as tensors and plain data for a file; None where nothing was."""
        return None

    def restore_learned(self, state: dict[str, Any]) -> None:
        """Take up what `learned_state` gave.

        Raises:
            ValueError: If it is of another experiment.
        """
        raise ValueError("it holds what another kind of simulator learned.")

    def improve_likelihood(
        self, theta: Tensor, designs: Tensor, *, seed: int | None = None, max_seconds: float | None = None
    ) -> None:
        """Simulate trials where a policy goes, and learn from these, too, if the likelihood is learned.

        Args:
            theta: Parameters (N, P).
            designs: Designs (N, D).
            seed: Seed; the global generator if None.
            max_seconds: Time limit of training and all, of which this takes a share; that of the simulator if None.
        """

    def pilot(self, num: int) -> tuple[Tensor, Tensor]:
        """Designs (num, D) and outcomes (num, O) of random trials, the same at each call, which show a net their scale."""
        with seeded(0), torch.no_grad():
            design = self.design_space.sample((num,))
            return design, self(self.prior.sample((num,)), design)

    def __call__(self, theta: Tensor, design: Tensor) -> Tensor:
        """Simulate outcomes (..., O) of single trials for theta (..., P) and design (..., D), each from a fresh state.

        Raises:
            ValueError: If the last dimensions are not P and D, or the simulator returns another shape.
        """
        if self._initial_state is None:
            return self.step(theta, design)[0]
        theta, design, batch_shape = self._check(theta, design)
        theta = theta.expand(*batch_shape, -1)  # designs of one theta do not share a state either
        return self.step(theta, design, self.start(theta))[0]

    def start(self, theta: Tensor) -> Tensor | None:
        """Hidden state (..., S) before the first trial of a run for each theta (..., P); None where there is none.

        Raises:
            ValueError: If theta or the state has another shape.
        """
        if self._initial_state is None:
            return None
        theta = self._check_theta(theta)
        state = self._initial_state(theta)
        if not isinstance(state, Tensor):
            raise TypeError(f"initial_state must return a tensor, got {type(state).__name__}.")
        if state.ndim == 0 or state.shape[:-1] != theta.shape[:-1]:
            raise ValueError(
                f"initial_state returned shape {tuple(state.shape)} for theta {tuple(theta.shape)}; expected "
                f"{(*theta.shape[:-1], 'S')}."
            )
        return state

    def step(self, theta: Tensor, design: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One trial of a run: outcome (..., O), and the hidden state after it.

        Args:
            theta: Parameters (..., P).
            design: Design (..., D).
            state: Hidden state (..., S) before the trial, from `start` or the trial before; None where there is none.

        Raises:
            ValueError: If the last dimensions are not P and D, a state is missing or not wanted, or the simulator
                returns another shape.
        """
        theta, design, batch_shape = self._check(theta, design)
        if self._initial_state is None:
            if state is not None:
                raise ValueError("this simulator has no hidden state, but one was given.")
            outcome = self.simulate(theta, design)
        else:
            if state is None:
                raise ValueError(
                    "this simulator has a hidden state: give the one that start(theta) or the trial before returned."
                )
            _broadcast(batch_shape, state.shape[:-1], "theta and design", "state")
            returned = self.simulate(theta, design, state)
            if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], Tensor)):
                raise TypeError("the simulator has a hidden state: it must return a pair of tensors (outcome, state).")
            outcome, state = returned
        if not isinstance(outcome, Tensor):
            raise TypeError(f"the simulator must return a tensor, got {type(outcome).__name__}.")
        if outcome.shape != (*batch_shape, *self.outcome_shape):
            raise ValueError(
                f"the simulator returned shape {tuple(outcome.shape)} for theta {tuple(theta.shape)} and design "
                f"{tuple(design.shape)}; expected {(*batch_shape, *self.outcome_shape)}."
            )
        return outcome, state

    def log_likelihood(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        """Log-likelihood (...) of outcomes (..., O) under theta (..., P) and design (..., D).

        Raises:
            ValueError: If there is no likelihood, or shapes disagree.
        """
        if self._log_likelihood is None:
            raise ValueError("this simulator has no likelihood; give log_likelihood= when it is built.")
        theta, design, batch_shape = self._check(theta, design)
        outcome = _numbers(outcome, "outcome")
        if outcome.shape[-1:] != self.outcome_shape:
            raise ValueError(f"outcome must have shape (..., {self.outcome_dim}), got {tuple(outcome.shape)}.")
        batch_shape = _broadcast(batch_shape, outcome.shape[:-1], "theta and design", "outcome")
        value = self._log_likelihood(theta, design, outcome)
        if not isinstance(value, Tensor):
            raise TypeError(f"log_likelihood must return a tensor, got {type(value).__name__}.")
        if value.shape != batch_shape:
            raise ValueError(
                f"log_likelihood returned shape {tuple(value.shape)} for leading dimensions {tuple(batch_shape)}; it must "
                "return one value for each, the sum over the values of an outcome."
            )
        return value

    @property
    def pathwise(self) -> bool:
        """Whether pathwise gradients alone are right: outcomes reparameterised, no part of them discrete."""
        return self.reparameterized and self._log_discrete is None

    def log_discrete(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        """Log-probability (...) of what is discrete in an outcome: all of it unless outcomes are reparameterised."""
        if self._log_discrete is None or not self.reparameterized:
            return self.log_likelihood(theta, design, outcome)
        return self._log_discrete(theta, design, outcome)

    def check_outcome(self, outcome: Any) -> Tensor:
        """Return `outcome` as a tensor (..., O), finite and inside the outcome space; a `ValueError` otherwise."""
        outcome = as_finite_tensor(outcome, "outcome", last_dim=self.outcome_dim)
        if not self.outcome_space.check(outcome).all():
            raise ValueError(f"outcome {outcome.tolist()} lies outside the outcome space ({self.outcome_space}).")
        return outcome

    def standardize_outcome(self, outcome: Tensor) -> Tensor:
        """Outcomes (..., O) in unconstrained coordinates, as nets read them (not yet centred or scaled)."""
        return free_outcome(self.outcome_space, outcome)

    def with_prior(self, prior: Distribution) -> DesignSimulator:
        """The same experiment under another prior."""
        return DesignSimulator(
            prior,
            self.simulate,
            self.design_space,
            self._log_likelihood,
            self.outcome_shape,
            self.reparameterized,
            outcome_space=self.outcome_space,
            log_discrete=self._log_discrete,
            initial_state=self._initial_state,
        )

    def _check_theta(self, theta: Any) -> Tensor:
        theta = _numbers(theta, "theta")
        if theta.shape[-1:] != (self.theta_dim,):
            raise ValueError(f"theta must have shape (..., {self.theta_dim}), got {tuple(theta.shape)}.")
        return theta

    def _check(self, theta: Any, design: Any) -> tuple[Tensor, Tensor, torch.Size]:
        """Theta, designs in its precision or in their own if that is higher, and the leading dimensions of both."""
        theta, design = self._check_theta(theta), _numbers(design, "design")
        if design.shape[-1:] != (self.design_dim,):
            raise ValueError(f"design must have shape (..., {self.design_dim}), got {tuple(design.shape)}.")
        batch_shape = _broadcast(theta.shape[:-1], design.shape[:-1], "theta", "design")
        return theta, design.to(torch.promote_types(design.dtype, theta.dtype)), batch_shape


def _check_callables(simulate: Any, log_likelihood: Any, log_discrete: Any, initial_state: Any) -> None:
    """Refuse what cannot be called, and a likelihood of single trials beside a hidden state."""
    if not callable(simulate):
        raise TypeError(f"simulate must be a callable (theta, design) -> outcome, got {simulate!r}.")
    if log_likelihood is not None and not callable(log_likelihood):
        raise TypeError("log_likelihood must be a callable (theta, design, outcome) -> log density, or None.")
    if initial_state is not None and not callable(initial_state):
        raise TypeError(f"initial_state must be a callable theta -> state, or None, got {initial_state!r}.")
    if initial_state is not None and not (log_likelihood is None and log_discrete is None):
        raise ValueError(
            "trials that share a hidden state are not independent given theta: a simulator with initial_state= has "
            "no log_likelihood and no log_discrete of single trials."
        )


def _numbers(value: Any, name: str) -> Tensor:
    """Numbers of a list or an array as a finite tensor. A tensor stays as it is: training does not wait for a look at it."""
    return value if isinstance(value, Tensor) else as_finite_tensor(value, name)


def _check_draws(prior: Any) -> Tensor:
    """A draw (P,) of the prior; an error if its draws are not vectors, or have no density."""
    with seeded(0):  # building a simulator leaves the caller's random numbers as they are
        theta, several = prior.sample(), prior.sample((_NUM_CHECKED,))
    if not (isinstance(theta, Tensor) and isinstance(several, Tensor)):
        raise TypeError(f"prior.sample() must return a tensor, got {type(theta).__name__}.")
    if theta.ndim != 1 or len(theta) == 0:
        raise ValueError(f"the prior must be over vectors, event shape (P,); a sample has shape {tuple(theta.shape)}.")
    if isinstance(prior, Distribution) and len(prior.event_shape) != 1:
        raise ValueError(
            f"the prior must be one distribution over vectors, got a batch of {tuple(prior.batch_shape)}; wrap it in "
            "torch.distributions.Independent(prior, 1)."
        )
    if several.shape != (_NUM_CHECKED, len(theta)):
        raise ValueError(
            f"prior.sample(({_NUM_CHECKED},)) must have shape {(_NUM_CHECKED, len(theta))}, got {tuple(several.shape)}."
        )
    if not theta.is_floating_point():
        raise TypeError(
            f"the prior's draws must be floating-point numbers, got {theta.dtype}; join whole numbers with another "
            "distribution by sbi's MultipleIndependent, or give an object whose sample returns them as floats."
        )
    try:
        log_prob = prior.log_prob(several)
    except (ValueError, RuntimeError) as err:
        raise ValueError(f"prior.log_prob fails at the prior's own draws: {err}") from err
    if not isinstance(log_prob, Tensor) or log_prob.shape not in ((_NUM_CHECKED,), (_NUM_CHECKED, 1)):
        raise ValueError(
            f"prior.log_prob must return one value for each theta, ({_NUM_CHECKED},), got "
            f"{tuple(getattr(log_prob, 'shape', ())) or log_prob!r}; wrap it in torch.distributions.Independent(prior, 1)."
        )
    if not torch.isfinite(log_prob).all():
        raise ValueError("prior.log_prob is not finite at the prior's own draws: sample and log_prob do not agree.")
    return theta


def parameter_indices(simulator: Any, of: Sequence[int | str]) -> list[int]:
    """Indices in theta of some parameters, given as such or by name.

    Raises:
        ValueError: If there are none, one comes twice, an index is out of range, or a name not of this simulator.
    """
    names, indices = tuple(getattr(simulator, "parameter_names", ())), []
    for one in [of] if isinstance(of, str) else of:
        if isinstance(one, str) and one not in names:
            known = f"its parameters are {names}" if names else "it names none: give indices of theta"
            raise ValueError(f"the simulator has no parameter {one!r}: {known}.")
        indices.append(names.index(one) if isinstance(one, str) else check_count(one, "an index of theta", 0))
    if not indices or len(set(indices)) < len(indices) or max(indices) >= simulator.theta_dim:
        raise ValueError(f"parameters must be one or more, each once, of the {simulator.theta_dim} of theta, got {of}.")
    return indices


def _broadcast(shape: torch.Size, other: torch.Size, name: str, other_name: str) -> torch.Size:
    try:
        return torch.broadcast_shapes(shape, other)
    except RuntimeError as err:
        raise ValueError(
            f"leading dimensions of {name} {tuple(shape)} and {other_name} {tuple(other)} do not broadcast."
        ) from err


def free_outcome(space: Any, outcome: Tensor) -> Tensor:
    """Outcomes (..., O) in unconstrained coordinates; discrete ones as they are, or as `read` of their space says."""
    while isinstance(space, constraints.independent):
        space = space.base_constraint
    if hasattr(space, "read"):
        return space.read(outcome)
    # By type: a copied or unpickled constraint is not the original object.
    if space.is_discrete or isinstance(space, type(constraints.real)):
        return outcome
    return biject_to(space).inv(outcome).clamp(-30.0, 30.0)


def prior_log_prob(prior: Any, theta: Tensor) -> Tensor:
    """Log prior density (...) of theta (..., P); −inf outside the support, for any distribution that sbi takes."""
    flat = theta.reshape(-1, theta.shape[-1])
    inside = inside_support(prior, flat)
    value = flat.new_full((len(flat),), -torch.inf)
    if inside.any():
        value[inside] = prior.log_prob(flat[inside]).reshape(-1).to(value)
    return value.reshape(theta.shape[:-1])
