r"""Deep Adaptive Design: train a policy by stochastic gradient ascent on a bound on its information gain.

Foster et al. 2021 (arXiv 2103.02438). Each step simulates a batch of whole experiments under the policy and raises
their sPCE bound. With `prior=` and `history=` the same loop refines a policy in mid-experiment: θ is drawn from a
posterior and only the trials that remain are simulated (Step-DAD, arXiv 2507.14057).
"""

from __future__ import annotations

import math
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
        policy: Policy to train, in place; a `DeepSetsPolicy` if None.
        device: Where to train.
        tracker: An sbi `Tracker` for the bound, learning rate and gradient norm; nothing is written if None.
        show_progress_bars: Whether to show progress with the current bound.
        prior: Where θ is drawn from, if not the simulator's prior: a distribution, or posterior draws (N, P).
        history: Trials already done, (n, D + O + 1), n < T; the policy is trained on those that remain.

    Raises:
        ValueError: If the simulator has no likelihood, or no trial remains.

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
        self.policy = (DeepSetsPolicy(simulator) if policy is None else policy).to(self.device)
        if not any(p.requires_grad for p in self.policy.parameters()):
            raise ValueError(f"{type(self.policy).__name__} has nothing to train.")
        self.history = None
        if history is not None:
            history = check_history(history, simulator.design_dim, simulator.outcome_dim)
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
            gradient: "pathwise" for reparameterised outcomes, "score" for others; "auto" asks the simulator.
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
        loss_function = self._choose_loss(gradient, baseline)
        settings = {
            "num_steps": num_steps,
            "batch_size": batch_size,
            "num_contrastive": num_contrastive,
            "learning_rate": learning_rate,
            "seed": seed,
        }
        if self._tracker is not None:
            self._tracker.log_params(settings)
        optimizer = torch.optim.Adam(self.policy.parameters(), lr=learning_rate)
        self.policy.train()
        with seeded(seed, self.device):
            start = self._restore(checkpoint, settings, optimizer) if resume else 0
            progress = tqdm(
                range(start, num_steps), "training policy", num_steps, initial=start, disable=not self._show_progress_bars
            )
            for step in progress:
                fall = 0.5 * (1 + math.cos(math.pi * step / num_steps))
                rate = learning_rate * (final_learning_rate + (1 - final_learning_rate) * fall)
                bound = self._step(loss_function, optimizer, batch_size, num_contrastive, rate, max_grad_norm)
                if step % 20 == 19 or step == num_steps - 1:
                    self._report(progress, step, bound, rate)
                if checkpoint is not None and ((step + 1) % checkpoint_every == 0 or step == num_steps - 1):
                    self._checkpoint(checkpoint, settings, optimizer, step + 1)
        return self.policy.eval()

    def _choose_loss(self, gradient: str, baseline: Baseline) -> Any:
        if gradient not in ("auto", "pathwise", "score"):
            raise ValueError(f"gradient must be 'auto', 'pathwise' or 'score', got {gradient!r}.")
        if gradient == "pathwise" and not self.simulator.reparameterized:
            raise ValueError("pathwise gradients need a simulator with reparameterized=True.")
        if baseline not in ("prefix", "mean", "none"):
            raise ValueError(f"baseline must be 'prefix', 'mean' or 'none', got {baseline!r}.")
        if gradient == "pathwise" or (gradient == "auto" and self.simulator.reparameterized):
            return pathwise_loss
        return lambda *args: score_function_loss(*args, baseline=baseline)

    def _step(
        self, loss_function: Any, optimizer: Any, batch_size: int, num_contrastive: int, rate: float, max_grad_norm: float
    ) -> Tensor:
        theta = self._sample_theta(batch_size).to(self.device)
        contrastive = self._sample_theta(num_contrastive).to(self.device)
        trials = rollout(self.simulator, self.policy, theta, self.num_trials, self.history)
        loss, bound = loss_function(self.simulator, theta, trials, contrastive)
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
        return bound

    def _report(self, progress: Any, step: int, bound: Tensor, rate: float) -> None:
        value = float(bound)
        self.bounds.append(value)
        smooth = sum(self.bounds[-10:]) / len(self.bounds[-10:])
        progress.set_postfix({"bound (nats)": f"{smooth:.3f}"})
        if self._tracker is not None:
            self._tracker.log_metrics({"information_gain_bound": value, "learning_rate": rate}, step=step)

    def _checkpoint(self, path: str | Path, settings: dict, optimizer: Any, step: int) -> None:
        content = {
            "settings": settings,
            "step": step,
            "weights": self.policy.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random_state": torch.get_rng_state(),
            "bounds": self.bounds,
        }
        save_file(path, "training", content)

    def _restore(self, path: str | Path | None, settings: dict, optimizer: Any) -> int:
        if path is None or not Path(path).exists():
            return 0
        content = load_file(path, "training")
        if content["settings"] != settings:
            raise ValueError(f"{path} is a checkpoint of a training with {content['settings']}, not {settings}.")
        self.policy.load_state_dict(content["weights"])
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random_state"])
        self.bounds = list(content["bounds"])
        return content["step"]
