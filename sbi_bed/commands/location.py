"""The main job: train a policy for source location, run one adaptive experiment with a refinement, infer with sbi."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from ..diagnostics import StepDADGain, expected_information_gain, step_dad_information_gain
from ..inference import DAD, StepDAD
from ..policies import RandomPolicy, StaticPolicy
from ..simulators import LocationFinding
from ..utils.parallel import one_thread
from ..utils.seeding import seeded
from ..utils.text_table import format_table
from .results import save_results

__all__ = ["run"]

HORIZON, REFINE_AFTER = 10, 6
NUM_ROLLOUTS, NUM_CONTRASTIVE = 512, 50_000
REFINEMENT = {"num_steps": 200, "batch_size": 256, "num_contrastive": 255}


def run(options: argparse.Namespace) -> None:
    """Train, compare, run one experiment, infer; print two tables and save figure and posterior."""
    with one_thread():  # pieces of a core's cache: on a busy machine threads would wait for each other
        _run(options)


def _run(options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / "location"
    simulator = LocationFinding(num_sources=1)
    print(f"Find a hidden source in {HORIZON} readings, each placed where the ones before suggest.\n")
    with seeded(options.seed or 0):
        policy = DAD(simulator, HORIZON).train(800, 256, 255, 2e-3)
        static = DAD(simulator, HORIZON, StaticPolicy(simulator, HORIZON)).train(400, 256, 255, 2e-2)
        rows = [
            _gain_row(name, expected_information_gain(simulator, p, HORIZON, NUM_ROLLOUTS, NUM_CONTRASTIVE))
            for name, p in (("random", RandomPolicy(simulator)), ("static", static), ("DAD", policy))
        ]
        step_dad = step_dad_information_gain(
            policy, simulator, HORIZON, (REFINE_AFTER,), 8, num_shared_rollouts=NUM_ROLLOUTS, refine_settings=REFINEMENT
        )
        source = simulator.prior.sample()
        experiment = _run_experiment(policy, simulator, source, _fresh(Path(f"{stem}.jsonl")))
        posterior = experiment.posterior()
        draws = posterior.sample((2000,))
    print("\nExpected information gain, nats")
    print(format_table(("policy", "lower", "upper", "± s.e."), [*rows, _step_dad_row(step_dad)]))
    print(f"Step-DAD − DAD on the same histories: {step_dad.difference:+.2f} ± {step_dad.difference_stderr:.2f}\n")
    print(_posterior_table(source, draws))
    report = posterior.report
    print(
        f"sbi posterior by SMC: effective sample size {report.effective_sample_size:.0f}, "
        f"log evidence {report.log_evidence:.2f}; p-values: data {report.check.surprise_p_value:.2f}, "
        f"prior {report.check.prior_conflict_p_value:.2f}"
    )
    figure = _draw(experiment, draws, source, REFINE_AFTER)
    save_results(stem, figure, experiment, {"x": draws[:, 0], "y": draws[:, 1]})


def _run_experiment(policy: Any, simulator: LocationFinding, source: Tensor, journal: Path) -> StepDAD:
    experiment = StepDAD(policy, simulator, HORIZON, (REFINE_AFTER,), journal, refine_settings=REFINEMENT, seed=0)
    while not experiment.done:
        experiment.record(simulator(source, experiment.next_design()))
    return experiment


def _fresh(journal: Path) -> Path:
    """The journal's path, cleared of what an earlier demonstration left there."""
    journal.unlink(missing_ok=True)
    return journal


def _gain_row(name: str, gain: Any) -> tuple[str, ...]:
    return name, f"{gain.lower:.2f}", f"{gain.upper:.2f}", f"{gain.upper_stderr:.2f}"


def _step_dad_row(gain: StepDADGain) -> tuple[str, ...]:
    rest = gain.refined_samples
    stderr = math.hypot(gain.shared.upper_stderr, float(rest.std()) / math.sqrt(len(rest)))
    upper = gain.refined - gain.shared.lower + gain.shared.upper
    return "Step-DAD", f"{gain.refined:.2f}", f"{upper:.2f}", f"{stderr:.2f}"


def _posterior_table(source: Tensor, draws: Tensor) -> str:
    columns = zip(("x", "y"), source, draws.mean(0), draws.std(0), strict=True)
    rows = [(name, f"{true:.3f}", f"{mean:.3f}", f"{sd:.3f}") for name, true, mean, sd in columns]
    return format_table(("source", "truth", "posterior mean", "sd"), rows)


def _draw(experiment: StepDAD, draws: Tensor, source: Tensor, refined_after: int) -> Any:
    import matplotlib.pyplot as plt

    from ..analysis import plot_experiment_in_plane, plot_posterior_spread

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for ax in axes[:2]:
        plot_experiment_in_plane(experiment.history, draws, source, refined_after=refined_after, ax=ax)
    centre, width = draws.mean(0), 6 * float(draws.std(0).max())
    axes[1].set(xlim=(centre[0] - width, centre[0] + width), ylim=(centre[1] - width, centre[1] + width))
    axes[1].set_title("The same, near the source")
    axes[1].get_legend().remove()
    with seeded(0):
        clouds = [experiment.posterior(num_trials=n).sample((1000,)) for n in range(HORIZON + 1)]
    plot_posterior_spread(clouds, source, refined_after=refined_after, ax=axes[2])
    return figure
