"""Treatment policies: what they lose against the best design while they learn, and how long an assignment takes."""

import time

import pytest
import torch
from report import report

from sbi_bed.inference import ImitationTrainer
from sbi_bed.policies import (
    CoinFlip,
    ExperimenterTransformer,
    GradientExperimenter,
    MixtureOfExperimenters,
    NeymanTeacher,
    NonContextualNeyman,
)
from sbi_bed.simulators import TreatmentStream, assign_stream

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(3600)]

COMMAND = "pytest -m benchmark tests/benchmarks/test_treatment_policies.py -k"
CLASSES = (0.5, 1.5, 4.0)
LATE = 50  # units at the end over which the regret is called late
LATE_REGRET = {0.5: 0.016, 1.5: 0.008, 4.0: 0.0045}
TRAINING = {"num_steps": 1200, "num_episodes": 2000, "batch_size": 16}


def measure(policy, problems, num_units=300):
    """Late and whole-run regret over V* of each episode, (B,) and (B,), with units common to all policies."""
    regret = assign_stream(problems, policy, num_units, seed=2).regret / problems.bound.unsqueeze(-1)
    return regret[:, -LATE:].mean(1), regret.mean(1)


def as_text(late, whole):
    error = len(late) ** 0.5
    return (
        f"late {float(late.mean()):.4f} ± {float(late.std()) / error:.4f}, "
        f"whole run {float(whole.mean()):.4f} ± {float(whole.std()) / error:.4f}"
    )


def stderr(value):
    return float(value.std()) / len(value) ** 0.5


@pytest.mark.parametrize("alpha", CLASSES)
def test_teacher(alpha):
    problems = TreatmentStream(alpha).sample(400, seed=1)
    teachers = {other: NeymanTeacher(1, other) for other in CLASSES}
    policies = {f"teacher with α = {other}": teacher for other, teacher in teachers.items()}
    policies["mixture of teachers"] = MixtureOfExperimenters(list(teachers.values()))
    policies |= {f"teacher, {rule} rule": NeymanTeacher(1, alpha, rule=rule) for rule in ("posterior", "plug-in")}
    policies |= {"coin": CoinFlip(1), "Neyman without covariates": NonContextualNeyman(1)}
    found = {}
    for name, policy in policies.items():
        found[name] = measure(policy, problems)
        report(
            f"regret / V*, 400 streams of 300 units, α = {alpha}: {name}", as_text(*found[name]), f"{COMMAND} teacher"
        )
    right = found.pop(f"teacher with α = {alpha}")[0]
    assert right.mean() <= LATE_REGRET[alpha] + stderr(right)
    mixture = found["mixture of teachers"][0]
    assert mixture.mean() <= 1.15 * right.mean() + stderr(mixture - 1.15 * right)
    for other in set(CLASSES) - {alpha}:
        worse = found[f"teacher with α = {other}"][0] - right
        assert worse.mean() > 2 * stderr(worse)
    assert found["coin"][0].mean() > found["Neyman without covariates"][0].mean() > 3 * right.mean()


def test_students():
    """A net for each class, trained for three minutes of one core, and what their mixture loses where none is told."""
    students, seconds = {"transformer": [], "gradient descent": []}, []
    for alpha in CLASSES:
        trainer = ImitationTrainer(TreatmentStream(alpha), NeymanTeacher(1, alpha), show_progress_bars=False)
        start = time.process_time()
        students["transformer"].append(trainer.train(**TRAINING, seed=0))
        seconds.append(time.process_time() - start)
        students["gradient descent"].append(GradientExperimenter(1, alpha))
    for alpha in CLASSES:
        problems = TreatmentStream(alpha).sample(200, seed=1)
        teacher, coin = (measure(policy, problems)[1] for policy in (NeymanTeacher(1, alpha), CoinFlip(1)))
        for kind, experts in students.items():
            found = measure(MixtureOfExperimenters(experts), problems)
            ratio = float(found[1].mean() / teacher.mean())
            text = f"{as_text(*found)}; {ratio:.2f} times the teacher's, {float(found[1].mean() / coin.mean()):.2f} "
            text += f"times the coin's; training took {', '.join(f'{s:.0f}' for s in seconds)} CPU s"
            what = f"regret / V*, 200 streams of 300 units, α = {alpha}: mixture of {kind} students"
            report(what, text if kind == "transformer" else text.split("; training")[0], f"{COMMAND} students")
            assert ratio <= 1.3 and found[1].mean() <= 0.25 * coin.mean()
    assert max(seconds) <= 480


@pytest.mark.parametrize(
    "policy",
    [
        NeymanTeacher(1),
        MixtureOfExperimenters([NeymanTeacher(1, alpha) for alpha in CLASSES]),
        ExperimenterTransformer(1),
        GradientExperimenter(1),
        MixtureOfExperimenters([ExperimenterTransformer(1) for _ in CLASSES]),
    ],
    ids=["teacher", "mixture of teachers", "transformer", "gradient descent", "mixture of transformers"],
)
@torch.no_grad()
def test_speed(policy, request):
    """One live unit after 1,000: a propensity and an update, on one core."""
    num, times = 100, []
    problem = TreatmentStream(1.5).sample(1, seed=0)
    history = assign_stream(problem, CoinFlip(1), 1000 + num, seed=1).history[0]
    state = policy.read(history[:1000])
    for unit in history[1000:]:
        start = time.process_time()  # not the clock on the wall: other processes may share the core
        policy.propensity(state, unit[:1])
        state = policy.update(state, unit[:1], unit[1], unit[2])
        times.append(time.process_time() - start)
    times = 1e3 * torch.tensor(times).double()
    text = f"{float(times.mean()):.2f} CPU ms on average, {float(times.max()):.1f} at most"
    report(f"one unit at t = 1,000: {request.node.callspec.id}", text, f"{COMMAND} speed")
    assert times.mean() <= 5
