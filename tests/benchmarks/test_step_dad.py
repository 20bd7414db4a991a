"""When is refinement in mid-course worth its seconds? Equal compute, schedules, and people who differ from the model.

`SBI_BED_BENCHMARKS=table.md` also puts the pictures beside that table.
"""

import math
import time

import matplotlib.pyplot as plt
import pytest
import torch
from report import report, save_picture

from sbi_bed.diagnostics import expected_information_gain, step_dad_information_gain
from sbi_bed.inference import DAD
from sbi_bed.policies import GreedyPolicy, RandomPolicy, TransformerPolicy
from sbi_bed.simulators import ConstantElasticity, HyperbolicDiscounting, LocationFinding

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(7200)]
COMMAND = "pytest -m benchmark tests/benchmarks/test_step_dad.py"
PRETRAINING, REFINEMENT = 45.0, 15.0  # seconds of one core; refinement includes inference and judgement

# simulator, horizon, τ, training, refinement, kind of reference, rollouts of the greedy policy and their L
MODELS = {
    "location": (
        LocationFinding,
        10,
        6,
        {"batch_size": 256, "num_contrastive": 255, "learning_rate": 2e-3, "proposal": "local"},
        {"learning_rate": 5e-4},
        "prior",
        (128, 10**6),
    ),
    "discounting": (
        HyperbolicDiscounting,
        20,
        10,
        {"batch_size": 256, "num_contrastive": 255, "learning_rate": 2e-3},
        {"learning_rate": 5e-4},
        "prior",
        (128, 10**5),
    ),
    "CES": (
        ConstantElasticity,
        10,
        5,
        {"batch_size": 256, "num_contrastive": 256, "learning_rate": 2e-3, "proposal": "local"},
        {"learning_rate": 5e-4},
        "posterior",
        (32, None),
    ),
}


def _trained(simulator, horizon, seconds, training):
    torch.manual_seed(0)
    trainer = DAD(simulator, horizon, TransformerPolicy(simulator, horizon), show_progress_bars=False)
    return trainer.train(10**6, max_seconds=seconds, seed=0, **training), trainer.num_steps


@pytest.fixture(scope="module")
def pretrained():
    """Name -> policy after `PRETRAINING` seconds, trained once."""
    policies = {}

    def policy_of(name):
        if name not in policies:
            build, horizon, _, training, *_ = MODELS[name]
            policies[name] = _trained(build(), horizon, PRETRAINING, training)[0]
        return policies[name]

    return policy_of


@pytest.mark.parametrize("name", MODELS)
def test_equal_total_compute(name, pretrained):
    """One experiment: 45 s of training and 15 s of refinement, against 60 s of training, against no training."""
    build, horizon, tau, training, refinement, reference, (greedy_rollouts, greedy_contrastive) = MODELS[name]
    simulator = build()

    def gain_of(policy, num=1000, num_contrastive=None):
        settings = {"seed": 1} | ({"proposal": "posterior"} if num_contrastive is None else {})
        return expected_information_gain(simulator, policy, horizon, num, num_contrastive, **settings)

    longer, num_steps = _trained(simulator, horizon, PRETRAINING + REFINEMENT, training)
    before, after = gain_of(pretrained(name)), gain_of(longer)
    paired = step_dad_information_gain(
        pretrained(name),
        simulator,
        horizon,
        (tau,),
        24,
        reference=reference,
        seed=0,
        refine_settings={"max_seconds": REFINEMENT, **refinement},
        show_progress_bars=False,
    )
    start = time.process_time()
    greedy = gain_of(GreedyPolicy(simulator), greedy_rollouts, greedy_contrastive)
    thought = (time.process_time() - start) / (greedy_rollouts * horizon)
    # The total of refined experiments: the well-known gain of the unrefined policy, plus the paired difference.
    refined, stderr = before.lower + paired.difference, math.hypot(before.lower_stderr, paired.difference_stderr)
    rows = {
        f"DAD, {PRETRAINING:.0f} s": (before.lower, before.lower_stderr),
        f"Step-DAD, {PRETRAINING:.0f} + {REFINEMENT:.0f} s": (refined, stderr),
        f"DAD, {PRETRAINING + REFINEMENT:.0f} s": (after.lower, after.lower_stderr),
        f"greedy, {1e3 * thought:.0f} ms a design": (greedy.lower, greedy.lower_stderr),
    }
    for label, (value, error) in rows.items():
        report(f"{name}, T={horizon}, τ={tau}: {label}", f"{value:.2f} ± {error:.2f}", COMMAND)
    report(
        f"{name}: paired difference to the unrefined twin, 24 deployments",
        f"{paired.difference:+.2f} ± {paired.difference_stderr:.2f}, {paired.accepted:.0%} kept",
        COMMAND,
    )
    figure, axes = plt.subplots(figsize=(4.5, 2.2), layout="constrained")
    for place, (value, error) in enumerate(rows.values()):
        axes.errorbar(value, place, xerr=error, fmt="o", color=f"C{place}", capsize=3)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("information gain [nats], ± 1 s.e.")
    axes.set_title(name)
    save_picture(figure, f"step_dad_{name}.png")
    assert paired.difference > -3 * paired.difference_stderr
    assert num_steps > 0


