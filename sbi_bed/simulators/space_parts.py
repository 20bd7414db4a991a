r"""Parts of a design space: coordinates that vary smoothly under a torch constraint, and choices from a finite table.

A net speaks of each part in free coordinates u ∈ ℝ^F, roughly standard normal.

- Continuous: ξ = b(loc + scale · u), b = `biject_to(constraint)`. Where b bends, u first saturates softly at ±6, so that no
  net can drive a design to its bound or to infinity, where gradients die.
- Choices: scores s = Φ u of the N rows of a table; the best row is taken. Where rows are points, Φ = K^½ with
  K_ij = exp(−‖c_i − c_j‖) in standardised coordinates (of logs, for positive whole numbers over a decade), so that
  neighbours share what is learned; with more than 128 rows, K^½ is that of 128 of them, extended to the others. Where rows
  are categories, Φ = I, and a net reads them one-hot. While a policy is trained, rows are drawn from softmax(s), and the
  log-probability is kept for the score-function gradient.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from .polytope import Polytope

__all__ = ["Choices", "Continuous", "parts_of"]

_MOST_SCORES, _MOST_INTEGERS = 128, 10_000
_DECADE = 10  # positive whole numbers over a range of that ratio are read in logs
_SHORT_TABLE, _NEAREST = 16, 6  # a longer table is searched among the nearest rows


class _Part:
    """What both kinds share: constants like the input, copied once for each device and dtype."""

    dim: int
    num_features: int
    free_dim: int

    def __init__(self, *constants: Tensor):
        self._constants = constants
        self._copies: dict[tuple[torch.device, torch.dtype], tuple[Tensor, ...]] = {}

    def _like(self, tensor: Tensor) -> tuple[Tensor, ...]:
        kind = tensor.device, tensor.dtype
        if kind not in self._copies:
            self._copies[kind] = tuple(constant.to(tensor) for constant in self._constants)
        return self._copies[kind]


class Continuous(_Part):
    """Design values (..., D) under a torch constraint.

    Args:
        constraint: The constraint.
        dim: Number D of values.
        loc: Centre in free coordinates.
        scale: Spread in free coordinates.
    """

    is_choice = False

    def __init__(self, constraint: Any, dim: int, loc: float | Tensor = 0.0, scale: float | Tensor = 1.0):
        super().__init__(torch.as_tensor(loc).float(), torch.as_tensor(scale).float())
        self.dim = dim
        self._set(constraint)
        try:
            self.num_features = self._bijection.inverse_shape(torch.Size([dim]))[-1]
        except RuntimeError:  # bounds of another size: the space says so
            self.num_features = dim
        self.free_dim = self.num_features

    def _set(self, constraint: Any) -> None:
        self.constraint, self._bijection = constraint, _bijection_onto(constraint)
        self._saturates = not isinstance(base_of(constraint), type(constraints.real))

    def under(self, constraint: Any, shape: tuple[int, ...], history_shape: tuple[int, ...]) -> Continuous:
        """The same coordinates under another constraint, with bounds that fit `shape`."""
        part = copy.copy(self)
        part._set(constraint)
        for bound in _bound_tensors(constraint):
            try:
                bound.expand(shape)
            except RuntimeError as err:
                raise ValueError(
                    f"given= returned bounds of shape {tuple(bound.shape)} for a history {history_shape}; expected {shape}."
                ) from err
        return part

    def from_free(self, free: Tensor) -> Tensor:
        """Free coordinates (..., F) → values (..., D)."""
        if self._saturates:
            free = 6.0 * torch.tanh(free / 6.0)
        loc, scale = self._like(free)
        return self._bijection(loc + scale * free)

    def from_features(self, features: Tensor) -> Tensor:
        """The inverse of `standardize`."""
        loc, scale = self._like(features)
        return self._bijection(loc + scale * features)

    def to_free(self, design: Tensor) -> Tensor:
        """The inverse of `from_free`."""
        free = self.standardize(design)
        return 6.0 * torch.atanh((free / 6.0).clamp(-0.999, 0.999)) if self._saturates else free

    def standardize(self, design: Tensor) -> Tensor:
        """Values (..., D) → free coordinates, at most 12."""
        loc, scale = self._like(design)
        return ((self._bijection.inv(design) - loc) / scale).clamp(-12.0, 12.0)

    def free_gradient(self, design: Tensor, gradient: Tensor) -> Tensor:
        """A gradient in values (..., D) taken to free coordinates."""
        loc, scale = self._like(gradient)
        with torch.enable_grad():
            free = ((self._bijection.inv(design.detach()) - loc) / scale).detach().requires_grad_()
            return torch.autograd.grad(self._bijection(loc + scale * free), free, gradient)[0]

    def contains(self, design: Tensor, tolerance: float) -> Tensor:
        """Whether values (..., D) satisfy the constraint, (...)."""
        inside = self.constraint.check(design)
        return inside if inside.ndim < design.ndim else inside.all(-1)

    def on_border(self, design: Tensor, share: float) -> Tensor:
        """Whether values (..., D) lie near an end of their interval."""
        bounds = _bounds(self.constraint)
        if bounds is None:
            return torch.zeros_like(design, dtype=torch.bool)
        low, high = (torch.as_tensor(b).to(design) for b in bounds)
        return torch.minimum(design - low, high - design) < share * (high - low)

    def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
        """Uniform values between bounds, else a standard normal mapped in."""
        constraint = base_of(self.constraint)
        if isinstance(constraint, Polytope):
            return constraint.sample(sample_shape)
        bounds = _bounds(constraint)
        if bounds is not None:
            low, high = (torch.as_tensor(b, dtype=torch.get_default_dtype()) for b in bounds)
            return low + (high - low) * torch.rand(*sample_shape, self.dim)
        return self.from_free(torch.randn(*sample_shape, self.free_dim))

    def expects(self) -> str:
        """What is allowed, in words."""
        return f"{self.constraint}"


class Choices(_Part):
    """Design values (..., D) that are one row of a table.

    Args:
        values: The rows, (N, D).
        labels: Names of the rows where they are categories without an order; values are then 0, …, N − 1.
        whole: Whether the rows are successive whole numbers, for messages.
        in_logs: Whether positive rows are read, and compared, in logs.
    """

    is_choice = True

    def __init__(
        self, values: Tensor, labels: tuple[str, ...] | None = None, whole: bool = False, in_logs: bool = False
    ):
        self.labels, self.whole, self._in_logs = labels, whole, in_logs
        self._spread = _spread(values)
        read = values.log() if in_logs else values
        loc, scale = read.mean(0), _spread(read)
        features = (read - loc) / scale if labels is None else torch.eye(len(values))
        basis = _shared_strength(features) if labels is None else features
        super().__init__(values, loc, scale, features, basis)
        self.values, self.dim = values, values.shape[-1]
        self.num_features, self.free_dim = features.shape[-1], basis.shape[-1]

    def __len__(self) -> int:
        return len(self.values)

    def scores(self, free: Tensor) -> Tensor:
        """Scores (..., N) of the rows."""
        return free @ self._like(free)[4].mT

    def from_free(self, free: Tensor) -> Tensor:
        """The best row (..., D); where rows are points, with the gradient of the softmax's mean in the backward pass."""
        values, scores = self._like(free)[0], self.scores(free)
        chosen = values[scores.argmax(-1)]
        if not free.requires_grad or self.labels is not None:
            return chosen
        soft = scores.softmax(-1) @ values
        return chosen + (soft - soft.detach())

    def draw(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """A row (..., D) drawn from the softmax of the scores, and its log-probability (...)."""
        log_probs = self.scores(free).log_softmax(-1)
        flat = log_probs.detach().exp().reshape(-1, len(self))
        index = torch.multinomial(flat, 1).reshape(log_probs.shape[:-1])
        return self._like(free)[0][index], log_probs.gather(-1, index.unsqueeze(-1)).squeeze(-1)

    def standardize(self, design: Tensor) -> Tensor:
        """Points as standardised coordinates, categories one-hot, (..., num_features)."""
        _, loc, scale, features, _ = self._like(design)
        if self.labels is None:
            return ((design.log() if self._in_logs else design) - loc) / scale
        return features[design.squeeze(-1).round().long().clamp(0, len(self) - 1)]

    def from_features(self, features: Tensor) -> Tensor:
        """The row (..., D) whose features are nearest."""
        return self._like(features)[0][self._nearest(features, 1).squeeze(-1)]

    def free_gradient(self, design: Tensor, gradient: Tensor) -> Tensor:
        """A gradient in values (..., D) taken to standardised coordinates; zero for categories."""
        if self.labels is not None:
            return torch.zeros_like(gradient)
        return gradient * self._like(gradient)[2] * (design if self._in_logs else 1.0)

    def contains(self, design: Tensor, tolerance: float) -> Tensor:
        """Whether values (..., D) are a row, (...), within a relative tolerance."""
        gap = ((design.to(self.values).unsqueeze(-2) - self.values) / self._spread).abs().amax(-1)
        return gap.amin(-1) <= tolerance

    def on_border(self, design: Tensor, share: float) -> Tensor:
        """Never."""
        return torch.zeros_like(design, dtype=torch.bool)

    def sample(self, sample_shape: tuple[int, ...]) -> Tensor:
        """Any row, (*sample_shape, D)."""
        return self.values[torch.randint(len(self), sample_shape)]

    def neighbours(self, design: Tensor) -> Tensor:
        """Other rows (..., M, D) for each of (..., D): all of a short table, else the nearest and as many random ones."""
        values, features = self._like(design)[0], self.standardize(design)
        if len(self) <= _SHORT_TABLE or self.labels is not None:
            return values[self._nearest(features, len(self))[..., 1:]]
        near = self._nearest(features, _NEAREST + 1)[..., 1:]
        return values[torch.cat([near, torch.randint(len(self), near.shape, device=near.device)], -1)]

    def _nearest(self, features: Tensor, num: int) -> Tensor:
        """Indices (..., num) of the rows nearest in features (..., F)."""
        gap = (features.unsqueeze(-2) - self._like(features)[3]).square().sum(-1)
        return gap.topk(num, dim=-1, largest=False).indices

    def expects(self) -> str:
        """What is allowed, in words."""
        if self.labels is not None:
            return ", ".join(f"{i} = {label}" for i, label in enumerate(self.labels))
        if self.whole:
            return f"a whole number from {int(self.values[0])} to {int(self.values[-1])}"
        return f"{len(self)} candidates"


def parts_of(
    constraint: Any, dim: int | None, loc: float | Tensor, scale: float | Tensor
) -> list[Continuous | Choices]:
    """The parts of a constraint: one where all of it is smooth, one for each whole number, and one for the rest between."""
    base = base_of(constraint)
    if not isinstance(base, constraints.Constraint):
        raise TypeError(f"constraint must be one of torch.distributions.constraints, got {constraint!r}.")
    if isinstance(base, type(constraints.boolean)):
        return [Choices(torch.tensor([[0.0], [1.0]]), whole=True) for _ in range(dim or 1)]
    if isinstance(base, constraints.integer_interval):
        low, high = (torch.as_tensor(b).reshape(-1) for b in (base.lower_bound, base.upper_bound))
        size = max(len(low), len(high)) if dim is None else dim
        if max(len(low), len(high)) not in (1, size):
            raise ValueError(f"bounds of {max(len(low), len(high))} whole numbers do not describe {dim} design values.")
        ends = zip(low.expand(size).tolist(), high.expand(size).tolist(), strict=True)
        return [_whole_numbers(int(first), int(last)) for first, last in ends]
    members = getattr(base, "cseq", None)
    if members is None or not any(base_of(member).is_discrete for member in members):
        return [Continuous(constraint, constraint_dim(constraint) if dim is None else dim, loc, scale)]
    lengths = getattr(base, "lengths", [1] * len(members))
    parts, start = [], 0
    for member, length in zip(members, lengths, strict=True):
        own = [x[start : start + length] if isinstance(x, Tensor) and x.ndim else x for x in (loc, scale)]
        parts += parts_of(member, length, *own)
        start += length
    return parts


def base_of(constraint: Any) -> Any:
    """The constraint on single values inside `independent` ones."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def constraint_dim(constraint: Any) -> int:
    """Number of design values a constraint speaks of: the size of its bounds, the sum of its parts, else 1."""
    constraint = base_of(constraint)
    if hasattr(constraint, "lengths"):
        return int(sum(constraint.lengths))
    return max([bound.numel() for bound in _bound_tensors(constraint)] + [1])


def _whole_numbers(low: int, high: int) -> Choices:
    if high < low:
        raise ValueError(f"lower bounds lie below upper ones; whole numbers from {low} to {high} are none.")
    if high - low >= _MOST_INTEGERS:
        raise ValueError(
            f"a table of {high - low + 1} whole numbers is too long, the most is {_MOST_INTEGERS}: let the design be an "
            "interval, and round it in the simulator."
        )
    return Choices(torch.arange(low, high + 1.0).unsqueeze(-1), whole=True, in_logs=low > 0 and high >= _DECADE * low)


def _spread(values: Tensor) -> Tensor:
    """Standard deviations (D,) of rows (N, D); 1 where there is one value only."""
    scale = values.std(0, correction=0)
    return torch.where(scale > 1e-6 * (1 + values.mean(0).abs()), scale, 1.0)


def _shared_strength(features: Tensor) -> Tensor:
    """The square root (N, min(N, 128)) of the kernel of N points."""
    num = len(features)
    some = features[torch.linspace(0, num - 1, min(num, _MOST_SCORES)).round().long()].double()
    values, vectors = torch.linalg.eigh(torch.exp(-torch.cdist(some, some)))
    values = values.clamp_min(1e-9)
    if num <= _MOST_SCORES:
        return ((vectors * values.sqrt()) @ vectors.mT).float()
    between = torch.exp(-torch.cdist(features.double(), some))
    return (between @ (vectors * values.rsqrt()) @ vectors.mT).float()


def _bijection_onto(constraint: Any) -> Any:
    if not isinstance(constraint, constraints.Constraint):
        raise TypeError(f"constraint must be one of torch.distributions.constraints, got {constraint!r}.")
    try:
        return biject_to(constraint)
    except NotImplementedError as err:
        raise ValueError(f"torch has no bijection onto {constraint}; give the allowed designs as candidates.") from err


def _bounds(constraint: Any) -> tuple[Any, Any] | None:
    constraint = base_of(constraint)
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    return None if low is None or high is None else (low, high)


def _bound_tensors(constraint: Any) -> list[Tensor]:
    constraint = base_of(constraint)
    bounds = [getattr(constraint, name, None) for name in ("lower_bound", "upper_bound")]
    return [bound for bound in bounds if isinstance(bound, Tensor)]
