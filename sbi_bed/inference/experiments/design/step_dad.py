"""Step-DAD (arXiv 2507.14057): a live experiment whose policy is refined from the data so far.

After each number of trials in `refine_after` the next call of `next_design` infers p(θ | history), refines a copy of the
policy for the trials that remain, and goes on with it where it is better on held-out draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ....objectives.base import Bound
from ....policies.base import Policy
from ....simulators.base import DesignSimulator
from ....utils.checks import check_count
from ....utils.renamed import renamed_arguments
from ...trainers.design.refinement import Refinement, refine_policy
from .adaptive import AdaptiveExperiment
from .running_policy import RunningPolicy

__all__ = ["StepDAD"]


class StepDAD(AdaptiveExperiment):
    """An `AdaptiveExperiment` that refines its policy while it runs.

    Args:
        policy: Trained policy with weights, e.g. from `DAD`.
        simulator: The experiment. Its prior is the one that is inferred with: give it the prior of the people at hand,
            also where the policy was trained under another.
        horizon: Largest number T of trials.
        refine_after: Numbers of trials in [0, T) after which the policy is refined; about 0.6 T is usually best.
        journal: New file that trials and refined policies are written to.
        refine_seconds: Time budget of one refinement, inference included, instead of a number of steps: the longest that
            `next_design` makes anyone wait. What a refined design is then depends on the machine.
        posterior: For a simulator without a likelihood, a trained sbi posterior over histories padded to the horizon.
        bound: The bound that the policy was trained with, `DAD(...).bound`: a refinement then has the same aim. If None the
            gain about all of theta, which needs a likelihood.
        refine_settings: Further arguments of `refine_policy` (num_steps, batch_size, sample_with, …), plain data.
        show_progress_bars: Whether to show the progress of refinements.
        **options: As for `AdaptiveExperiment`.

    Attributes:
        refinements: What each refinement of this process did, in order.

    Raises:
        ValueError: If `refine_after` is not within [0, T), there is neither likelihood nor posterior, or as
            `AdaptiveExperiment` does.

    Example:
        >>> import torch
        >>> from sbi_bed.policies import DeepSetsPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> few = {"num_steps": 5, "num_particles": 256, "num_held_out": 64}
        >>> options = {"refine_settings": few, "seed": 0, "show_progress_bars": False}
        >>> experiment = StepDAD(DeepSetsPolicy(simulator), simulator, 3, refine_after=(2,), **options)
        >>> while not experiment.done:
        ...     experiment.record(simulator(torch.zeros(2), experiment.next_design()))
        >>> len(experiment.refinements)
        1
    """

    @renamed_arguments(refinement="refine_settings")
    def __init__(
        self,
        policy: Policy,
        simulator: DesignSimulator,
        horizon: int,
        refine_after: Sequence[int] = (6,),
        journal: str | Path | None = None,
        *,
        refine_seconds: float | None = None,
        posterior: Any = None,
        bound: Bound | None = None,
        refine_settings: dict[str, Any] | None = None,
        show_progress_bars: bool = True,
        **options: Any,
    ):
        refine_after = tuple(check_count(n, "refine_after", 0) for n in refine_after)
        if not refine_after or max(refine_after) >= horizon:
            raise ValueError(f"refine_after must name trials within [0, {horizon}), got {refine_after}.")
        if refine_seconds is not None and not refine_seconds > 0:
            raise ValueError(f"refine_seconds must be positive, got {refine_seconds}.")
        if options.get("num_experiments") is not None:
            raise ValueError("each experiment needs a policy of its own: use step_dad_information_gain for many.")
        self.refine_after = refine_after
        self.refine_settings = {"show_progress_bars": show_progress_bars, **(refine_settings or {})}
        self.refine_seconds = None if refine_seconds is None else float(refine_seconds)
        self._trained = ({} if posterior is None else {"sample_with": posterior}) | {"bound": bound}
        self._options = {
            "refine_after": list(refine_after),
            "refine_seconds": self.refine_seconds,
            "refine_settings": self.refine_settings,
        }
        self.refinements: list[Refinement] = []
        super().__init__(policy, simulator, horizon, journal, **options)

    def _before_proposal(self) -> None:
        done = max((change["num_trials"] for change in self._state.changes if "accepted" in change), default=-1)
        if not any(done < number <= self.num_trials for number in self.refine_after):
            return
        step = refine_policy(
            cast(Policy, self.policy),
            self.simulator,
            self.horizon,
            self.history[: self.num_trials],
            max_seconds=self.refine_seconds,
            seed=self.seed_for(f"refinement {self.num_trials}"),
            **{**self.refine_settings, **self._trained},
        )
        self.refinements.append(step)
        self._adopt_policy(
            step.policy if step.accepted else None,
            accepted=step.accepted,
            gain_before=step.gain_before,
            gain_after=step.gain_after,
        )

    def _check_options(self, simulator: DesignSimulator) -> None:
        super()._check_options(simulator)
        if not simulator.has_likelihood and "sample_with" not in self._trained:
            raise ValueError(
                "Step-DAD needs a simulator with a log_likelihood, or posterior=, a trained sbi posterior over histories."
            )

    def _running_policy(self, policy: Any, simulator: DesignSimulator, horizon: int) -> RunningPolicy:
        if not isinstance(policy, Policy) or not any(p.requires_grad for p in policy.parameters()):
            raise TypeError(f"Step-DAD refines a policy with weights, got {policy!r}.")
        return super()._running_policy(policy, simulator, horizon)
