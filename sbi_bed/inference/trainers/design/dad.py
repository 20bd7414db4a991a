r"""Deep Adaptive Design: train a policy by stochastic gradient ascent on a bound on its information gain.

Foster et al. 2021 (arXiv 2103.02438). Each step simulates a batch of whole experiments under the policy and raises a
bound on their gain. With a likelihood the bound is contrastive (`PCE`). Without one it has a net inside, which is trained
with the policy (iDAD, Ivanova et al. 2021, arXiv 2111.02329). With `prior=` and `history=` the same training refines a
policy in mid-experiment: θ is drawn from a posterior, and only the trials that remain are simulated (Step-DAD, arXiv
2507.14057).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ....objectives.base import Bound, NeuralBound
from ....objectives.critics import InfoNCE
from ....objectives.losses import drawn_loss
from ....objectives.pce import PCE
from ....policies.base import Policy
from ....policies.design.static import StaticPolicy
from ....policies.design.transformer import TransformerPolicy
from ....simulators.base import DesignSimulator
from ....simulators.experiments import Experiments
from ....utils.checks import check_count
from ....utils.history import trials_before
from ....utils.warn_user import warn_user
from ..by_steps import StepTrainer
from ..checkpoint import Checkpoint
from ..settings import StepSettings
from .bounded_gradients import BoundedGradients
from .drawn_choices import DrawnChoices
from .moved_arguments import bound_with_moved_arguments
from .policy_report import PolicyReport, report_on

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["DAD"]

_NO_END = 10**7  # steps, where time is what counts
_GROWING = 0.4  # share of a training in which experiments grow to their full length
_REPORTING, _WHOLE_TRAINING = 0.05, 50_000  # share of a time limit; experiments from which a report is made at once
_IMPROVE_AT = 0.5  # share of a training after which a learned likelihood is improved


class DAD(StepTrainer):
    """Trains a design policy.

    Args:
        simulator: The experiment.
        horizon: Number T of trials.
        policy: Policy to train, in place; if None a `TransformerPolicy`, built when training starts, under its seed.
        device: Where to train.
        tracker: An sbi `Tracker` for the bound, learning rate and gradient norm; nothing is written if None.
        show_progress_bars: Whether to show progress with the current bound.
        prior: Where θ is drawn from, if not the simulator's prior: a distribution, or posterior draws (N, P).
        history: Trials already done, (n, D + O + 1), n < T; the policy is trained on those that remain.
        bound: What the policy is trained to raise, from `sbi_bed.objectives`: `PCE(...)` for a simulator with a likelihood,
            also about some parameters (`of=`) or predictions (`target_designs=`); `DecisionUtility` for a decision;
            `ModelPCE(...)` for a `ModelMixture`; without a likelihood `InfoNCE`, `NWJ`, `PosteriorBound`,
            `LikelihoodBound` or `RatioBound`, which have a net inside. If None `PCE()` where there is a likelihood, else
            `InfoNCE(simulator)`, built when training starts, under its seed.
        state: For a simulator with a hidden state in mid-experiment, the states (N, S) that belong to the draws `prior`.

    Attributes:
        policy: The policy.
        bound: The bound.
        experiments: Where simulated experiments come from (`simulators.experiments.Experiments`).
        bounds: The training bound at every twentieth step and at the last, nats.
        num_trials: Trials that the policy is trained on: T, less those already done.

    Raises:
        TypeError: If the policy is not a `Policy`, or the bound not a `Bound`.
        ValueError: If no trial remains, there is nothing to train, or the bound is not for such a simulator.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> trainer = DAD(LocationFinding(), horizon=3, show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, num_contrastive=7, seed=0)
    """

    label, metric, shown_metric = "training policy", "information_gain_bound", "bound"
    advice_about_nan = (
        "check that log_likelihood and the outcomes of the simulator are finite and differentiable for all theta of the "
        "prior and all designs of the space"
    )

    def __init__(
        self,
        simulator: DesignSimulator,
        horizon: int,
        policy: Policy | None = None,
        device: str | torch.device = "cpu",
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        *,
        prior: Any = None,
        history: Tensor | None = None,
        bound: Bound | None = None,
        state: Tensor | None = None,
    ):
        super().__init__(device, tracker, show_progress_bars)
        self.simulator = simulator
        self.horizon = check_count(horizon, "horizon")
        if not (policy is None or isinstance(policy, Policy)):
            raise TypeError(f"DAD trains a Policy, got {policy!r}; give its three methods to a subclass of Policy.")
        if not (bound is None or isinstance(bound, Bound)):
            raise TypeError(f"bound must be a Bound of sbi_bed.objectives, such as PCE(), got {bound!r}.")
        self._to_build = policy is None, bound is None
        self._chooses_bound = bound is None
        self.policy: Policy = (self._new_policy() if policy is None else policy).to(self.device)
        self._check_gradients(bound)
        self.bound: Bound = (self._new_bound() if bound is None else bound).to(self.device)
        if not any(self._parameters(net) for net in self._nets().values()):
            raise ValueError(f"{type(self.policy).__name__} has nothing to train.")
        self.history, self.num_trials = trials_before(
            history, self.horizon, simulator.design_dim, simulator.outcome_dim
        )
        self.experiments = self._experiments(prior, state)
        self.bound.check(self.experiments)
        self._first_trials: int | None = None
        self._is_race, self._report_seed = False, 0
        self._policy_report: PolicyReport | None = None
        self._num_starts = 1

    @property
    def report(self) -> PolicyReport:
        """The policy beside random designs, fixed designs and one-step lookahead, by one judge; made when it is asked for.

        After a training of 50,000 experiments or more it is there already, with a warning if something is wrong.

        Raises:
            ValueError: If nothing was trained, or there are no simple policies to compare with: the training went on from a
                history, had a prior of its own, or a bound on the gain about models.
        """
        if self._policy_report is None:
            if self.num_steps == 0 or not self._can_report:
                raise ValueError(
                    "there is a report on a policy that was trained from the first trial on, under the prior."
                )
            self._policy_report = report_on(
                self.policy, self.simulator, self.horizon, bound=self.bound, seed=self._report_seed
            )
        return self._policy_report

    @property
    def _can_report(self) -> bool:
        plain = self.history is None and not self.experiments.has_own_prior and type(self) is DAD
        plain = plain and self.device.type == "cpu"
        return plain and isinstance(self.bound, (PCE, NeuralBound))

    @property
    def bounds(self) -> list[float]:
        """The training bound at every twentieth step and at the last, nats."""
        return self.reports

    def train(
        self,
        num_steps: int | None = None,
        batch_size: int | None = None,
        num_contrastive: int | None = None,
        learning_rate: float | None = None,
        *,
        seed: int | None = None,
        first_trials: int | None = None,
        num_starts: int = 1,
        **settings: Any,
    ) -> Policy:
        """Train with Adam; returns the policy, in evaluation mode.

        Args:
            num_steps: Number of gradient steps; if None as many as `max_seconds` allows, or 5000 without a time limit.
            batch_size: Experiments simulated in each; if None 256 with a time limit or where a likelihood is learned, else
                512.
            num_contrastive: Contrastive samples L in each; if None those of the bound, and 255 with a time limit if no bound
                was given. A contrastive bound cannot exceed log(L + 1).
            learning_rate: First learning rate; it falls to `final_learning_rate` times that along a cosine, over all steps
                or over the time. If None `policy.learning_rate`: 2e-3, and 2e-2 for a `StaticPolicy`.
            seed: Seed of the whole training; the global generator if None.
            first_trials: Begin with experiments of so many trials, and let them grow to their full length in the first two
                fifths of the training. Early steps are then cheaper, and what they teach carries over.
            num_starts: Sets of weights to begin with. Each is trained for a twentieth of the steps (20 at least) and of the
                time, at the first learning rate; the one whose bound is highest on 1,024 new experiments is trained on. A
                policy may be drawn to one corner of the design space from the start and never leave it; other weights then
                lead elsewhere.
            **settings: `final_learning_rate` (0.01), `clip_max_norm` (1.0), `max_seconds`, `num_shards`, `checkpoint`,
                `checkpoint_every` (500) and `resume`, as for every trainer; see `sbi_bed.inference.StepSettings`.

        Raises:
            TypeError: If a keyword is no setting.
            ValueError: If an argument is out of range, the checkpoint is of another training, or the bound becomes NaN (the
                weights are then those before that step).
        """
        self.bound, settings = bound_with_moved_arguments(self.bound, settings, self.simulator)
        arguments = {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate}
        given = {name: value for name, value in arguments.items() if value is not None}
        is_limited = settings.get("max_seconds") not in (None, math.inf)
        checked = StepSettings.of({**self._suitable(is_limited), **given, "seed": seed, **settings})
        self._first_trials = None if first_trials is None else check_count(first_trials, "first_trials")
        self._num_starts = check_count(num_starts, "num_starts")
        if self._num_starts > 1 and isinstance(self.policy, StaticPolicy):
            raise ValueError(
                "a StaticPolicy has starts of its own: StaticPolicy(..., num_starts=), and train without num_starts."
            )
        if num_contrastive is None and self._chooses_bound and isinstance(self.bound, PCE):
            whole = self._new_bound().num_contrastive
            num_contrastive = min(255, whole) if is_limited and not self.simulator.learns_likelihood else whole
        self._set_num_contrastive(num_contrastive)
        self.bound.check(self.experiments)
        self._policy_report = None
        self._train(checked)
        return self.policy

    # ---- what the loop asks

    def _nets(self) -> dict[str, nn.Module]:
        has_net = next(self.bound.parameters(), None) is not None
        return {"policy": self.policy, "bound": self.bound} if has_net else {"policy": self.policy}

    def _description(self) -> dict[str, Any]:
        return {
            "policy": type(self.policy).__name__,
            "num_trials": self.num_trials,
            "first_trials": self._first_trials,
            "bound": type(self.bound).__name__,
            "num_contrastive": self.bound.num_contrastive,
            **self.bound.config,
            **({"num_starts": self._num_starts} if self._num_starts > 1 else {}),  # earlier checkpoints have none
        }

    def _build(self, settings: StepSettings) -> None:
        self._num_improving = self.simulator.prepare_planning(settings.max_seconds)
        self.experiments.simulator = self.simulator.surrogate
        if self._to_build[0]:
            self.policy = self._new_policy().to(self.device)
        if self._to_build[1] and isinstance(self.bound, NeuralBound):
            self.bound = self._new_bound().to(self.device)
        self._to_build = False, False

    def _more_state(self) -> dict[str, Any]:
        if not self.simulator.learns_likelihood:
            return {}
        return {"learned": self.simulator.learned_state(), "num_improving": self._num_improving}

    def _recall(self, kept: dict[str, Any]) -> None:
        if self.simulator.learns_likelihood:
            self.simulator.restore_learned(kept["learned"])

    def _restore(self, kept: dict[str, Any], file: Checkpoint) -> None:
        super()._restore(kept, file)
        if self.simulator.learns_likelihood:
            self._num_improving = kept["num_improving"]

    def _choose_start(self, settings: StepSettings) -> None:
        if self._num_starts == 1:
            return
        limit = None if settings.max_seconds is None else settings.max_seconds / 20
        of_one = {"num_steps": max(20, settings.num_steps // 20), "max_seconds": limit}
        # The rate does not fall: a start that would fail at the full rate has to fail here.
        short = dataclasses.replace(
            settings, seed=None, checkpoint=None, resume=False, final_learning_rate=1.0, **of_one
        )
        trials = []
        for start in range(self._num_starts):
            trial = copy.copy(self)
            trial._num_starts, trial._tracker, trial.reports, trial._is_race = 1, None, [], True
            trial.label = f"start {start + 1} of {self._num_starts}"
            trial.policy, trial.bound = copy.deepcopy(self.policy), copy.deepcopy(self.bound)
            if start > 0:
                trial.policy = type(self.policy).rebuild(self.policy.config, self.simulator).to(self.device)
            trial._train(short)
            trials.append((float(trial._mean_terms()), trial))
        best = max(trials, key=lambda pair: pair[0])[1]
        self.policy.load_state_dict(best.policy.state_dict())
        self.bound.load_state_dict(best.bound.state_dict())

    def _before_step(self, done: float) -> None:
        if self._num_improving and done > _IMPROVE_AT:
            self._improve_likelihood()
        if not isinstance(self.bound, NeuralBound):
            return
        bound, num_trials = self.bound, self._num_trials_at(done)

        def fitting_loss(num: int) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                batch = self.experiments.run(self.policy, num, num_trials=num_trials)
            loss = bound.fitting_loss(batch.theta, self.experiments.histories(batch))
            return loss, loss.detach()

        for extra in range(1, bound.fitting_steps + 1):
            self._set_gradients(fitting_loss, {"bound": bound}, self.num_steps, extra)
            self._optimizer.step()  # the policy has no gradients, and stays as it is

    def _loss(self, num: int, done: float) -> tuple[Tensor, Tensor]:
        largest, space, policy = self.bound.max_design_gradient, self.simulator.design_space, self.policy
        drawn: Any = DrawnChoices(policy, space) if DrawnChoices.suits(policy, space) else None
        proposing: Any = policy if drawn is None else drawn
        bounded: Any = BoundedGradients(proposing, space, largest) if largest < math.inf else proposing
        batch = self.experiments.run(bounded, num, self.bound.detach_outcomes, self._num_trials_at(done))
        if drawn is not None:
            batch = batch._replace(log_choices=drawn.log_choices(batch.trials.designs.shape[-2]))
        loss, terms = self.bound.training_loss(batch, self.experiments)
        if batch.log_choices is not None and not self.bound.scores_choices:
            loss = loss + drawn_loss(terms, batch.log_choices)
        return loss, terms.mean()

    def _finish(self) -> None:
        """Of a static policy's lists of designs keep that whose bound is highest, on 1,024 new histories of each; report."""
        policy, settings = self.policy, self._settings
        if isinstance(policy, Policy):
            policy.trained_horizon = max(self.horizon, policy.trained_horizon or 0)
        if isinstance(policy, StaticPolicy) and policy.num_starts > 1:
            policy.keep_start(int(self._mean_terms(policy.num_starts).argmax()))
        self._report_seed = int(torch.randint(2**31, ()))
        if not self._is_reported(settings):
            return
        limit = None if settings.max_seconds is None else max(0.1, settings.max_seconds - self._seconds)
        policy.eval()
        try:
            report = report_on(
                policy, self.simulator, self.horizon, bound=self.bound, seed=self._report_seed, max_seconds=limit
            )
        except (RuntimeError, TypeError, ValueError) as err:  # the training is done, and must not be lost
            warn_user(f"the policy is trained, but could not be compared with simple ones: {err}")
            return
        self._policy_report = report
        if self._show_progress_bars:
            print(report)
        if report.problems:
            warn_user(
                "the training may have failed: "
                + "; ".join(report.problems)
                + ". See DAD.report; try num_starts=4, more "
                "steps, another learning_rate, or GreedyPolicy, which needs no training."
            )

    def _share_after(self, settings: StepSettings) -> float:
        return _REPORTING if self._is_reported(settings) else 0.0

    def _is_reported(self, settings: StepSettings) -> bool:
        """Whether the report is made at once: after a whole training, by one process, towards the gain about theta."""
        is_whole = settings.num_steps * settings.batch_size >= _WHOLE_TRAINING
        return is_whole and self._can_report and not self._is_race and self._shards.num_processes == 1

    # ---- pieces

    def _suitable(self, is_limited: bool) -> dict[str, Any]:
        """Settings for those that are not given. In a limited time, many small steps lead further than few large ones."""
        batch_size = 256 if is_limited or self.simulator.learns_likelihood else 512
        num_steps = _NO_END if is_limited else 5000
        return {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": self.policy.learning_rate}

    @torch.no_grad()
    def _mean_terms(self, num_starts: int = 1) -> Tensor:
        """Mean bound (num_starts,) on 1,024 new experiments of each start of the policy, which take turns in a batch."""
        per_batch = max(1, self._settings.batch_size // num_starts)
        num_batches, total = math.ceil(1024 / per_batch), torch.zeros(num_starts, device=self.device)
        for _ in range(num_batches):
            batch = self.experiments.run(self.policy, per_batch * num_starts)
            terms = self.bound.training_loss(batch, self.experiments)[1]
            total += terms.unflatten(0, (per_batch, num_starts)).mean(0) / num_batches
        self._shards.sum([total])
        return total

    @torch.no_grad()
    def _improve_likelihood(self) -> None:
        """Let the simulator learn its likelihood where the policy goes."""
        num = max(1, self._num_improving // self.num_trials)
        theta, (designs, _), *_ = self.experiments.run(self.policy, num)
        rows = theta.unsqueeze(1).expand(-1, self.num_trials, -1).flatten(0, 1), designs.flatten(0, 1)
        seed = int(torch.randint(2**31, ()))  # for numpy's generator, too, whose state no checkpoint holds
        self.simulator.improve_likelihood(*rows, seed=seed, max_seconds=self._settings.max_seconds)
        self._num_improving = 0

    def _new_policy(self) -> Policy:
        return TransformerPolicy(self.simulator, self.horizon)

    def _new_bound(self) -> Bound:
        if self.simulator.learns_likelihood:
            return PCE(num_contrastive=511)
        return PCE() if self.simulator.has_likelihood else InfoNCE(self.simulator)

    def _experiments(self, prior: Any, state: Tensor | None) -> Experiments:
        return Experiments(self.simulator, self.num_trials, self.history, prior, state, self.device)

    def _check_gradients(self, bound: Bound | None) -> None:
        """A net inside a bound sends gradients through outcomes that are reparameterised, or scores their likelihood."""
        by_net = isinstance(bound, NeuralBound) or (bound is None and not self.simulator.has_likelihood)
        usable = self.simulator.pathwise or self.simulator.has_likelihood
        if by_net and self._parameters(self.policy) and not usable:
            raise ValueError(
                "DAD needs a simulator with a log_likelihood, one made by process_design_simulator, which learns it, or one "
                "with reparameterized=True, through whose outcomes a bound with a net inside can be raised."
            )
        if self.simulator.reparameterized and not getattr(bound, "detach_outcomes", None):
            self.simulator.check_gradients()

    def _num_trials_at(self, done: float) -> int:
        """Trials simulated after a share `done` of the training."""
        first = self.num_trials if self._first_trials is None else min(self._first_trials, self.num_trials)
        return min(self.num_trials, first + int((self.num_trials - first) * done / _GROWING))

    def _set_num_contrastive(self, num_contrastive: int | None) -> None:
        if num_contrastive is None:
            return
        num_contrastive = check_count(num_contrastive, "num_contrastive")
        if self.bound.num_contrastive is None:
            name = type(self.bound).__name__
            warn_user(f"num_contrastive has no effect: {name} contrasts with the rest of the batch, see batch_size.")
            return
        self.bound.num_contrastive = num_contrastive
