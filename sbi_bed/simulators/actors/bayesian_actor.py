r"""A person who acts on noisy perception, as an experiment: stimulus in, response out (arXiv 2409.03710).

A stimulus s is measured with noise, the person takes the action a* that is best for what is then believed, and the
response is a* with motor noise. In coordinates x (logarithms in `LogNormalPerception`, which the formulas here are for)

    log m | s ~ N(log s, σ²),    log r | m ~ N(log a*(m, θ), σ_r²).

The measurement is unseen, so the likelihood of a response is an integral over z = log m,

    p(r | s, θ) = ∫ LogN(r; log a*(e^z, θ), σ_r²) N(z; log s, σ²) dz.

**Costs that scale**, ℓ(c r, c s) = c^p ℓ(r, s), make a* = k e^{μ_p} with k free of m. With w = σ_0² / (σ_0² + σ²) then
exactly

    log r | s ~ N(log k + (1 − w) log μ_0 + w log s,  w² σ² + σ_r²),    log k = log a*(μ_0, θ) − log μ_0,

so the actor is called once for each θ, whatever the number of trials.

**Other costs**: log a* is nearly linear in z near any point, log a*(e^z) ≈ α + b z, so z given r is nearly normal, with
precision 1/σ² + b²/σ_r². Two Gauss–Newton steps (the second with b from the secant) find its mode, and Gauss–Hermite nodes
around the mode give the integral. They are exact where log a* is linear. Gradients treat the nodes as constants, since the
integral does not depend on them. For a person with many trials, log a* is tabulated at knots σ/2 apart and interpolated by
cubics. A belief blurs costs over σ or more, so this costs no accuracy, and for 60 trials the actor is called a seventh as
often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, HalfNormal, Uniform, constraints

from ...utils.as_numbers import as_numbers
from ...utils.checks import check_count
from ...utils.quasi_random import quasi_random_draws
from ...utils.warn_user import warn_user
from ..base import DesignSimulator
from ..design_space import DesignSpace
from .cubic_curve import CubicCurve
from .perception import LogNormalPerception, NormalPerception
from .truncated import TruncatedIndependent

__all__ = ["BayesianActor"]

_PERCEPTION = ("sigma", "sigma_0", "mu_0", "sigma_r")
_NOISES = ("sigma", "sigma_0", "sigma_r")
_REACH = 3.99  # nodes lie within this many sd of the measurement
_MOST_NODES = 7  # whose outermost lies 3.75 sd out
_KNOTS_APART = 0.5  # in σ: a belief blurs the cost's kinks, so actions do not bend over shorter distances
_WARN_ABOVE, _REFUSE_ABOVE = 0.1, 1.0  # 95th percentile of a net's errors, and of its excess cost
_LEAST_SECANT = 1e-3  # in z: over shorter distances the rounding of a float32 net would dominate the slope


class BayesianActor(DesignSimulator):
    """Responses of a person to stimuli; parameters are those of perception, prior and cost that are not fixed.

    Theta holds the free parameters among ``sigma`` (perceptual noise), ``sigma_0``, ``mu_0`` (prior: spread in logs,
    median), ``sigma_r`` (motor noise) and those of the cost, in this order; `parameter_names` lists them. A design is a
    stimulus, in the unit of responses. With `noise_range` it is the pair (stimulus, sigma), for experiments that also
    choose how noisy the stimulus is. An outcome is a response; under `LogNormalPerception` it is positive.

    Args:
        actor: `OptimalActor` or `NeuralActor`, for actions that are numbers, perceived log-normally or normally.
        fixed: Values of parameters that are known; {"sigma": 0.2} if None (with `noise_range` nothing).
        prior: Distribution of theta. If None independent: HalfNormal(0.25) for the three noises, U(0.1, 5) for mu_0, the
            cost's priors for its parameters, all cut to the range of training. (Under `NormalPerception` noises are
            half-normal with half their largest value, and mu_0 is uniform.)
        stimulus_range: Least and largest stimulus of the design space; those of training if None.
        noise_range: Least and largest sigma that the experiment can set; None where it cannot.
        num_nodes: Gauss–Hermite nodes of the likelihood, for costs that do not scale, at most 7: more would leave the
            range of training. Three suffice where actions bend gently with the stimulus. Under absolute cost with effort
            actions have a kink: there 5 nodes err by some 0.001 nats on average, but by 1 for a rare response.

    Attributes:
        parameter_names: Names of theta's P values.
        fixed: Values of the others.
        perception: How stimuli are perceived and responses made, the actor's.

    Warns:
        RuntimeWarning: If the actor's errors, as its training measured them, are large: a 95th percentile above 0.1 of the
            error of actions, or of their excess cost (`ActorErrors`). In a call, if a stimulus is outside `stimulus_range`
            or a parameter outside the actor's range of training.

    Raises:
        TypeError: If the actor cannot be called or has no cost.
        ValueError: If actions are vectors or angles, a fixed name is not a parameter, a value is not finite or a σ not
            positive, no parameter is free, a range is not increasing, sigma is both fixed and set by the experiment, fixed
            values or the prior leave the range that the actor was trained on, or a 95th percentile of its errors is above 1.

    Example:
        >>> from sbi_bed.simulators import OptimalActor, QuadraticCost
        >>> simulator = BayesianActor(OptimalActor(QuadraticCost()))
        >>> simulator.parameter_names
        ('sigma_0', 'mu_0', 'sigma_r')
        >>> response = simulator(torch.tensor([0.15, 1.5, 0.1]), torch.tensor([[1.0], [2.0], [4.0]]))
        >>> response.shape
        torch.Size([3, 1])
    """

    def __init__(
        self,
        actor: Any,
        fixed: Mapping[str, float] | None = None,
        prior: Distribution | None = None,
        *,
        stimulus_range: tuple[float, float] | None = None,
        noise_range: tuple[float, float] | None = None,
        num_nodes: int = 5,
    ):
        _check_actor(actor)
        _check_errors(getattr(actor, "errors", None))
        self._act: Any = getattr(actor, "unchecked", actor)
        self.actor: Any = actor
        self.perception: Any = actor.perception
        self.noise_range = noise_range
        self.stimulus_range = tuple(self.perception.ranges["stimulus"] if stimulus_range is None else stimulus_range)
        self.num_nodes = check_count(num_nodes, "num_nodes")
        if self.num_nodes > _MOST_NODES:
            raise ValueError(
                f"num_nodes must be at most {_MOST_NODES}, got {num_nodes}: more would reach outside the range of training."
            )
        if fixed is None:
            fixed = {"sigma": 0.2} if noise_range is None else {}
        names = (*_PERCEPTION, *actor.cost.parameters)
        self.fixed = _check_fixed(fixed, names, noise_range)
        designed = ("sigma",) if noise_range is not None else ()
        self.parameter_names = tuple(name for name in names if name not in self.fixed and name not in designed)
        if not self.parameter_names:
            raise ValueError("all parameters are fixed: there is nothing to infer.")
        for name, value in self.fixed.items():
            self._check_inside(name, value, value)
        if noise_range is not None:
            self._check_inside("sigma", *noise_range)
        if actor.training_box is not None and stimulus_range is not None:
            actor.check_inside("warn", measurement=torch.tensor(self.stimulus_range))
        positive = isinstance(self.perception, LogNormalPerception)
        super().__init__(
            self._default_prior() if prior is None else prior,
            partial(_without_weights, self._simulate),
            _design_space(self.stimulus_range, noise_range, positive),
            partial(_without_weights, self._log_density),
            reparameterized=True,
            outcome_space=constraints.positive if positive else constraints.real,
        )
        if self.theta_dim != len(self.parameter_names):
            raise ValueError(
                f"the prior is over {self.theta_dim} values, but the free parameters are {self.parameter_names}."
            )
        if prior is not None and actor.training_box is not None:
            draws = quasi_random_draws(prior, 4096)
            bounds = zip(self.parameter_names, draws.amin(0).tolist(), draws.amax(0).tolist(), strict=True)
            for name, low, high in bounds:
                self._check_inside(name, low, high, "the prior of ")

    @property
    def power_law(self) -> bool:
        """Whether actions are a power of measurements, so that the likelihood is a log-normal density."""
        return bool(self.actor.cost.homogeneous) and self.perception.scale_free

    def parameters(self, theta: Tensor, design: Tensor | None = None) -> dict[str, Tensor]:
        """Every parameter by name, shape (...) each, for theta (..., P); sigma is the design's if set there."""
        values = dict(zip(self.parameter_names, theta.unbind(-1), strict=True))
        values |= {name: theta.new_tensor(value) for name, value in self.fixed.items()}
        if self.noise_range is not None and design is not None:
            values["sigma"] = design[..., 1].to(theta)
        return values

    def with_prior(self, prior: Distribution) -> BayesianActor:
        """The same experiment under another prior."""
        return BayesianActor(
            self.actor,
            self.fixed,
            prior,
            stimulus_range=self.stimulus_range,  # pyright: ignore[reportArgumentType]
            noise_range=self.noise_range,
            num_nodes=self.num_nodes,
        )

    # ---- likelihood

    def _log_density(self, theta: Tensor, design: Tensor, outcome: Tensor) -> Tensor:
        dtype = torch.promote_types(theta.dtype, outcome.dtype)
        theta, design, response = theta.to(dtype), design.to(dtype), outcome[..., 0].to(dtype)
        values, x_s = self._checked_parameters(theta, design), self._coordinate(design[..., 0])
        if self.power_law:
            weight = _weight(values)
            at_median = torch.log(self._act(values["mu_0"], **values))  # here μ_p = log μ_0
            median = torch.exp(at_median + weight * (x_s - torch.log(values["mu_0"])))
            sd = ((weight * values["sigma"]).square() + values["sigma_r"].square()).sqrt()
            return self.perception.log_prob_response(response, median, sd)
        return self._quadrature(values, x_s, response)

    def _quadrature(self, values: dict[str, Tensor], x_s: Tensor, response: Tensor) -> Tensor:
        """∫ exp(f(z)) dz by Gauss–Hermite nodes, the last dimension of everything, about the mode of f."""
        values = {name: value.unsqueeze(-1) for name, value in values.items()}
        x_s, response = x_s.unsqueeze(-1), response.unsqueeze(-1)
        perception, sigma_m, sigma_r = self.perception, values["sigma"], values["sigma_r"]
        x_a = self._action_curve(values, x_s)
        with torch.no_grad():
            centre, sd = _mode(x_a, _weight(values), x_s, perception.to_coordinate(response), sigma_m, sigma_r)
        nodes, weights = np.polynomial.hermite.hermgauss(self.num_nodes)
        step = torch.as_tensor(math.sqrt(2) * nodes).to(centre)
        log_weight = torch.as_tensor(np.log(math.sqrt(2) * weights) + nodes**2).to(centre)
        reach = _REACH * sigma_m  # actors are trained on these beliefs, not on others
        z = torch.maximum(torch.minimum(centre + sd * step, x_s + reach), x_s - reach)
        log_f = perception.noise_log_prob(z - x_s, sigma_m)
        log_f = log_f + perception.log_prob_response(response, perception.from_coordinate(x_a(z)), sigma_r)
        return torch.logsumexp(log_f + log_weight, -1) + sd.squeeze(-1).log()

    def _action_curve(self, values: dict[str, Tensor], x_s: Tensor) -> Callable[[Tensor], Tensor]:
        """Coordinate of actions at z (..., n, q) for stimuli (..., n, 1), tabulated where that saves calls of the actor."""

        def x_a(z: Tensor, values: dict[str, Tensor] = values) -> Tensor:
            return self.perception.to_coordinate(self._act(self.perception.from_coordinate(z), **values))

        people = torch.broadcast_shapes((1, 1), *(value.shape for value in values.values()))
        if people[-2] != 1 or x_s.ndim < 2 or torch.broadcast_shapes(people[:-2], x_s.shape[:-2]) != people[:-2]:
            return x_a  # parameters change from trial to trial
        with torch.no_grad():
            reach, step = _REACH * float(values["sigma"].max()), _KNOTS_APART * float(values["sigma"].min())
            low, high = float(x_s.min()) - reach, float(x_s.max()) + reach
        num_knots = max(4, 1 + math.ceil((high - low) / step))
        if num_knots >= x_s.shape[-2] * (self.num_nodes + 2):
            return x_a
        knots = torch.linspace(low, high, num_knots).to(x_s)
        table = x_a(knots, {name: value.squeeze(-1) for name, value in values.items()})
        curve = CubicCurve(table.expand(*people[:-2], num_knots), low, (high - low) / (num_knots - 1))

        def interpolated(z: Tensor) -> Tensor:
            return curve(z.expand(*people[:-2], *z.shape[-2:]).flatten(-2)).unflatten(-1, z.shape[-2:])

        return interpolated

    def _coordinate(self, stimulus: Tensor) -> Tensor:
        if isinstance(self.perception, LogNormalPerception) and not (stimulus > 0).all():
            raise ValueError(f"stimuli must be positive, got {stimulus[~(stimulus > 0)][0].item():g}.")
        return self.perception.to_coordinate(stimulus)

    def _simulate(self, theta: Tensor, design: Tensor) -> Tensor:
        values = self._checked_parameters(theta, design)
        stimulus = design[..., 0].to(theta).expand(torch.broadcast_shapes(theta.shape[:-1], design.shape[:-1]))
        self._coordinate(stimulus)
        measurement = self.perception.sample_measurement(stimulus, values["sigma"])
        action = self._act(measurement, **values)
        return self.perception.sample_response(action, values["sigma_r"]).unsqueeze(-1)

    def _checked_parameters(self, theta: Tensor, design: Tensor) -> dict[str, Tensor]:
        """Every parameter; one warning for all stimuli that are outside the experiment, one for all of the actor."""
        values, stimulus = self.parameters(theta, design), design[..., 0]
        if stimulus.numel():
            least, most = (float(bound) for bound in stimulus.detach().aminmax())
            low, high = self.stimulus_range
            slack = 1e-4 * (high - low)
            if least < low - slack or most > high + slack:
                warn_user(
                    f"stimulus = {least if least < low - slack else most:.6g} is outside the range of this experiment, "
                    f"{low:g} to {high:g}: give stimuli in the unit of mu_0 and the prior, or set stimulus_range= and the "
                    "prior for this unit.",
                    RuntimeWarning,
                )
        if self.actor.training_box is not None:
            self.actor.check_inside(**values)
        return values

    # ---- prior and training box

    def _default_prior(self) -> Distribution:
        ranges = {**self.perception.ranges, **self.actor.cost.training_box, **(self.actor.training_box or {})}
        own = dict(self.actor.cost.parameters)
        if isinstance(self.perception, LogNormalPerception):
            own |= {name: HalfNormal(0.25) for name in _NOISES} | {"mu_0": Uniform(0.1, 5.0)}
        else:
            own |= {name: HalfNormal(ranges[name][1] / 2) for name in _NOISES} | {"mu_0": Uniform(*ranges["mu_0"])}
        names = self.parameter_names
        return TruncatedIndependent([own[name] for name in names], [ranges[name] for name in names])

    def _check_inside(self, name: str, low: float, high: float, what: str = "") -> None:
        box = (self.actor.training_box or {}).get(name)
        if box is None:
            return
        slack = 1e-4 * (box[1] - box[0])
        if low < box[0] - slack or high > box[1] + slack:
            reach = f"{low:g}" if low == high else f"{low:.3g} to {high:.3g}"
            raise ValueError(
                f"{what}{name} reaches {reach}, but the actor was trained on {box[0]:g} to {box[1]:g}. Outside, "
                "its actions are not reliable: stay inside, or train an actor on a wider range."
            )


