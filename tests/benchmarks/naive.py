"""The training step as it is usually written: θ and history tiled to [B · L, T, ·], one autograd graph over all of it.

The reference that the streamed bound is measured against; it computes the same estimator.
"""

import math

import torch


def tiled_spce_loss(simulator, policy, horizon, batch_size, num_contrastive):
    """−sPCE of one batch, contrastive samples of each history its own, everything tiled."""
    num_thetas = num_contrastive + 1
    theta = simulator.prior.sample((batch_size,))
    contrastive = simulator.prior.sample((batch_size * num_contrastive,)).reshape(batch_size, num_contrastive, -1)
    designs, outcomes = torch.zeros(batch_size, 0, simulator.design_dim), torch.zeros(batch_size, 0, 1)
    for _ in range(horizon):
        trials = torch.cat([designs, outcomes, torch.ones_like(outcomes)], dim=-1)
        design = policy(trials)  # the whole history is encoded again at every step
        outcome = simulator(theta, design)
        designs = torch.cat([designs, design.unsqueeze(1)], dim=1)
        outcomes = torch.cat([outcomes, outcome.unsqueeze(1)], dim=1)
    thetas = torch.cat([theta.unsqueeze(1), contrastive], dim=1).reshape(batch_size * num_thetas, -1)
    tiled_designs = designs.repeat_interleave(num_thetas, dim=0)
    tiled_outcomes = outcomes.repeat_interleave(num_thetas, dim=0)
    total = 0.0
    for trial in range(horizon):
        total = total + simulator.log_likelihood(thetas, tiled_designs[:, trial], tiled_outcomes[:, trial])
    log_likelihood = total.reshape(batch_size, num_thetas)
    return -(log_likelihood[:, 0] - log_likelihood.logsumexp(-1) + math.log(num_thetas)).mean()
