r"""Deep Adaptive Design: train a policy by stochastic gradient ascent on a bound on its information gain.

Foster et al. 2021 (arXiv 2103.02438). Each step simulates a batch of whole experiments under the policy and raises
their sPCE bound. With `prior=` and `history=` the same loop refines a policy in mid-experiment: θ is drawn from a
posterior and only the trials that remain are simulated (Step-DAD, arXiv 2507.14057).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...objectives.bounds import sampler_of
from ...objectives.losses import Baseline, pathwise_loss, score_function_loss
from ...policies.base import Policy
from ...policies.deep_sets import DeepSetsPolicy
from ...simulators.base import DesignSimulator
from ...simulators.rollout import rollout
from ...utils.checks import check_count
from ...utils.files import load_file, save_file
from ...utils.history import check_history
from ...utils.seeding import seeded

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["DAD"]


class DAD:
    """Trains a design policy.

    Args:
        simulator: Experiment with a likelihood.
        horizon: Number T of trials.
        policy: Policy to train, in place; if None a `DeepSetsPolicy`, built when training starts, under its seed.
        device: Where to train.
        tracker: An sbi `Tracker` for the bound, learning rate and gradient norm; nothing is written if None.
        show_progress_bars: Whether to show progress with the current bound.
        prior: Where θ is drawn from, if not the simulator's prior: a distribution, or posterior draws (N, P).
        history: Trials already done, (n, D + O + 1), n < T; the policy is trained on those that remain.

    Raises:
        TypeError: If the policy is not a `Policy`.
        ValueError: If the simulator has no likelihood, no trial remains, or there is nothing to train.

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
    ):
        if not simulator.has_likelihood:
            raise ValueError("DAD needs a simulator with a log_likelihood.")
        self.simulator = simulator
        self.horizon = check_count(horizon, "horizon")
        self.device = torch.device(device)
        if not (policy is None or isinstance(policy, Policy)):
            raise TypeError(f"DAD trains a Policy, got {policy!r}; give its three methods to a subclass of Policy.")
        self._build_policy = policy is None
        self.policy: Policy = (DeepSetsPolicy(simulator) if policy is None else policy).to(self.device)
        if not any(p.requires_grad for p in self.policy.parameters()):
            raise ValueError(f"{type(self.policy).__name__} has nothing to train.")
        self.history = None
        if history is not None:
            history = check_history(history, simulator.design_dim, simulator.outcome_dim)
            if history.ndim != 2:
                raise ValueError(f"history must be that of one experiment, (n, D + O + 1), got {tuple(history.shape)}.")
            self.history = history[: int(history[:, -1].sum())].to(self.device)
        self.num_trials = self.horizon - (0 if self.history is None else len(self.history))
        if self.num_trials < 1:
            raise ValueError(f"no trial remains of a horizon of {horizon}.")
        self._sample_theta = sampler_of(simulator.prior if prior is None else prior)
        self._tracker = tracker
        self._show_progress_bars = show_progress_bars
        self.bounds: list[float] = []

    def train(
        self,
        num_steps: int = 5000,
        batch_size: int = 512,
        num_contrastive: int = 1023,
        learning_rate: float = 1e-3,
        seed: int | None = None,
        *,
        gradient: Literal["auto", "pathwise", "score"] = "auto",
        baseline: Baseline = "prefix",
        max_grad_norm: float = 1.0,
        final_learning_rate: float = 0.01,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 500,
        resume: bool = False,
    ) -> Policy:
        """Train for `num_steps` steps of Adam; returns the policy, in evaluation mode.

        Args:
            num_steps: Number of gradient steps.
            batch_size: Experiments simulated in each.
            num_contrastive: Contrastive samples L in each; the bound cannot exceed log(L + 1).
            learning_rate: First learning rate; it falls to `final_learning_rate` times that along a cosine.
            seed: Seed of the whole training; the global generator if None.
            gradient: "pathwise" for reparameterised outcomes, "score" for any; "auto" asks the simulator.
            baseline: Control variate of the score-function gradient; see `sbi_bed.objectives.losses`.
            max_grad_norm: Gradients are scaled down to this norm.
            final_learning_rate: Share of the learning rate that is left at the end.
            checkpoint: File that holds the training's state, written every `checkpoint_every` steps and at the end.
            checkpoint_every: Steps between checkpoints.
            resume: Go on from `checkpoint` where it exists; the result is that of an uninterrupted training.

        Raises:
            ValueError: If an argument is out of range, "pathwise" is asked of outcomes that are not reparameterised, the
                checkpoint is of another training, or the bound becomes NaN (the weights are then those before that step).
        """
        num_steps, batch_size = check_count(num_steps, "num_steps"), check_count(batch_size, "batch_size", 2)
        num_contrastive = check_count(num_contrastive, "num_contrastive")
        if not (learning_rate > 0 and math.isfinite(learning_rate)):
            raise ValueError(f"learning_rate must be positive, got {learning_rate}.")
        if resume and checkpoint is None:
            raise ValueError("resume=True needs checkpoint=, the file to go on from.")
        check_count(checkpoint_every, "checkpoint_every")
        if not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be positive, got {max_grad_norm}.")
        if not 0 <= final_learning_rate <= 1:
            raise ValueError(f"final_learning_rate must be a share between 0 and 1, got {final_learning_rate}.")
        learning_rate, max_grad_norm = float(learning_rate), float(max_grad_norm)  # numpy's would not be plain data
        loss_of = self._choose_loss(gradient, baseline)
        settings = {
            "policy": type(self.policy).__name__,
            "num_trials": self.num_trials,
            "num_steps": num_steps,
            "batch_size": batch_size,
            "num_contrastive": num_contrastive,
            "learning_rate": learning_rate,
            "seed": None if seed is None else int(seed),
            "gradient": gradient,
            "baseline": baseline,
            "max_grad_norm": max_grad_norm,
            "final_learning_rate": float(final_learning_rate),
        }
        if self._tracker is not None:
            self._tracker.log_params(settings)
        with seeded(seed, self.device):
            if self._build_policy:  # anew, under the seed
                self.policy, self._build_policy = DeepSetsPolicy(self.simulator).to(self.device), False
            self.policy.train()
            optimizer = torch.optim.Adam(self.policy.parameters(), lr=learning_rate)
            start = self._restore(checkpoint, settings, optimizer) if resume else 0
            progress = tqdm(
                range(start, num_steps),
                "training policy",
                num_steps,
                initial=start,
                disable=not self._show_progress_bars,
            )
            for step in progress:
                fall = 0.5 * (1 + math.cos(math.pi * step / num_steps))
                rate = learning_rate * (final_learning_rate + (1 - final_learning_rate) * fall)
                bound, norm = self._step(loss_of, optimizer, batch_size, num_contrastive, rate, max_grad_norm)
                if step % 20 == 19 or step == num_steps - 1:
                    self._report(progress, step, bound, rate, norm)
                if checkpoint is not None and ((step + 1) % checkpoint_every == 0 or step == num_steps - 1):
                    self._checkpoint(checkpoint, settings, optimizer, step + 1)
        return self.policy.eval()

    def _choose_loss(self, gradient: str, baseline: Baseline) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(theta, contrastive) -> loss, bound, of one simulated batch."""
        if gradient not in ("auto", "pathwise", "score"):
            raise ValueError(f"gradient must be 'auto', 'pathwise' or 'score', got {gradient!r}.")
        if gradient == "pathwise" and not self.simulator.pathwise:
            raise ValueError("pathwise gradients need a simulator with reparameterized=True and no discrete part.")
        if baseline not in ("prefix", "mean", "none"):
            raise ValueError(f"baseline must be 'prefix', 'mean' or 'none', got {baseline!r}.")
        pathwise = gradient == "pathwise" or (gradient == "auto" and self.simulator.pathwise)
        loss_function = pathwise_loss if pathwise else partial(score_function_loss, baseline=baseline)

        # Asked for the score function, score outcomes whole; else differentiate what of them is reparameterised.
        detach_outcomes = True if gradient == "score" else None

        def loss_of(theta: Tensor, contrastive: Tensor) -> tuple[Tensor, Tensor]:
            trials = rollout(
                self.simulator, self.policy, theta, self.num_trials, self.history, detach_outcomes=detach_outcomes
            )
            return loss_function(self.simulator, theta, trials, contrastive)

        return loss_of

    def _step(
        self, loss_of: Any, optimizer: Any, batch_size: int, num_contrastive: int, rate: float, max_grad_norm: float
    ) -> tuple[Tensor, Tensor]:
        """One step; returns the bound and the gradient's norm."""
        theta = self._sample_theta(batch_size).to(self.device)
        contrastive = self._sample_theta(num_contrastive).to(self.device)
        loss, bound = loss_of(theta, contrastive)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), max_grad_norm)
        if not torch.isfinite(norm):
            raise ValueError(
                "the gradient became NaN or infinite: check that log_likelihood is finite and differentiable for all "
                "theta of the prior and all designs of the space."
            )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        return bound, norm

    def _report(self, progress: Any, step: int, bound: Tensor, rate: float, norm: Tensor) -> None:
        value = float(bound)
        self.bounds.append(value)
        smooth = sum(self.bounds[-10:]) / len(self.bounds[-10:])
        progress.set_postfix({"bound (nats)": f"{smooth:.3f}"})
        if self._tracker is not None:
            metrics = {"information_gain_bound": value, "learning_rate": rate, "gradient_norm": float(norm)}
            self._tracker.log_metrics(metrics, step=step)

    def _checkpoint(self, path: str | Path, settings: dict, optimizer: Any, step: int) -> None:
        content = {
            "settings": settings,
            "step": step,
            "weights": self.policy.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random_state": torch.get_rng_state(),
            "device_random_state": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "bounds": self.bounds,
        }
        save_file(path, "training", content)

    def _restore(self, path: str | Path | None, settings: dict, optimizer: Any) -> int:
        if path is None or not Path(path).exists():
            return 0
        content = load_file(path, "training")
        parts = {"settings", "step", "weights", "optimizer", "random_state", "device_random_state", "bounds"}
        if not parts <= content.keys():
            raise ValueError(f"{path} lacks parts of a training.")
        others = {k: v for k, v in content["settings"].items() if settings.get(k) != v}
        if others:
            ours = {k: settings.get(k) for k in others}
            raise ValueError(f"{path} is a checkpoint of a training with {others}, not {ours}.")
        try:
            self.policy.load_state_dict(content["weights"])
        except RuntimeError as err:
            raise ValueError(f"{path} is a checkpoint of another policy: {err}") from err
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random_state"])
        if content["device_random_state"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(content["device_random_state"], self.device)
        self.bounds = list(content["bounds"])
        return content["step"]
