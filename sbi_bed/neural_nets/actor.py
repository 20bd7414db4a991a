r"""A net that acts: from a measurement and parameters to the action of least expected cost.

The optimal action depends on a measurement only through the belief (μ_p, σ_p), so with τ² = σ_p² + σ_r² the net gives an
offset from the belief's location, in the perception's coordinates (logarithms where it is log-normal),

    x_a = μ_p + f_0(μ_p, σ_p, σ_r, cost parameters) + τ f_1(μ_p, σ_p, σ_r, cost parameters).

If the cost scales, ℓ(c r, c s) = c^p ℓ(r, s), and perception is log-normal, the net does not see μ_p. Its actions are then
an exact power law, a = k exp(μ_p), as the optimal ones are; likewise for ℓ(r + c, s + c) = ℓ(r, s) in other perceptions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..simulators.actors import costs as actor_costs
from ..simulators.actors import perception as perceptions
from ..simulators.actors.cost import ActorCost
from ..simulators.actors.cost_checks import check_cost
from ..simulators.actors.optimal_actions import as_belief, check_pair
from ..simulators.actors.perception import Belief, Perception
from ..simulators.actors.reaching import ReachingPerception
from ..utils.as_numbers import as_numbers
from ..utils.checks import check_choice, check_count
from ..utils.files import load_file, rebuilding, save_file
from ..utils.warn_user import warn_user
from .action_report import ActionReport, report_actions

__all__ = ["NeuralActor"]

_KIND = "actor"
_FARTHEST_NOISE = 5.0  # standard deviations of measurements from stimuli, in training
_TOLERANCE = 1e-5  # share of a range by which rounding may exceed it


class NeuralActor(nn.Module):
    """Optimal actions by a net, trained by `ActorTrainer`; differentiable in all arguments.

    Args:
        cost: What responses cost.
        perception: How stimuli are perceived and responses made; `LogNormalPerception()` if None.
        hidden_dim: Width.
        num_layers: Hidden layers.

    Attributes:
        cost: The cost.
        perception: The perception.
        training_box: Name -> (low, high) of all parameters and the stimulus, as trained. Files keep it.
        outside: What to do in a call that leaves it: "warn", once, or "raise" a `ValueError`.
        errors: How far actions are from optimal ones: quantiles that training measured, plain data; None before.
        mean: Means of the net's features.
        scale: Their standard deviations.
        body: Hidden layers.
        head: Last layer.
        direct: Linear layer from the features to the output.

    Raises:
        TypeError: If `cost` is not an `ActorCost`, or `perception` not a `Perception`.
        ValueError: If their dimensions differ, or the expected cost is infinite or has no minimum.

    Warns:
        RuntimeWarning: In a call outside the range of training, with the names, values and ranges of what is outside. Where
            symmetry makes actions exact at any place (a cost that scales, under log-normal perception), measurements and
            mu_0 have no range.

    Example:
        >>> from sbi_bed.simulators import QuadraticEffortCost
        >>> actor = NeuralActor(QuadraticEffortCost())  # not trained yet
        >>> m, beta = torch.tensor([1.0, 2.0]), torch.tensor(0.8, requires_grad=True)
        >>> action = actor(m, sigma=0.2, sigma_0=0.2, mu_0=1.5, sigma_r=0.1, beta=beta)
        >>> round((action[1] / action[0]).item(), 4)  # √2: a power law with exponent w = ½
        1.4142
        >>> actor.outside = "raise"
        >>> actor(m, sigma=0.2, sigma_0=0.2, mu_0=1.5, sigma_r=0.9, beta=beta)
        Traceback (most recent call last):
        ...
        ValueError: sigma_r = 0.9 is outside the range that this actor was trained in, 0.01 to 0.5. ...
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, cost: ActorCost, perception: Perception | None = None, hidden_dim: int = 64, num_layers: int = 3
    ):
        super().__init__()
        self.cost, self.perception = check_pair(cost, perception)
        check_cost(self.cost, self.perception)
        self.training_box = {**self.perception.ranges, **self.cost.training_box}
        self.outside: Literal["raise", "warn"] = "warn"
        self.errors: dict[str, Any] | None = None
        self._size = {
            "hidden_dim": check_count(hidden_dim, "hidden_dim"),
            "num_layers": check_count(num_layers, "num_layers"),
        }
        symmetric = self.cost.homogeneous if self.perception.scale_free else self.cost.shift_invariant
        self._sees_location = not symmetric
        centre = {n: torch.tensor([0.5 * (lo + hi)]) for n, (lo, hi) in self.training_box.items()}
        location = torch.zeros(1, *[self.perception.action_dim] * (self.perception.action_dim > 1))
        parameters = {name: centre[name] for name in self.cost.parameters}
        num_features = self._features(Belief(location, centre["sigma"]), centre["sigma_r"], parameters).shape[-1]
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))
        widths = [num_features, *[hidden_dim] * num_layers]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden_dim, 2 * self.perception.action_dim)
        self.direct = nn.Linear(num_features, 2 * self.perception.action_dim, bias=False)
        for layer in (self.head, self.direct):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, measurement: Tensor, *, sigma: Any, sigma_0: Any, mu_0: Any, sigma_r: Any, **cost_parameters: Any
    ) -> Tensor:
        """Actions (...) or (..., D) for measurements (...) or (..., D) and parameters (...), all broadcasting.

        They have the units and the precision of the measurements.

        Raises:
            TypeError: If the parameters given are not those of the cost.
            ValueError: If a measurement is outside the space of states or NaN; or if a measurement or parameter is outside
                the range of training and `outside` is "raise".
        """
        self.check_inside(
            measurement=measurement, sigma=sigma, sigma_0=sigma_0, mu_0=mu_0, sigma_r=sigma_r, **cost_parameters
        )
        return self.unchecked(measurement, sigma=sigma, sigma_0=sigma_0, mu_0=mu_0, sigma_r=sigma_r, **cost_parameters)

    def unchecked(
        self, measurement: Tensor, *, sigma: Any, sigma_0: Any, mu_0: Any, sigma_r: Any, **cost_parameters: Any
    ) -> Tensor:
        """Actions as `forward` gives them, without a look at the range of training."""
        measurement = torch.as_tensor(measurement)
        dtype = measurement.dtype if measurement.is_floating_point() else torch.get_default_dtype()
        belief, noise, parameters = as_belief(
            self.cost, self.perception, measurement, sigma, sigma_0, mu_0, sigma_r, cost_parameters, dtype
        )
        offset = self.offset(belief, noise, parameters)
        return self.perception.from_coordinate(belief.location + offset.to(belief.location))

    def acting_parameters(self) -> list[nn.Parameter]:
        """The net's own parameters, without those of a `LearnedPerception`."""
        return [p for part in (self.body, self.head, self.direct) for p in part.parameters()]

    def offset(self, belief: Belief, sigma_r: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Offsets (...) or (..., D) of actions from the belief's location, in the perception's coordinates."""
        features = (self._features(belief, sigma_r, parameters).to(self.mean) - self.mean) / self.scale
        shift, share = (self.head(self.body(features)) + self.direct(features)).chunk(2, -1)
        tau = (belief.spread.square() + sigma_r.square()).sqrt().unsqueeze(-1).to(share)
        offset = shift + tau * share
        return offset if self.perception.action_dim > 1 else offset.squeeze(-1)

    @torch.no_grad()
    def fit_scale(self, belief: Belief, sigma_r: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Set mean and scale of the features from situations (N,) like those of training."""
        features = self._features(belief, sigma_r, parameters).to(self.mean)
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp_min(1e-6))

    def report(
        self, measurement: Any, *, sigma: Any, sigma_0: Any, mu_0: Any, sigma_r: Any, **cost_parameters: Any
    ) -> ActionReport:
        """Compare actions with those of the numerical minimiser: excess costs, and where the cost is flat or tied.

        Takes milliseconds for each action.

        Args:
            measurement: Measurements (...), all broadcasting.
            sigma: Spread of measurements.
            sigma_0: Spread of the prior.
            mu_0: Centre of the prior.
            sigma_r: Spread of responses.
            **cost_parameters: Parameters of the cost.

        Raises:
            ValueError: If actions are vectors.

        Example:
            >>> from sbi_bed.simulators import QuadraticCost
            >>> report = NeuralActor(QuadraticCost()).report(
            ...     2.0, sigma=0.2, sigma_0=0.2, mu_0=1.5, sigma_r=0.3
            ... )  # untrained
            >>> bool(report.excess > 0.05), bool(report.tied), bool(report.flat)
            (True, False, False)
        """
        measurement = torch.as_tensor(measurement)
        action = self(measurement, sigma=sigma, sigma_0=sigma_0, mu_0=mu_0, sigma_r=sigma_r, **cost_parameters)
        spreads = (sigma, sigma_0, mu_0, sigma_r)
        belief = as_belief(self.cost, self.perception, measurement, *spreads, cost_parameters, torch.float64)
        return report_actions(self.cost, self.perception, *belief, action.detach())

    @torch.no_grad()
    def check_inside(self, outside: Literal["raise", "warn"] | None = None, **values: Any) -> None:
        """Check that parameters, "measurement" or "stimulus" are inside the ranges of training.

        There is one warning or error for all of them.

        Args:
            outside: "raise", "warn", or the attribute's value if None.
            **values: Numbers, arrays or tensors of any shape.

        Raises:
            TypeError: If one is not numbers.
            ValueError: If one is outside and that is to raise, one is not finite, `outside` is neither, or a name unknown.
        """
        outside = check_choice(self.outside if outside is None else outside, "outside", ("raise", "warn"))
        found, all_finite = [], True
        for name, value in values.items():
            if name not in (*self.training_box, "measurement"):
                raise ValueError(f"there is no parameter {name!r}, only {', '.join(self.training_box)}.")
            value = as_numbers(value, name)
            low, high = self._range_of(name)
            if not value.numel():
                continue
            least, most = (float(bound) for bound in value.double().aminmax())
            slack = _TOLERANCE * (high - low if math.isfinite(high - low) else 0.0)
            finite = math.isfinite(least) and math.isfinite(most)
            all_finite = all_finite and finite
            if not (finite and least >= low - slack and most <= high + slack):
                worst = least if math.isfinite(most) and most <= high + slack else most
                found.append(
                    f"{name} = {worst:.6g} is outside the range that this actor was trained in, {low:.6g} to {high:.6g}"
                )
        if not found:
            return
        message = (
            f"{'; '.join(found)}. Actions there are not reliable: use the units of the training, narrow the prior, or train "
            "an actor with wider ranges (of the perception, or of the cost's priors)."
        )
        if outside == "raise" or not all_finite:
            raise ValueError(message)
        warn_user(message, RuntimeWarning)

    def save(self, path: str | Path) -> None:
        """Save weights, and the descriptions of cost and perception, for `load`."""
        content = {"cost": self.cost.describe(), "perception": self.perception.describe(), "size": self._size}
        save_file(path, _KIND, {**content, "errors": self.errors, "weights": self.state_dict()})

    @classmethod
    def load(cls, path: str | Path, cost: ActorCost | None = None, perception: Perception | None = None) -> NeuralActor:
        """Load what `save` wrote; no code in the file is run.

        Args:
            path: The file.
            cost: The cost that it was trained for; None for a cost of this package with its default priors.
            perception: The perception that it was trained with; None for one of this package.

        Raises:
            ValueError: If the file does not hold an actor, a cost or perception has to be given, or the one given is not the
                one that the actor was trained for.
        """
        content = load_file(path, _KIND)
        with rebuilding(path):
            cost = _rebuild_cost(content["cost"]) if cost is None else cost
            perception = _rebuild_perception(content["perception"]) if perception is None else perception
            for what, given in (("cost", cost), ("perception", perception)):
                if given.describe() != content[what]:
                    raise ValueError(
                        f"the actor in {path} was trained with {what} {content[what]}, got {given.describe()}."
                    )
            actor = cls(cost, perception, **content["size"])
            actor.load_state_dict(content["weights"])
            actor.errors = content["errors"]
        return actor.eval()

    # ---- pieces

    def _features(self, belief: Belief, sigma_r: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Features (..., F) of the net."""
        columns = []
        for value in (belief.spread, sigma_r):
            columns += [value, value.square(), value.log()]
        for name, value in parameters.items():
            low, high = self.training_box[name]
            columns.append(value)
            if low >= 0 and high <= 1:
                columns.append(torch.special.logit(value, 1e-3))
            elif low > 0:
                columns.append(value.log())
        location = self.perception.location_features(belief.location)
        shape = torch.broadcast_shapes(location.shape[:-1], *(column.shape for column in columns))
        stacked = torch.stack([column.expand(shape) for column in columns], -1)
        return torch.cat([location.expand(*shape, -1), stacked], -1) if self._sees_location else stacked

    def _range_of(self, name: str) -> tuple[float, float]:
        """Range of training; all numbers if symmetry makes actions exact everywhere."""
        if name in ("measurement", "mu_0") and not self._sees_location:
            return -math.inf, math.inf
        if name != "measurement":
            return self.training_box[name]
        reach = _FARTHEST_NOISE * self.training_box["sigma"][1]
        if float(self.perception.noise_reach(torch.tensor(1.0), math.inf)) < math.inf:  # angles
            return -math.inf, math.inf
        ends = self.perception.to_coordinate(torch.tensor(self.training_box["stimulus"]).double())
        low, high = self.perception.from_coordinate(ends + torch.tensor([-reach, reach])).tolist()
        return low, high


def _rebuild_cost(description: dict[str, Any]) -> ActorCost:
    kind = getattr(actor_costs, str(description["name"]), None) if description["name"] in actor_costs.__all__ else None
    if kind is None:
        raise ValueError(f"the actor was trained for a cost of your own, {description['name']!r}: give it as cost=.")
    return kind()


def _rebuild_perception(description: dict[str, Any]) -> Perception:
    known = {name: getattr(perceptions, name) for name in perceptions.__all__} | {
        "ReachingPerception": ReachingPerception
    }
    kind = known.get(str(description["kind"]))
    if kind is None:
        raise ValueError(f"the actor was trained with {description['kind']!r}, of your own: give it as perception=.")
    ranges: dict[str, Any] = {name: tuple(bounds) for name, bounds in description["ranges"].items()}
    return kind(**description["settings"], **ranges)
