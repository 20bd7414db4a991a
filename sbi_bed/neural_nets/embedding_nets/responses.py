r"""Summary of trials of stimulus and response: their regression, and features from a net.

With x the coordinates of stimuli and y those of responses (logarithms in log-normal perception), n trials have statistics

    x̄,  log var(x),  b = cov(x, y) / var(x),  α = ȳ − b x̄,  α / (1 − b),  logit b,  log var(y − α − b x),  log n.

Where actions are a power of measurements and the noise level is the same in all trials, log r given log s is normal, linear
in log s: the statistics are then sufficient, and b, α / (1 − b) and the last variance estimate w, log μ_0 and the noise
directly. A `HistoryEmbedding` adds what they miss: bends, several noise levels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...simulators.actors.bayesian_actor import BayesianActor
from ...simulators.rollout import PolicySimulator
from ...utils.seeding import seeded
from .history import HistoryEmbedding

__all__ = ["ResponseEmbedding"]

_NUM_STATISTICS = 8
_CLEAR = 0.02  # slopes are kept this far from 0 and 1


class ResponseEmbedding(nn.Module):
    """Embedding net for a person's trials, x (*batch, n, D + 2) → summary (*batch, 8 + output_dim).

    Invariant to the order of trials, to padding and to the rest of the batch. It standardises its input: build the estimator
    with ``z_score_x="none"``.

    Args:
        simulator: The experiment.
        output_dim: Size of the net's part of the summary.
        hidden_dim: Width of the net.
        num_persons: Simulated people, with 60 random trials each, that set the scales of the statistics.

    Attributes:
        input_dim: Width D + 2 of a history.
        net: `HistoryEmbedding` whose features are added to the statistics.
        mean: Means of the statistics.
        sd: Their standard deviations.

    Raises:
        TypeError: If `simulator` is not a `BayesianActor`.

    Example:
        >>> from sbi_bed.simulators import OptimalActor, QuadraticCost
        >>> simulator = BayesianActor(OptimalActor(QuadraticCost()))
        >>> stimuli = simulator.design_space.sample((4, 60))
        >>> responses = simulator(simulator.prior.sample((4, 1)), stimuli)
        >>> ResponseEmbedding(simulator)(torch.cat([stimuli, responses, torch.ones(4, 60, 1)], -1)).shape
        torch.Size([4, 16])
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, simulator: BayesianActor, output_dim: int = 8, hidden_dim: int = 16, num_persons: int = 512):
        super().__init__()
        if not isinstance(simulator, BayesianActor):
            raise TypeError(f"a response embedding is built for a BayesianActor, got {simulator!r}.")
        self.input_dim, self.output_dim = simulator.design_dim + 2, _NUM_STATISTICS + output_dim
        self._to_coordinate, self._design_dim = simulator.perception.to_coordinate, simulator.design_dim
        self.net = HistoryEmbedding(simulator, output_dim, hidden_dim, num_rounds=1)
        self.register_buffer("mean", torch.zeros(_NUM_STATISTICS))
        self.register_buffer("sd", torch.ones(_NUM_STATISTICS))
        with seeded(0), torch.no_grad():
            random = lambda history: simulator.design_space.sample(tuple(history.shape[:-2]))  # noqa: E731
            people = PolicySimulator(simulator, random, 60, min_trials=30)(simulator.prior.sample((num_persons,)))
            statistics = self.statistics(people)
        self.mean.copy_(statistics.mean(0))
        self.sd.copy_(statistics.std(0).clamp_min(1e-6))

    def statistics(self, x: Tensor) -> Tensor:
        """The eight statistics (*batch, 8), not yet standardised, of histories (*batch, n, D + 2)."""
        mask = x[..., -1]
        seen = mask > 0
        stimulus, response = (torch.where(seen, x[..., i], 1.0) for i in (0, self._design_dim))
        a, b = (self._to_coordinate(value) * mask for value in (stimulus, response))
        num = mask.sum(-1).clamp_min(1.0)
        mean_a, mean_b = a.sum(-1) / num, b.sum(-1) / num
        dev_a, dev_b = (mask * (value - mean.unsqueeze(-1)) for value, mean in ((a, mean_a), (b, mean_b)))
        var_a = dev_a.square().sum(-1) / num + 1e-6
        slope = (dev_a * dev_b).sum(-1) / num / var_a
        rest = (dev_b - slope.unsqueeze(-1) * dev_a).square().sum(-1) / num + 1e-6
        level = mean_b - slope * mean_a
        clear = slope.clamp(_CLEAR, 1 - _CLEAR)
        columns = [mean_a, var_a.log(), slope, level, level / (1 - clear), torch.logit(clear), rest.log(), num.log()]
        return torch.stack(columns, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Summaries (*batch, 8 + output_dim) of histories (*batch, n, D + 2).

        Raises:
            ValueError: If x has another width, or stimuli or responses are not in the perception's space.
        """
        if x.ndim < 2 or x.shape[-1] != self.input_dim:
            raise ValueError(f"histories must have shape (..., trials, {self.input_dim}), got {tuple(x.shape)}.")
        statistics = self.statistics(x)
        if not bool(torch.isfinite(statistics).all()):
            raise ValueError("stimuli and responses must be finite, and positive where perception is log-normal.")
        summary = ((statistics - self.mean) / self.sd).clamp(-10.0, 10.0).to(self.mean)
        return torch.cat([summary, self.net(x)], -1)
