r"""Deep Adaptive Design: train a policy by stochastic gradient ascent on a bound on its information gain.

Foster et al. 2021 (arXiv 2103.02438). Each step simulates a batch of whole experiments under the policy and raises a
bound on their gain: where the simulator has a likelihood, a contrastive one; else one with a net inside that is trained
along with the policy (iDAD, Ivanova et al. 2021, arXiv 2111.02329). With `prior=` and `history=` the same loop refines a
policy in mid-experiment: θ is drawn from a posterior and only the trials that remain are simulated (Step-DAD, arXiv
2507.14057).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ....objectives.critics import InfoNCE, NeuralBound
from ....objectives.losses import Baseline
from ....policies.base import Policy
from ....policies.design.static import StaticPolicy
from ....policies.design.transformer import TransformerPolicy
from ....simulators.base import DesignSimulator
from ....utils.checks import check_count
from ....utils.files import rebuilding
from ....utils.history import trials_before
from ....utils.seeding import seeded
from ..checkpoint import check_checkpoint_arguments, read_checkpoint, restore_random_state, write_checkpoint
from ..settings import TrainingSettings
from ..steps import Steps
from .distributed import Shards
from .policy_step import Experiments, PolicyStep

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["DAD"]

_KIND = "training"


class DAD:
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
        bound: A bound with a net inside, trained with the policy, for simulators without a likelihood: one of
            `sbi_bed.objectives.InfoNCE`, `NWJ`, `PosteriorBound`, `LikelihoodBound`, `RatioBound`. If None the
            contrastive bound where there is a likelihood, else `InfoNCE(simulator)`.
        state: For a simulator with a hidden state in mid-experiment, the states (N, S) that belong to the draws `prior`.

    Attributes:
        bound: The bound with a net inside, or None.
        bounds: The training bound at every twentieth step, nats.
        num_steps: Steps done.
        num_trials: Trials that the policy is trained on: T, less those already done.

    Raises:
        TypeError: If the policy is not a `Policy`, or the bound not a `NeuralBound`.
        ValueError: If no trial remains, there is nothing to train, or the simulator's outcomes do not suit the bound.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> trainer = DAD(LocationFinding(), horizon=3, show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, num_contrastive=7, seed=0)
    """

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
        bound: NeuralBound | None = None,
        state: Tensor | None = None,
    ):
        self.simulator = simulator
        self.horizon = check_count(horizon, "horizon")
        self.device = torch.device(device)
        if not (policy is None or isinstance(policy, Policy)):
            raise TypeError(f"DAD trains a Policy, got {policy!r}; give its three methods to a subclass of Policy.")
        if not (bound is None or isinstance(bound, NeuralBound)):
            raise TypeError(f"bound must be a NeuralBound of sbi_bed.objectives, got {bound!r}.")
        if bound is not None or not simulator.has_likelihood:
            trains_policy = policy is None or any(p.requires_grad for p in policy.parameters())
            if trains_policy and not simulator.pathwise:
                raise ValueError(
                    "DAD needs a simulator with a log_likelihood, or one with reparameterized=True, through whose outcomes "
                    "a bound with a net inside can be raised."
                )
        self._build = policy is None, bound is None and not simulator.has_likelihood
        self.policy: Policy = (TransformerPolicy(simulator, self.horizon) if policy is None else policy).to(self.device)
        self.bound = InfoNCE(simulator).to(self.device) if self._build[1] else bound and bound.to(self.device)
        if not self._parameters():
            raise ValueError(f"{type(self.policy).__name__} has nothing to train.")
        history, self.num_trials = trials_before(history, self.horizon, simulator.design_dim, simulator.outcome_dim)
        self.history = None if history is None else history.to(self.device)
        prior = simulator.prior if prior is None else prior
        self._experiments = Experiments(simulator, self.num_trials, self.history, prior, state, self.device)
        self._tracker = tracker
        self._show_progress_bars = show_progress_bars
        self.bounds: list[float] = []
        self.num_steps = 0

    def train(
        self,
        num_steps: int = 5000,
        batch_size: int = 512,
        num_contrastive: int = 1023,
        learning_rate: float = 1e-3,
        seed: int | None = None,
        *,
        objective: Literal["parameters", "model"] = "parameters",
        gradient: Literal["auto", "pathwise", "score"] = "auto",
        baseline: Baseline = "prefix",
        proposal: Literal["prior", "local"] = "prior",
        max_design_gradient: float | None = None,
        clip_max_norm: float | None = 1.0,
        compile: bool = False,
        num_shards: int | None = None,
        final_learning_rate: float = 0.01,
        max_seconds: float | None = None,
        bound_steps: int = 0,
        first_trials: int | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
        resume: bool = False,
    ) -> Policy:
        """Train for `num_steps` steps of Adam; returns the policy, in evaluation mode.

        Args:
            num_steps: Number of gradient steps.
            batch_size: Experiments simulated in each.
            num_contrastive: Contrastive samples L in each; the bound cannot exceed log(L + 1). Bounds with a net inside
                have samples of their own.
            learning_rate: First learning rate; it falls to `final_learning_rate` times that along a cosine.
            seed: Seed of the whole training; the global generator if None.
            objective: What the experiment is to tell: "parameters", all of theta; or for a `ModelMixture` "model", which of
                its models holds, whatever the parameters, with `num_contrastive` samples shared out among the models; see
                `sbi_bed.objectives.model_gain`.
            gradient: "pathwise" for reparameterised outcomes, "score" for any; "auto" asks the simulator.
            baseline: Control variate of the score-function gradient; see `sbi_bed.objectives.losses`.
            proposal: Where contrastive samples come from: "prior", or "local", half of them from near the truth, for
                gains well above log L; see `sbi_bed.objectives.proposals`.
            max_design_gradient: Largest norm of the gradient that one history sends into one design; see
                `sbi_bed.policies.design.bounded_gradients`. If None 1 with a likelihood; unbounded with a net inside the
                bound, whose own smoothness bounds them.
            clip_max_norm: Largest norm of gradients of the policy, and of a net inside the bound; None for no limit.
            compile: Whether to run the bound through `torch.compile`; see `log_sum_likelihood`.
            num_shards: Parts that each batch is simulated in: one after the other, or side by side in the processes that
                `torchrun` starts. One for each process if None.
            final_learning_rate: Share of the learning rate that is left at the end.
            max_seconds: Stop after so many seconds at the latest; the learning rate falls accordingly.
            bound_steps: Steps that a net inside the bound takes alone, on new histories, before each step of both. They are
                cheap, since nothing is differentiated through designs.
            first_trials: Begin with experiments of so many trials, and let them grow to their full length in the first two
                fifths of the training: early steps are then cheaper, and what they teach carries over.
            checkpoint: File that holds the training's state, written every `checkpoint_every` steps and at the end.
            checkpoint_every: Steps between checkpoints.
            resume: Go on from `checkpoint` where it exists; the result is that of an uninterrupted training.

        Raises:
            ValueError: If an argument is out of range, "pathwise" is asked of outcomes that are not reparameterised, the
                checkpoint is of another training, or the bound becomes NaN (the weights are then those before that step).
        """
        settings = TrainingSettings.of(locals())
        check_checkpoint_arguments(checkpoint, checkpoint_every, resume)
        description = {"policy": type(self.policy).__name__, "num_trials": self.num_trials, **settings.as_plain_data()}
        if self._tracker is not None:
            self._tracker.log_params(description)
        with seeded(settings.seed, self.device):
            shards = Shards(settings.num_shards, self.device)
            if settings.batch_size % shards.num_shards:
                raise ValueError(f"a batch of {batch_size} cannot be cut into {shards.num_shards} equal shards.")
            self._build_nets()
            shards.share(self._parameters())
            optimizer = torch.optim.Adam(self._parameters(), lr=settings.learning_rate)
            start = self._restore(checkpoint, description, optimizer) if resume else 0
            step_of = PolicyStep(self._experiments, self.policy, self.bound, settings, shards, optimizer)
            first = shards.rank == 0  # of the processes: it shows and writes
            show = self._show_progress_bars and first
            steps = Steps(settings.num_steps, "training policy", start, settings.max_seconds, show=show)
            for step, done in steps:
                bound, norm = step_of(step, done)
                self.num_steps = step + 1
                if steps.every(20):
                    self._report(steps, step, bound, settings.learning_rate_at(done), norm)
                if checkpoint is not None and first and steps.every(checkpoint_every):
                    self._keep(checkpoint, description, optimizer)
            if isinstance(self.policy, StaticPolicy) and self.policy.num_starts > 1:
                self._keep_best_start(self.policy, settings, step_of)
        return self.policy.eval()

    @torch.no_grad()
    def _keep_best_start(self, policy: StaticPolicy, settings: TrainingSettings, step_of: PolicyStep) -> None:
        """Leave the list of designs whose bound is highest, on at least 1,024 new histories of each."""
        total = torch.zeros(policy.num_starts, device=self.device)
        per_batch = max(1, settings.batch_size // policy.num_starts)
        for _ in range(math.ceil(1024 / per_batch)):
            terms = step_of.objective(*step_of.experiments.run(policy, per_batch * policy.num_starts))[1]
            total += terms.unflatten(0, (per_batch, policy.num_starts)).mean(0)
        step_of.shards.sum([total])
        policy.keep_start(int(total.argmax()))

    # ---- nets, reports, checkpoints

    def _build_nets(self) -> None:
        """Build what was left to us anew, under the seed."""
        if self._build[0]:
            self.policy = TransformerPolicy(self.simulator, self.horizon).to(self.device)
        if self._build[1]:
            self.bound = InfoNCE(self.simulator).to(self.device)
        self._build = False, False
        for net in self._nets().values():
            net.train()

    def _nets(self) -> dict[str, nn.Module]:
        nets: dict[str, nn.Module] = {"policy": self.policy}
        return nets if self.bound is None else nets | {"bound": self.bound}

    def _parameters(self) -> list[nn.Parameter]:
        return [p for net in self._nets().values() for p in net.parameters() if p.requires_grad]

    def _report(self, steps: Steps, step: int, bound: Tensor, rate: float, norm: Tensor) -> None:
        value = float(bound)
        self.bounds.append(value)
        steps.say("bound (nats)", self.bounds)
        if self._tracker is not None:
            metrics = {"information_gain_bound": value, "learning_rate": rate, "gradient_norm": float(norm)}
            self._tracker.log_metrics(metrics, step=step)

    def _keep(self, path: str | Path, description: dict, optimizer: torch.optim.Optimizer) -> None:
        weights = {name: net.state_dict() for name, net in self._nets().items()}
        state = {"step": self.num_steps, "weights": weights, "optimizer": optimizer.state_dict(), "bounds": self.bounds}
        write_checkpoint(path, _KIND, description, state, self.device)

    def _restore(self, path: str | Path | None, description: dict, optimizer: torch.optim.Optimizer) -> int:
        content = read_checkpoint(path, _KIND, description, {"step", "weights", "optimizer", "bounds"})
        if content is None:
            return 0
        with rebuilding(str(path)):
            try:
                for name, net in self._nets().items():
                    net.load_state_dict(content["weights"][name])
            except (RuntimeError, KeyError) as err:
                raise ValueError(f"{path} is a checkpoint of another policy: {err}") from err
            optimizer.load_state_dict(content["optimizer"])
            restore_random_state(content, self.device)
            self.bounds = list(content["bounds"])
            return check_count(content["step"], "step", 0)
