r"""A history as a vector for sbi's density estimators: the same for trials in any order, padded or not.

With trials z_i = (ξ_i, y_i), whose order the posterior does not depend on (the policy's own probabilities cancel),

    s = head( n^{-1/2} Σ_i a(z_i),  Σ_i w_i [b(z_i), z_i],  log n ),    w = softmax_i c(z_i),

where a, b and c are one residual net. The sum is what a log-likelihood needs, Σ_i log p(y_i | θ, ξ_i); the weighted mean,
with weights of several heads, picks out the few trials that say most and passes on their designs as they are. (On source
location the two together leave a third less divergence from the exact posterior than sums or means of a plain net.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...simulators.base import DesignSimulator
from ...utils.checks import check_count
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
        hidden_dim: Width of the residual nets; the one after pooling is twice as wide.
        num_layers: Number of residual blocks before, and after, pooling.
        num_heads: Number of weighted means; divides `hidden_dim`.

    Raises:
        TypeError: If `simulator` is no `DesignSimulator`, or a size no whole number.
        ValueError: If a size is below 1, or `hidden_dim` no multiple of `num_heads`.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding, PolicySimulator
        >>> simulator = LocationFinding()
        >>> experiment = PolicySimulator(simulator, RandomPolicy(simulator), horizon=4, min_trials=1)
        >>> x = experiment(simulator.prior.sample((3,)))
        >>> HistoryEmbedding(simulator)(x).shape
        torch.Size([3, 32])

        In sbi::

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
    ):
        super().__init__()
        if not isinstance(simulator, DesignSimulator):
            raise TypeError(f"a history embedding is built for a DesignSimulator, got {simulator!r}.")
        output_dim, num_heads = check_count(output_dim, "output_dim"), check_count(num_heads, "num_heads")
        hidden_dim, num_layers = check_count(hidden_dim, "hidden_dim"), check_count(num_layers, "num_layers")
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim ({hidden_dim}) must be a multiple of num_heads ({num_heads}).")
        self.num_heads, self.hidden_dim = num_heads, hidden_dim
        self.features = TrialFeatures(simulator)
        self.input_dim = simulator.design_dim + simulator.outcome_dim + 1
        num_features = self.features.output_dim
        self.encoder = _ResidualNet(num_features, hidden_dim, 2 * hidden_dim + num_heads, num_layers)
        self.head = _ResidualNet(2 * hidden_dim + num_heads * num_features + 1, 2 * hidden_dim, output_dim, num_layers)

    def forward(self, x: Tensor) -> Tensor:
        """Summaries (*batch, output_dim) of histories (*batch, n, D + O + 1).

        Raises:
            ValueError: If x has another width, or what should be its mask is not 0 and 1 (as after sbi's z-scoring).
        """
        x = self._check(x).to(self.features.outcome_sd)
        features, mask = self.features.of_history(x)
        observed = mask > 0
        count = observed.sum(-2).to(x)
        evidence, value, score = self.encoder(features).split(
            [self.hidden_dim, self.hidden_dim, self.num_heads], dim=-1
        )
        total = evidence.masked_fill(~observed, 0.0).sum(-2) / (1 + count).sqrt()
        # A large finite number, not infinity: with no trials at all the weights are then 0 instead of NaN.
        weight = score.masked_fill(~observed, -1e9).softmax(-2).masked_fill(~observed, 0.0)
        values = torch.einsum("...nh,...nhv->...hv", weight, value.unflatten(-1, (self.num_heads, -1)))
        designs_and_outcomes = torch.einsum("...nh,...nf->...hf", weight, features)
        pooled = [total, values.flatten(-2), designs_and_outcomes.flatten(-2), torch.log1p(count)]
        return self.head(torch.cat(pooled, dim=-1))

    def _check(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[-1] != self.input_dim:
            raise ValueError(f"histories must have shape (..., trials, {self.input_dim}), got {tuple(x.shape)}.")
        mask = x[..., -1]
        scored = bool(((mask != 0) & (mask != 1)).any())
        # Masks that were all 1 are all 0 after z-scoring, and the trials beside them are not.
        emptied = self.training and x.ndim > 2 and len(x) > 1 and not bool(mask.any()) and bool(x.any())
        if scored or emptied:
            raise ValueError(
                "the last channel of a history is its mask, 1 for a trial and 0 for padding. If sbi's z-scoring has changed "
                'it, pass z_score_x="none" to posterior_nn.'
            )
        return x


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
