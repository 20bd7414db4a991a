r"""The hidden state of a run after some trials, given its history and parameters; no likelihood is needed.

For each θ several runs are simulated with the designs of the history, and the one whose outcomes come closest is kept.
This is approximate Bayesian computation with a nearest neighbour, for each θ by itself: the distribution of θ does not
change. Distances are in outcomes as nets read them, over their standard deviation among the runs, trial by trial.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....simulators.base import DesignSimulator
from ....utils.checks import check_count
from ....utils.history import check_history, split_history

__all__ = ["replay_state"]

_RUNS_AT_ONCE = 8192  # bounds memory: a state may be a whole path


@torch.no_grad()
def replay_state(simulator: DesignSimulator, theta: Tensor, history: Tensor, num_replays: int = 32) -> Tensor:
    """Hidden states (N, S) after a history, one for each theta.

    Args:
        simulator: Experiment with a hidden state.
        theta: Parameters (N, P), e.g. posterior draws.
        history: Trials so far, (n, D + O + 1), padded or not.
        num_replays: Runs simulated for each theta.

    Raises:
        ValueError: If the simulator has no hidden state, or the history is not one of its own.
    """
    if not simulator.has_state:
        raise ValueError("this simulator has no hidden state.")
    check_count(num_replays, "num_replays")
    history = check_history(history, simulator.design_dim, simulator.outcome_dim)
    designs, outcomes, mask = split_history(history, simulator.design_dim)
    num_trials = int(mask.sum())
    states = []
    for part in theta.split(max(1, _RUNS_AT_ONCE // num_replays)):
        repeated = part.repeat_interleave(num_replays, dim=0)
        state, distance = simulator.start(repeated), torch.zeros(len(repeated))
        for trial in range(num_trials):
            design = designs[trial].to(part).expand(len(repeated), -1)
            outcome, state = simulator.step(repeated, design, state)
            read = simulator.standardize_outcome(outcome)
            gap = (read - simulator.standardize_outcome(outcomes[trial].to(part))) / read.std(0).clamp_min(1e-6)
            distance = distance + gap.square().sum(-1)
        nearest = distance.reshape(len(part), num_replays).argmin(-1)
        states.append(state.unflatten(0, (len(part), num_replays))[torch.arange(len(part)), nearest])  # pyright: ignore
    return torch.cat(states)
