"""The contrastive bound of Deep Adaptive Design as an object: where contrastive samples come from, and which gradient.

    PCE = E[ log p(h | θ_0) − log 1/(L+1) Σ_{l=0..L} p(h | θ_l) ]  ≤  EIG        (Foster et al. 2021, arXiv 2103.02438).

The sums are in `contrastive.py`, the gradients in `losses.py`, samples near the truth in `proposals.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ..simulators.experiments import Batch, Experiments
from ..utils.checks import check_choice, check_count
from .base import Bound
from .losses import Baseline, pathwise_loss, score_function_loss
from .proposals import LocalProposal

__all__ = ["PCE"]


class PCE(Bound):
    """Prior contrastive estimate, for simulators with a likelihood: what `DAD` raises by default.

    Args:
        num_contrastive: Contrastive samples L of each history; the bound cannot exceed log(L + 1).
        proposal: Where they come from: "prior", or "local", half of them from near the truth, for gains well above log L.
            With "local" the bound is an upper one; see `LocalProposal`.
        gradient: "pathwise" for reparameterised outcomes, "score" for any; "auto" asks the simulator.
        baseline: Control variate of the score-function gradient, see `score_function_loss`.
        max_design_gradient: As for `Bound`.
        compile: Whether to run the bound through `torch.compile`; see `log_sum_likelihood`.

    Attributes:
        num_contrastive: As above.
        detach_outcomes: Whether outcomes pass on no gradient, which with "score" they do not.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from sbi_bed.inference import DAD
        >>> from sbi_bed.simulators import LocationFinding
        >>> trainer = DAD(LocationFinding(), 2, bound=PCE(15, proposal="local"), show_progress_bars=False)
        >>> policy = trainer.train(num_steps=2, batch_size=8, seed=0)
    """

    scores_choices = True

    def __init__(
        self,
        num_contrastive: int = 1023,
        proposal: Literal["prior", "local"] = "prior",
        gradient: Literal["auto", "pathwise", "score"] = "auto",
        baseline: Baseline = "prefix",
        max_design_gradient: float | None = 1.0,
        compile: bool = False,
    ):
        check_choice(proposal, "proposal", ("prior", "local"))
        check_choice(gradient, "gradient", ("auto", "pathwise", "score"))
        check_choice(baseline, "baseline", ("prefix", "mean", "none"))
        super().__init__(
            max_design_gradient, proposal=proposal, gradient=gradient, baseline=baseline, compile=bool(compile)
        )
        self.num_contrastive = check_count(num_contrastive, "num_contrastive")
        self.detach_outcomes = True if gradient == "score" else None
        self._gradient, self._compile = gradient, bool(compile)
        self._baseline: Baseline = baseline
        self._is_local, self._local = proposal == "local", None

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
        if self._is_local:
            if not hasattr(experiments.prior, "log_prob"):
                raise ValueError('proposal="local" needs the density of the prior, and draws have none.')
            self._local = LocalProposal(experiments.prior)

    def training_loss(self, batch: Batch, experiments: Experiments) -> tuple[Tensor, Tensor]:
        """Loss and terms, pathwise or by the score function."""
        simulator, log_weights = experiments.simulator, None
        if self._local is None:
            contrastive = experiments.sample_contrastive(batch, self.num_contrastive)
        else:
            contrastive, log_weights = self._local.sample(batch.theta, self.num_contrastive)
        options: dict[str, Any] = {"log_weights": log_weights, "compile": self._compile}
        is_pathwise = self._gradient == "pathwise" or (self._gradient == "auto" and simulator.pathwise)
        if is_pathwise and batch.log_choices is None:
            return pathwise_loss(simulator, batch.theta, batch.trials, contrastive, **options)
        options["log_choices"] = batch.log_choices
        return score_function_loss(simulator, batch.theta, batch.trials, contrastive, self._baseline, **options)
