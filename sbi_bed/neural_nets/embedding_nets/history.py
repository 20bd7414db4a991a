r"""A history as a vector for sbi's density estimators: the same for trials in any order, padded or not.

With trials z_i = (ξ_i, y_i), whose order the posterior does not depend on (the policy's own probabilities cancel), each of
a few rounds reads every trial in the light of the summary so far, and pools:

    s ← head( n^{-1/2} Σ_i a(z_i, s),  Σ_i w_i [b(z_i, s), z_i],  log(1 + n),  s ),    w = softmax_i c(z_i, s),

where a, b, c together are one residual net. The sum is what a log-likelihood needs, Σ_i log p(y_i | θ, ξ_i); the weighted
means, one for each head, pick out the trials that say most and pass on their designs as they are; the second round can
then describe trials relative to where the first has looked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...simulators.base import DesignSimulator
from ...utils.checks import check_count
from ...utils.packing.sizes import TrainedRange
from ..first_weights import remember_first_weights
from ..trial_features import TrialFeatures

__all__ = ["HistoryEmbedding"]


class HistoryEmbedding(nn.Module):
    """Embedding net for histories, x (*batch, n, D + O + 1) → summary (*batch, output_dim).

    Invariant to the order of trials, to padding (n may differ from training's, and may be 0) and to the rest of the batch.
    It standardises trials itself, behind the mask, so sbi must not: build the estimator with ``z_score_x="none"``.

    sbi wants every x_o in the shape of training: pad a shorter one, ``pack_history(designs, outcomes, horizon)``, which is
    the form in which experiments give their history. To be right for short histories the posterior has to be trained on
    some: ``PolicySimulator(..., min_trials=1)``.

    Args:
        simulator: The experiment whose histories are read; 512 simulations of it set the scale of outcomes.
        output_dim: Size of the summary.
        hidden_dim: Width of the residual nets; the last is twice as wide.
        num_layers: Number of residual blocks of each net.
        num_heads: Number of weighted means; divides `hidden_dim`.
        num_rounds: Number of readings.

    Attributes:
        input_dim: Width D + O + 1 of a history.
        features: What is read of a trial.
        rounds: Nets of the rounds.
        trained: Numbers of trials that the net was trained on (`TrainedRange`).

    Raises:
        TypeError: If `simulator` is not a `DesignSimulator`, or a size is not a whole number.
        ValueError: If a size is below 1, or `hidden_dim` is not a multiple of `num_heads`.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding, PolicySimulator
        >>> simulator = LocationFinding()
        >>> experiment = PolicySimulator(simulator, RandomPolicy(simulator), horizon=4, min_trials=1)
        >>> x = experiment(simulator.prior.sample((3,)))
        >>> HistoryEmbedding(simulator)(x).shape
        torch.Size([3, 32])

        In sbi, for priors that sbi takes (`HistoryNPE` is the same for all of a `DesignSimulator`)::

            build = posterior_nn("zuko_nsf", embedding_net=HistoryEmbedding(simulator), z_score_x="none")
            theta, x = simulate_for_sbi(experiment, simulator.prior, 50_000, simulation_batch_size=None)
            inference = NPE(simulator.prior, density_estimator=build)
            inference.append_simulations(theta, x).train()
            inference.build_posterior().sample((1000,), x=x_o)
    """

    def __init__(
        self,
        simulator: DesignSimulator,
        output_dim: int = 32,
        hidden_dim: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        num_rounds: int = 2,
    ):
        super().__init__()
        if not isinstance(simulator, DesignSimulator):
            raise TypeError(f"a history embedding is built for a DesignSimulator, got {simulator!r}.")
        output_dim, num_heads = check_count(output_dim, "output_dim"), check_count(num_heads, "num_heads")
        hidden_dim, num_layers = check_count(hidden_dim, "hidden_dim"), check_count(num_layers, "num_layers")
        num_rounds = check_count(num_rounds, "num_rounds")
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim ({hidden_dim}) must be a multiple of num_heads ({num_heads}).")
        self.features = TrialFeatures(simulator)
        self.input_dim, self.output_dim = simulator.design_dim + simulator.outcome_dim + 1, output_dim
        sizes = (self.features.output_dim, output_dim, hidden_dim, num_layers, num_heads)
        self.rounds = nn.ModuleList(_Round(*sizes, first=i == 0, last=i == num_rounds - 1) for i in range(num_rounds))
        self.trained = TrainedRange(1, ("trials",))
        remember_first_weights(self, "rounds")

    def forward(self, x: Tensor) -> Tensor:
        """Summaries (*batch, output_dim) of histories (*batch, n, D + O + 1).

        Raises:
            ValueError: If x has another width, or what should be its mask is not 0 and 1 (as after sbi's z-scoring).
        """
        self._check(x)
        features, mask = self.features.of_history(x.to(self.features.outcome_sd))
        if not (self.training and math.prod(x.shape[:-2]) <= 1):  # one row may be a probe of sbi's, with noise for data
            self.trained(mask.reshape(math.prod(mask.shape[:-2]), mask.shape[-2]))  # (*batch, n, 1)
        summary = features.new_zeros(*features.shape[:-2], 0)
        for read in self.rounds:
            summary = read(features, mask > 0, summary)
        return summary

    def _check(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[-1] != self.input_dim:
            raise ValueError(f"histories must have shape (..., trials, {self.input_dim}), got {tuple(x.shape)}.")
        if self.training and math.prod(x.shape[:-2]) <= 1:
            return  # sbi's mixture density net probes its embedding with one row of noise
        mask = x[..., -1]
        scored = bool(((mask != 0) & (mask != 1)).any())
        # Masks that were all 1 are all 0 after z-scoring, and the trials beside them are not.
        emptied = self.training and not bool(mask.any()) and bool(x.any())
        if scored or emptied:
            raise ValueError(
                "the last channel of a history is its mask, 1 for a trial and 0 for padding. If sbi's z-scoring has changed "
                'it, pass z_score_x="none" to posterior_nn.'
            )


class _Round(nn.Module):
    """One reading of all trials (*batch, n, F), given a summary of them (*batch, S) (S = 0 in the first round)."""

    def __init__(
        self, num_features: int, summary_dim: int, width: int, num_blocks: int, num_heads: int, first: bool, last: bool
    ):
        super().__init__()
        self.num_heads, self.width = num_heads, width
        known = 0 if first else summary_dim
        pooled = 2 * width + num_heads * num_features + 1
        self.encoder = _ResidualNet(num_features + known, width, 2 * width + num_heads, num_blocks)
        self.head = _ResidualNet(pooled + known, 2 * width if last else width, summary_dim, num_blocks)

    def forward(self, features: Tensor, observed: Tensor, summary: Tensor) -> Tensor:
        """The next summary (*batch, summary_dim); observed is (*batch, n, 1), boolean."""
        known = summary.unsqueeze(-2).expand(*features.shape[:-1], -1)
        seen = observed.squeeze(-1)
        each = self.encoder(torch.cat([features, known], dim=-1)[seen])  # padding costs nothing
        encoded = each.new_zeros(*seen.shape, each.shape[-1]).index_put(seen.nonzero(as_tuple=True), each)
        term, value, score = encoded.split([self.width, self.width, self.num_heads], dim=-1)
        count = observed.sum(-2).to(features)
        total = term.sum(-2) / (1 + count).sqrt()
        # A large finite number, not infinity: with no trials at all the weights are then 0 instead of NaN.
        weight = score.masked_fill(~observed, -1e9).softmax(-2).masked_fill(~observed, 0.0)
        values = torch.einsum("...nh,...nhv->...hv", weight, value.unflatten(-1, (self.num_heads, -1)))
        trials = torch.einsum("...nh,...nf->...hf", weight, features)
        return self.head(torch.cat([total, values.flatten(-2), trials.flatten(-2), count.log1p(), summary], dim=-1))


class _ResidualNet(nn.Module):
    """Linear, `num_blocks` pre-norm residual blocks of `width`, linear: (..., input_dim) → (..., output_dim)."""

    def __init__(self, input_dim: int, width: int, output_dim: int, num_blocks: int):
        super().__init__()
        self.enter, self.leave = nn.Linear(input_dim, width), nn.Linear(width, output_dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(num_blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)
