"""Experiments to which everything happens that happens in a laboratory, in random order.

`make(name)` begins one of several kinds, `happen(experiment, action)` does one thing to it, and `look_of(experiment)` is all
that can be seen of it, exact.
"""

import warnings

import torch
from models import LinearGaussian

from sbi_bed.inference import AdaptiveExperiment, StepDAD
from sbi_bed.inference.experiments.design.stopping import posterior_sd_below
from sbi_bed.policies import DeepSetsPolicy, GreedyPolicy, RandomPolicy
from sbi_bed.simulators import DesignSimulator, LocationFinding
from sbi_bed.utils import seeded

CONTINUOUS = LocationFinding()
LINEAR = LinearGaussian(1)
ON_GRID = DesignSimulator(
    LINEAR.prior, LINEAR.simulate, torch.linspace(-1, 1, 9).unsqueeze(-1), LINEAR.log_likelihood, reparameterized=True
)
FEW = {"num_steps": 2, "batch_size": 8, "num_contrastive": 7, "num_particles": 128, "num_held_out": 64}


def cost(design):
    """Cost of a design on the grid."""
    return 1 + float(design.abs().sum())


def deep_sets(simulator, seed=0):
    """A small policy with random weights."""
    with seeded(seed):
        return DeepSetsPolicy(simulator, hidden_dim=8, summary_dim=4)


def greedy(simulator):
    """A small greedy policy."""
    return GreedyPolicy(simulator, num_particles=64, num_inner=16, num_outer=8)


KINDS = {
    "random": (AdaptiveExperiment, CONTINUOUS, RandomPolicy, {}),
    "deep sets, apart": (AdaptiveExperiment, CONTINUOUS, deep_sets, {"min_distance": 0.3, "no_repeat_within": 2}),
    "greedy, no repeats": (AdaptiveExperiment, ON_GRID, greedy, {"no_repeat_within": 2}),
    "budget": (AdaptiveExperiment, ON_GRID, deep_sets, {"design_cost": cost, "budget": 11.0, "min_distance": 1e-6}),
    "rule": (AdaptiveExperiment, ON_GRID, RandomPolicy, {"stop_when": posterior_sd_below(0.33, num_samples=200)}),
    "batch": (AdaptiveExperiment, CONTINUOUS, deep_sets, {"num_experiments": 3}),
    "step-dad": (StepDAD, CONTINUOUS, deep_sets, {"refine_after": (2, 4), "refine_settings": FEW}),
}
ACTIONS = ["trial"] * 4 + ["ask", "answer"] * 3 + ["other design", "skip", "skip in flight", "invalid", "undo"]
ACTIONS += ["horizon", "policy", "simulator"]


def make(name, journal=None):
    """A new experiment of one kind."""
    cls, simulator, policy, options = KINDS[name]
    options = {**options, "seed": 5} | ({"show_progress_bars": False} if cls is StepDAD else {})
    return cls(policy(simulator), simulator, 7, journal=journal, **options)


def load(name, path, journal=False):
    """What a file holds."""
    cls, simulator, _, options = KINDS[name]
    given = {"design_cost": cost} if "design_cost" in options else {}
    return quietly(cls.load, path, simulator, journal=journal, **given)


def quietly(function, *args, **kwargs):
    """Call without warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def outcome_for(experiment, number):
    """A valid outcome of the right shape."""
    shape = (*experiment._batch_shape, 1)
    return torch.full(shape, 0.25 + 0.125 * (number % 40))


def happen(experiment, action, number):
    """Do one thing, with a number from 0 on that decides how; returns the error, if it is refused."""
    try:
        quietly(_act, experiment, action, number)
    except ValueError as err:
        return str(err)
    return None


def _act(experiment, action, number):
    outcome, flying = outcome_for(experiment, number), list(experiment.in_flight)
    handle = flying[number % len(flying)] if flying else number
    if action == "trial":
        experiment.next_design()
        experiment.record(outcome)
    elif action == "other design":
        given = torch.full((*experiment._batch_shape, experiment.simulator.design_dim), 0.25 * (number % 9 - 4))
        experiment.record(outcome, given)
    elif action == "ask":
        experiment.next_designs(1 + number % 3)
    elif action == "answer":
        experiment.record(outcome, handle=handle)
    elif action == "skip":
        experiment.next_design()
        experiment.skip(for_good=number % 2 == 0, reason="no")
    elif action == "skip in flight":
        experiment.skip(handle, reason="lost")
    elif action == "invalid":
        handles = experiment.handles
        experiment.mark_invalid(handles[number % len(handles)] if handles else None, reason="noise")
    elif action == "undo":
        experiment.undo()
    elif action == "horizon":
        experiment.change_horizon(4 + number % 6, reason="time")
    elif action == "policy":
        experiment.replace(deep_sets(experiment.simulator, number), reason="another")
    elif action == "simulator":
        simulator = experiment.simulator
        policy = greedy(simulator) if isinstance(experiment.policy, GreedyPolicy) else None
        experiment.replace(policy, simulator, reason="the same, given again")


def look_of(experiment):
    """Everything that can be seen, exact; asks for the next design."""

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.dtype, value.tolist()
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

    seen = {"done": quietly(lambda: experiment.done)}
    try:
        seen["next"] = plain(quietly(experiment.next_design))
    except ValueError as err:
        seen["next"] = str(err)
    names = ["designs", "outcomes", "history", "handles", "in_flight", "skipped", "invalid", "changes", "spent"]
    names += ["horizon", "num_trials", "stopped_because"]
    seen |= {name: plain(getattr(experiment, name)) for name in names}
    weights = experiment.policy.state_dict() if isinstance(experiment.policy, torch.nn.Module) else {}
    return {**seen, "policy": type(experiment.policy).__name__, "weights": plain(dict(weights))}
