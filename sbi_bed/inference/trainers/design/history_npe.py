"""sbi's NPE on the histories of an experiment: any continuous prior that the experiment takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sbi.inference import NPE
from torch import Tensor, nn

from ....neural_nets.embedding_nets.history import HistoryEmbedding
from ....neural_nets.posterior_net import posterior_net
from ....simulators.base import DesignSimulator
from ....simulators.sbi_prior import SBIPrior
from ....utils.tracking import NoTracker
from ....utils.warn_user import without_sbi_notes

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["HistoryNPE"]


class HistoryNPE(NPE):
    """sbi's NPE for an experiment, with `HistoryEmbedding` as its embedding net.

    It takes every continuous prior of a `DesignSimulator`: mixtures, joined parts, priors of your own, in float64, and
    probabilities on a simplex, which a net learns in coordinates of stick-breaking. `append_simulations`, `train` and
    `build_posterior` are sbi's.

    Args:
        simulator: The experiment; its prior is that of NPE.
        density_estimator: sbi's name of a conditional density estimator.
        embedding_net: Histories (B, T, D + O + 1) → summaries; a `HistoryEmbedding` if None.
        device: Where to train.
        tracker: An sbi `Tracker`; nothing is written if None.
        show_progress_bars: Whether to show progress.
        **estimator_settings: Further keywords of sbi's `posterior_nn`: `hidden_features`, `num_transforms`, ….

    Raises:
        ValueError: If theta is discrete in part: `likelihood_posterior` samples it.

    Example:
        >>> import torch
        >>> from torch.distributions import Dirichlet
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import DesignSimulator, PolicySimulator
        >>> simulator = DesignSimulator(
        ...     Dirichlet(torch.ones(3)),
        ...     lambda theta, design: theta.square() + 0.1 * torch.randn_like(theta + design),
        ...     torch.zeros(1, 1),
        ...     outcome_shape=(3,),
        ... )
        >>> experiment = PolicySimulator(simulator, RandomPolicy(simulator), horizon=1)
        >>> theta = simulator.prior.sample((200,))
        >>> x = experiment(theta)
        >>> trainer = HistoryNPE(simulator, show_progress_bars=False).append_simulations(theta, x)
        >>> estimator = trainer.train(max_num_epochs=2)
        >>> posterior = trainer.build_posterior()
        >>> bool((posterior.sample((5,), x=x[:1], show_progress_bars=False).sum(-1) - 1).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        density_estimator: str = "zuko_maf",
        embedding_net: nn.Module | None = None,
        device: str = "cpu",
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        **estimator_settings: Any,
    ):
        embedding_net = HistoryEmbedding(simulator) if embedding_net is None else embedding_net
        build: Any = posterior_net(simulator.prior, density_estimator, embedding_net, **estimator_settings)
        super().__init__(
            prior=SBIPrior(simulator.prior),
            density_estimator=build,
            device=device,
            tracker=NoTracker() if tracker is None else tracker,
            show_progress_bars=show_progress_bars,
        )

    def append_simulations(self, theta: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> HistoryNPE:
        """As in sbi, for theta (N, P) and histories x (N, T, D + O + 1) of any precision."""
        with without_sbi_notes():
            return super().append_simulations(theta.float(), x.float(), *args, **kwargs)  # pyright: ignore

    def train(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in sbi."""
        with without_sbi_notes():
            return super().train(*args, **kwargs)