def _mode(
    x_a: Callable[[Tensor], Tensor], weight: Tensor, x_s: Tensor, x_r: Tensor, sigma_m: Tensor, sigma_r: Tensor
) -> tuple[Tensor, Tensor]:
    """Mode and sd of a measurement's coordinate z given the response's, by two Gauss–Newton steps."""
    variance_m, variance_r, reach = sigma_m.square(), sigma_r.square(), _REACH * sigma_m
    action = x_a(x_s)
    step = weight * (x_r - action) / (variance_r / variance_m + weight.square())
    z = x_s + torch.maximum(torch.minimum(step, reach), -reach)
    there, far = x_a(z), (z - x_s).abs() > _LEAST_SECANT
    slope = torch.where(far, (there - action) / torch.where(far, z - x_s, 1.0), weight)
    precision = 1 / variance_m + slope.square() / variance_r
    return z + ((x_s - z) / variance_m + slope * (x_r - there) / variance_r) / precision, precision.rsqrt()


def _without_weights(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """The function, with gradients only where an argument requires them, and none for the weights of a net."""
    wanted = torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments)
    with torch.set_grad_enabled(wanted):
        return function(*arguments)


def _weight(values: dict[str, Tensor]) -> Tensor:
    """w, the weight of the measurement against the prior."""
    return values["sigma_0"].square() / (values["sigma_0"].square() + values["sigma"].square())


