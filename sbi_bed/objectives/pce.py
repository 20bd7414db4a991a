"""The contrastive bound of Deep Adaptive Design as an object: where contrastive samples come from, and which gradient.

    PCE = E[ log p(h | θ_0) − log 1/(L+1) Σ_{l=0..L} p(h | θ_l) ]  ≤  EIG        (Foster et al. 2021, arXiv 2103.02438).

The sums are in `contrastive.py`, the gradients in `losses.py`, samples near the truth in `proposals.py`. `targets.py` has
the bounds on what is learned about some parameters, or about outcomes to be predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from ..simulators.experiments import Batch, Experiments
from ..utils.checks import check_choice, check_count
from .base import Bound
from .bounds import estimate_target_bounds
from .losses import Baseline, log_prob_of_drawn, pathwise_loss, score_function_loss, score_function_surrogate
from .proposals import LocalProposal
from .targets import target_of

__all__ = ["PCE"]


class PCE(Bound):
    """Prior contrastive estimate, for simulators with a likelihood: what `DAD` raises by default.

    Args:
        num_contrastive: Contrastive samples L of each history; the bound cannot exceed log(L + 1).
        proposal: Where they come from: "prior", or "local", half of them from near the truth, for gains well above log L.
            With "local" the bound is an upper one; see `LocalProposal`. With `of` or `target_designs` "local" is neither a
            lower nor an upper bound, but close to the gain; "prior" is a lower one, which is misleading where the gain
            about theta comes near log L. If None "prior"; with `of` or `target_designs` "local", where the prior has a
            density.
        gradient: "pathwise" for reparameterised outcomes, "score" for any; "auto" asks the simulator.
        baseline: Control variate of the score-function gradient, see `score_function_loss`.
        max_design_gradient: As for `Bound`.
        compile: Whether to run the bound through `torch.compile`; see `log_sum_likelihood`.
        of: The parameters that the experiment is to tell about, all others a nuisance: indices of theta, or names where the
            simulator has `parameter_names`. All of theta if None.
        target_designs: Designs (J, D) at which outcomes are to be predicted, instead ("EPIG"): the gain is the mean
            information about one new outcome at a random one of them.

    Attributes:
        num_contrastive: As above.
        detach_outcomes: Whether outcomes pass on no gradient, which with "score" they do not.
        target: What `of` or `target_designs` describe, or None.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from sbi_bed.inference import DAD
        >>> from sbi_bed.simulators import LocationFinding
        >>> trainer = DAD(LocationFinding(), 2, bound=PCE(15, proposal="local"), show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, seed=0)

        Where is the source from left to right, and how strong is the signal at two places?

        >>> trainer = DAD(LocationFinding(), 2, bound=PCE(15, of=[0]), show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, seed=0)
        >>> bound = PCE(15, target_designs=[[0.0, 0.0], [1.0, 1.0]])
        >>> policy = DAD(LocationFinding(), 2, bound=bound, show_progress_bars=False).train(2, 8, seed=0)
    """

    scores_choices = True

    def __init__(
        self,
        num_contrastive: int = 1023,
        proposal: Literal["prior", "local"] | None = None,
        gradient: Literal["auto", "pathwise", "score"] = "auto",
        baseline: Baseline = "prefix",
        max_design_gradient: float | None = 1.0,
        compile: bool = False,
        *,
        of: Sequence[int | str] | None = None,
        target_designs: Any = None,
    ):
        check_choice(proposal, "proposal", ("prior", "local", None))
        check_choice(gradient, "gradient", ("auto", "pathwise", "score"))
        check_choice(baseline, "baseline", ("prefix", "mean", "none"))
        self.target = target_of(of, target_designs)
        aim: dict[str, Any] = {} if self.target is None else self.target.description
        super().__init__(
            max_design_gradient,
            proposal="prior" if proposal is None and self.target is None else proposal,
            gradient=gradient,
            baseline=baseline,
            compile=bool(compile),
            **aim,
        )
        self.has_aim = self.target is not None
        self.lookahead = {} if self.target is None else self.target.lookahead
        self.num_contrastive = check_count(num_contrastive, "num_contrastive")
        self.detach_outcomes = True if gradient == "score" else None
        self._gradient, self._compile = gradient, bool(compile)
        self._baseline: Baseline = baseline
        self._proposal, self._local = proposal, None

    def check(self, experiments: Experiments) -> None:
        """Check that there is a likelihood, and what gradient and proposal need.

        Raises:
            ValueError: If not.
        """
        simulator = experiments.simulator
        if not simulator.has_likelihood:
            raise ValueError(
                "PCE needs a simulator with a log_likelihood; without one use InfoNCE or another NeuralBound."
            )
        if self._gradient == "pathwise" and not simulator.pathwise:
            raise ValueError("pathwise gradients need a simulator with reparameterized=True and no discrete part.")
        has_density = hasattr(experiments.prior, "log_prob")
        if self._proposal == "local" and not has_density:
            raise ValueError('proposal="local" needs the density of the prior, and draws have none.')
        if self.target is not None:
            self.target.check(experiments)
        is_local = self._proposal == "local" or (self._proposal is None and self.target is not None and has_density)
        self._local = LocalProposal(experiments.prior) if is_local else None

    def held_out(self, experiments: Experiments, policy: Any, num: int, num_contrastive: int | None = None) -> Tensor:
        """Terms (num,) of new experiments, with draws of the prior, whose mean is a lower bound on the gain."""
        if self.target is None:
            return super().held_out(experiments, policy, num, num_contrastive)
        return estimate_target_bounds(experiments, policy, self.target, num, num_contrastive or num).lower_samples

    def training_loss(self, batch: Batch, experiments: Experiments) -> tuple[Tensor, Tensor]:
        """Loss and terms, pathwise or by the score function."""
        simulator, log_weights = experiments.simulator, None
        if self._local is None:
            contrastive = experiments.sample_contrastive(batch, self.num_contrastive)
        else:
            contrastive, log_weights = self._local.sample(batch.theta, self.num_contrastive)
        is_pathwise = self._gradient == "pathwise" or (self._gradient == "auto" and simulator.pathwise)
        if self.target is not None:
            bounds = self.target.bounds(experiments, batch, contrastive, log_weights, compile=self._compile)
            if is_pathwise and batch.log_choices is None:
                return -bounds[:, -1].mean(), bounds[:, -1].detach()
            scored = log_prob_of_drawn(simulator, batch.theta, batch.trials)
            scored = scored if batch.log_choices is None else scored + batch.log_choices
            return score_function_surrogate(bounds, scored, self._baseline), bounds[:, -1].detach()
        options: dict[str, Any] = {"log_weights": log_weights, "compile": self._compile}
        if is_pathwise and batch.log_choices is None:
            return pathwise_loss(simulator, batch.theta, batch.trials, contrastive, **options)
        options["log_choices"] = batch.log_choices
        return score_function_loss(simulator, batch.theta, batch.trials, contrastive, self._baseline, **options)
