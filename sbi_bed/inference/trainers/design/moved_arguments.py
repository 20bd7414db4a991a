"""Arguments of `DAD.train` that describe the bound and are now the bound's own; `train` takes them for one release."""

from __future__ import annotations

from typing import Any

from ....objectives.base import Bound, NeuralBound
from ....objectives.model_gain import ModelPCE
from ....objectives.pce import PCE
from ....simulators.base import DesignSimulator
from ....utils.checks import check_choice
from ....utils.warn_user import warn_user

__all__ = ["bound_with_moved_arguments"]

_MOVED = ("objective", "gradient", "baseline", "proposal", "max_design_gradient", "compile", "bound_steps")


def bound_with_moved_arguments(
    bound: Bound, settings: dict[str, Any], simulator: DesignSimulator
) -> tuple[Bound, dict[str, Any]]:
    """The bound that a call of `train` means, and the settings without what moved.

    Raises:
        ValueError: If an argument is not one of this bound.

    Warns:
        FutureWarning: If there are such arguments.
    """
    moved = {name: settings[name] for name in _MOVED if settings.get(name) is not None}
    rest = {name: value for name, value in settings.items() if name not in _MOVED}
    if not moved:
        return bound, rest
    warn_user(
        f"{', '.join(moved)}: now arguments of the bound, as in DAD(..., bound=PCE(proposal='local')); train() takes them "
        "until the next release.",
        FutureWarning,
    )
    objective = check_choice(moved.pop("objective", "parameters"), "objective", ("parameters", "model"))
    if isinstance(bound, NeuralBound):
        return _with_steps(bound, objective, moved), rest
    moved.pop("bound_steps", None)
    if objective == "model":
        if moved.pop("gradient", "auto") != "auto" or moved.pop("proposal", "prior") != "prior":
            raise ValueError('objective="model" chooses its gradients itself and draws from the models\' priors.')
        return ModelPCE(**moved), rest
    kept = {name: value for name, value in bound.config.items() if isinstance(bound, PCE)}
    return PCE(bound.num_contrastive or 1023, **{**kept, **moved}), rest


def _with_steps(bound: NeuralBound, objective: str, moved: dict[str, Any]) -> NeuralBound:
    if objective != "parameters":
        raise ValueError('objective="model" needs models with a log_likelihood.')
    if moved.get("gradient", "auto") == "score" or moved.get("proposal", "prior") != "prior":
        raise ValueError("a bound with a net inside has neither score-function gradients nor proposals.")
    if "bound_steps" in moved:
        bound.fitting_steps = bound.config["fitting_steps"] = int(moved["bound_steps"])
    if moved.get("max_design_gradient") is not None:
        bound.max_design_gradient = bound.config["max_design_gradient"] = float(moved["max_design_gradient"])
    return bound