def _check_actor(actor: Any) -> None:
    if not callable(actor) or not hasattr(actor, "cost") or not hasattr(actor, "perception"):
        raise TypeError(f"actor must be an OptimalActor or a NeuralActor, got {actor!r}.")
    if actor.cost.action_dim != 1 or not isinstance(actor.perception, (LogNormalPerception, NormalPerception)):
        raise ValueError(
            "a BayesianActor needs actions that are single numbers, perceived log-normally or normally; got "
            f"{type(actor.perception).__name__} with action_dim {actor.cost.action_dim}."
        )


def _check_errors(errors: Any) -> None:
    """Warn of an actor, or refuse one, whose training measured large errors: plain data of `ActorErrors`, or None."""
    if not errors:
        return
    upper, excess = (float(errors.get(name, 0.0)) for name in ("upper", "upper_excess"))
    if not max(upper, excess) <= _WARN_ABOVE:
        message = (
            f"the actor is not close to optimal: the 95th percentile of its errors is {upper:.3g}, of its excess cost "
            f"{excess:.3g}, where at most {_WARN_ABOVE} is good. Train it for more steps, and see actor_validation(actor)."
        )
        if not max(upper, excess) <= _REFUSE_ABOVE:
            raise ValueError(message)
        warn_user(message, RuntimeWarning)