SCHEDULES = [(2,), (4,), (6,), (8,), (4, 7), (3, 5, 7)]


def plot_schedules(gains):
    """Schedule -> gain over no refinement and its standard error."""
    figure, axes = plt.subplots(figsize=(4.5, 3), layout="constrained")
    for place, (stages, (value, error)) in enumerate(gains.items()):
        axes.errorbar(place, value, error, fmt="o", color=f"C{len(stages) - 1}", capsize=3)
    axes.axhline(0, color="0.7", linewidth=1)
    axes.set_xticks(range(len(gains)), [", ".join(map(str, stages)) for stages in gains])
    axes.set_xlabel("refined after these of 10 trials")
    axes.set_ylabel("gain over no refinement [nats]")
    return figure


def test_when_and_how_often(pretrained):
    simulator = LocationFinding()
    gains = {}
    for stages in SCHEDULES:
        gain = step_dad_information_gain(
            pretrained("location"),
            simulator,
            10,
            stages,
            12,
            reference="posterior",
            seed=0,
            num_workers=2,
            refine_settings={"num_steps": 200, "learning_rate": 5e-4},
            show_progress_bars=False,
        )
        gains[stages] = gain.difference, gain.difference_stderr
        report(
            f"location, T=10, refined after {', '.join(map(str, stages))} trials, 200 steps each, 12 deployments",
            f"{gain.difference:+.2f} ± {gain.difference_stderr:.2f} to the unrefined twin, {gain.accepted:.0%} kept",
            COMMAND,
        )
    save_picture(plot_schedules(gains), "step_dad_when.png")
    value, error = max(gains.values())
    assert value > 2 * error


def test_people_who_lapse_more_than_the_model_knows(pretrained):
    """What the model's posterior learns about (log k, α) from people who answer at random with probability 2ε."""
    model, horizon, tau = HyperbolicDiscounting(), 20, 10
    policy, scores = pretrained("discounting"), {}
    lapses = (0.01, 0.1)
    for lapse in lapses:
        truth = HyperbolicDiscounting(lapse=lapse)

        def score(one, num, truth=truth):
            return expected_information_gain(model, one, horizon, num, 50_000, seed=1, truth=truth)

        others = {
            "random": score(RandomPolicy(model), 2000),
            "greedy": score(GreedyPolicy(model), 256),
            "DAD": score(policy, 2000),
        }
        paired = step_dad_information_gain(
            policy,
            model,
            horizon,
            (tau,),
            24,
            truth=truth,
            reference="posterior",
            seed=0,
            num_workers=2,
            refine_settings={"num_steps": 150, "learning_rate": 5e-4},
            show_progress_bars=False,
        )
        for label, gain in others.items():
            scores.setdefault(label, []).append((gain.lower, gain.lower_stderr))
        total = others["DAD"].lower + paired.difference
        error = math.hypot(others["DAD"].lower_stderr, paired.difference_stderr)
        scores.setdefault("Step-DAD", []).append((total, error))
        report(
            f"discounting, T=20, model ε=.01, people ε={lapse}: E[log p(θ|h) − log p(θ)]",
            "; ".join(f"{label} {rows[-1][0]:.2f} ± {rows[-1][1]:.2f}" for label, rows in scores.items())
            + f"; Step-DAD − DAD {paired.difference:+.2f} ± {paired.difference_stderr:.2f}",
            COMMAND,
        )
    figure, axes = plt.subplots(figsize=(4.5, 3), layout="constrained")
    for label, rows in scores.items():
        values, errors = zip(*rows, strict=True)
        axes.errorbar(lapses, values, errors, fmt="o-", capsize=3, label=label)
    axes.set_xlabel("true lapse rate ε (the model believes .01)")
    axes.set_ylabel("E[log p(θ | h) − log p(θ)] [nats]")
    axes.legend(frameon=False)
    save_picture(figure, "step_dad_lapses.png")
    assert scores["DAD"][0][0] > scores["random"][0][0]