def _check_fixed(
    fixed: Mapping[str, float], names: tuple[str, ...], noise_range: tuple[float, float] | None
) -> dict[str, float]:
    for name, value in fixed.items():
        if name not in names:
            raise ValueError(f"fixed has {name!r}, but the parameters of this actor are {names}.")
        number = as_numbers(value, f"fixed {name}")
        if number.numel() != 1 or not number.isfinite().all() or (name in _NOISES and not number > 0):
            raise ValueError(f"fixed values must be finite numbers, and noises positive, got {name} = {value}.")
    if noise_range is not None and "sigma" in fixed:
        raise ValueError("sigma is set by the experiment (noise_range=) and cannot be fixed as well.")
    return {name: float(value) for name, value in fixed.items()}


def _design_space(
    stimulus_range: tuple[float, ...], noise_range: tuple[float, float] | None, positive: bool
) -> DesignSpace:
    ranges = [("stimulus_range", stimulus_range)] + ([("noise_range", noise_range)] if noise_range is not None else [])
    for name, pair in ranges:
        least = 0 if positive or name == "noise_range" else -math.inf
        if len(pair) != 2 or not least < pair[0] < pair[1] < math.inf:
            raise ValueError(f"{name} must be (low, high) with {least:g} < low < high, got {pair}.")
    low, high = (torch.tensor([float(pair[i]) for _, pair in ranges]) for i in (0, 1))
    return DesignSpace(constraints.interval(low, high), names=("stimulus", "sigma")[: len(ranges)])
