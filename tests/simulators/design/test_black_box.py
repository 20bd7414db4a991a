"""Any callable as an experiment: what it takes and returns, failures, and the likelihood that it learns."""
# ruff: noqa: NPY002 - the generators that simulators of users draw from

import copy
import math
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from models import LinearGaussian, gaussian_prior
from torch.distributions import Independent, Normal, Uniform, constraints

from sbi_bed.inference import DAD, AdaptiveExperiment, StepDAD, likelihood_posterior
from sbi_bed.policies import GreedyPolicy, RandomPolicy
from sbi_bed.simulators import DesignSimulator, PolicySimulator, process_design_simulator, rollout
from sbi_bed.utils import seeded
from sbi_bed.utils.files import load_file, save_file

PRIOR, SPACE = gaussian_prior(2), constraints.interval(-torch.ones(1), torch.ones(1))
NOISE = 0.5


def one_row(theta, design):  # as users of scipy write: one theta, numpy
    return float(theta[0] + theta[1] * design[0] + NOISE * np.random.normal())


def many_rows(theta, design):
    return theta[:, :1] + theta[:, 1:] * design + NOISE * np.random.normal(size=(len(theta), 1))


def tensors(theta, design):
    return (theta[..., :1] + theta[..., 1:] * design).exp() + torch.randn(*theta.shape[:-1], 1)


def of_shape(value):
    return lambda theta, design: value(theta[0] * design[0] + np.random.normal())


def process(simulator=one_row, prior=PRIOR, space=SPACE, **options):
    return process_design_simulator(simulator, prior, space, **options)


@pytest.mark.parametrize(
    ("simulator", "many", "uses_tensors"),
    [
        (one_row, False, False),
        (many_rows, True, False),
        (lambda theta, design: torch.distributions.Poisson((theta[:, :1] + design).exp()).sample(), True, True),
        (lambda theta, design: torch.normal(theta[0] + design[0], 1.0), False, True),
    ],
)
def test_it_finds_out_what_the_simulator_takes(simulator, many, uses_tensors):
    runner = process(simulator).runner
    assert (runner.takes_many, runner.takes_tensors) == (many, uses_tensors)


def test_rows_are_not_mixed_up_where_one_theta_is_meant():
    """theta[0] of a batch is its first row: the shapes agree, the numbers do not."""
    simulator = process(lambda theta, design: theta[0] * design + 1e-3 * np.random.normal(size=1), gaussian_prior(1))
    assert not simulator.runner.takes_many
    theta, design = torch.randn(50, 1), torch.ones(50, 1)
    torch.testing.assert_close(simulator(theta, design), theta, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("value", "dim"),
    [
        (lambda y: y, 1),
        (lambda y: [y, 2.0], 2),
        (lambda y: (1, [y, y]), 3),
        (lambda y: np.full((2, 3), y), 6),
        (lambda y: {"count": 1, "time": np.array([y])}, 2),
        (lambda y: bool(y > 0), 1),
    ],
)
def test_outcomes_are_flattened(value, dim):
    simulator = process(of_shape(value))
    assert simulator.outcome_dim == dim and simulator(PRIOR.sample((4, 1)), torch.zeros(3, 1)).shape == (4, 3, dim)


def test_outcomes_are_those_of_the_simulator_and_follow_the_seed():
    for callable_ in (one_row, many_rows, tensors):
        simulator = process(callable_)
        theta = torch.tensor([0.3, -1.0])
        with seeded(0):
            first = simulator(theta.expand(2000, -1), torch.tensor([0.5]))
        with seeded(0):
            torch.testing.assert_close(first, simulator(theta.expand(2000, -1), torch.tensor([0.5])))
        expected = -0.2 if callable_ is not tensors else math.exp(-0.2)
        assert abs(first.mean() - expected) < 4 * first.std() / math.sqrt(2000)


def test_building_one_leaves_random_numbers_as_they_are():
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    process(many_rows).pilot(10)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()


def failing(theta, design):
    if np.random.rand() < 0.2:
        raise RuntimeError("solver diverged")
    return np.nan if theta[0] > 1.5 else one_row(theta, design)


def test_failed_runs_are_counted_and_left_out():
    simulator = process(failing)
    with seeded(0):
        theta = PRIOR.sample((200,)).clamp_max(1.4)
        outcome = simulator(theta, torch.zeros(1))
    assert torch.isfinite(outcome).all() and simulator.runner.num_failed > 20
    with pytest.raises(ValueError, match=r"failed 10 times for theta \[2.0, 0.0\]"):
        simulator(torch.tensor([2.0, 0.0]), torch.zeros(1))
    report = simulator.learn_likelihood(500, seed=0)
    assert report.num_failed == simulator.runner.num_failed and simulator.simulations.theta[:, 0].max() <= 1.5
    assert report.num_simulations == len(simulator.simulations.theta) < 500


@pytest.mark.parametrize(
    ("simulator", "error", "message"),
    [
        (3, TypeError, "simulator must be a callable"),
        (lambda theta, design: "yes", ValueError, "must return numbers"),
        (lambda theta, design: np.nan, ValueError, "failed for each of 5 draws"),
        (lambda theta, design: 1 / 0, ValueError, "ZeroDivisionError"),
        (lambda theta: theta, ValueError, "takes 1 positional argument"),
        (lambda theta, design: np.random.normal(size=np.random.randint(1, 9)), ValueError, "must all have one size"),
        (lambda theta, design: theta[0] * design[0], ValueError, "same outcome each time"),
        (lambda theta, design: theta[0] + np.random.default_rng(0).normal(), ValueError, "same outcome each time"),
    ],
)
def test_what_cannot_be_an_experiment_is_refused(simulator, error, message):
    with pytest.raises(error, match=message):
        process(simulator)


@pytest.fixture(scope="module")
def learned():
    simulator = process(many_rows)
    simulator.learn_likelihood(8000, seed=0)
    return simulator


def exact_log_likelihood(theta, design, outcome):
    return Normal(theta[..., 0] + theta[..., 1] * design[..., 0], NOISE).log_prob(outcome[..., 0])


def test_the_likelihood_is_learned_when_it_is_first_needed():
    simulator = process(many_rows, num_simulations=4000)
    assert simulator.has_likelihood and not simulator.likelihood_is_learned
    trial = torch.zeros(1, 2), torch.tensor([[0.5]]), torch.tensor([[0.3]])
    value = simulator.log_likelihood(*trial)
    assert simulator.likelihood_is_learned and (value - exact_log_likelihood(*trial)).abs() < 0.1
    assert torch.equal(value, simulator.surrogate.log_likelihood(*trial))
    assert "4,000 simulations (0 failed)" in str(simulator.report)


def test_a_posterior_by_the_learned_likelihood(learned):
    with seeded(4):
        designs = torch.linspace(-1.0, 1.0, 8).unsqueeze(-1)
        outcomes = learned(torch.tensor([1.0, -0.5]), designs)
    history = torch.cat([designs, outcomes, torch.ones(8, 1)], -1)
    posterior = likelihood_posterior(learned, history, seed=0)
    features = torch.cat([torch.ones(8, 1), designs], -1)
    precision = torch.eye(2) + features.T @ features / NOISE**2
    mean, sd = (
        torch.linalg.solve(precision, features.T @ outcomes / NOISE**2)[:, 0],
        precision.inverse().diagonal().sqrt(),
    )
    with seeded(0):
        samples = posterior.sample((4000,), show_progress_bars=False)
    assert ((samples.mean(0) - mean) / sd).abs().max() < 0.35  # eight errors of the likelihood add up
    assert (samples.std(0) / sd - 1).abs().max() < 0.2


def test_policies_and_live_experiments_take_it_as_it_is(learned):
    policy = DAD(learned, 3, show_progress_bars=False).train(150, 128, 127, seed=0)
    features = rollout(learned, policy, PRIOR.sample((500,)), 3).designs
    assert features.abs().mean() > 0.8  # the ends of the interval tell most
    greedy = GreedyPolicy(learned)
    assert greedy(torch.zeros(0, 3)).abs() > 0.8
    few = {"num_steps": 5, "num_particles": 256, "num_held_out": 64}
    experiment = StepDAD(policy, learned, 3, (2,), refine_settings=few, seed=0, show_progress_bars=False)
    while not experiment.done:
        experiment.record(learned(torch.zeros(2), experiment.next_design()))
    assert len(experiment.refinements) == 1 and experiment.posterior().sample(
        (10,), show_progress_bars=False
    ).shape == (10, 2)
    experiment = AdaptiveExperiment(greedy, learned, 2, seed=0)
    experiment.record([0.3], experiment.next_design())
    assert PolicySimulator(learned, RandomPolicy(learned), 2)(torch.zeros(4, 2)).shape == (4, 2, 3)


@pytest.mark.parametrize("round_to", [0.0, 1.0, 0.5])
def test_outcomes_at_several_designs_from_the_same_random_numbers(round_to):
    """Continuous, whole and mixed outcomes: alike where designs are, right where they are not."""

    def simulate(theta, design):
        first = many_rows(theta, design)
        rounded = np.where(first > -round_to / 2, first.round(), first) if round_to else first
        return np.concatenate([rounded, first + np.random.normal(size=first.shape)], 1)

    surrogate = process(simulate, num_simulations=500).surrogate
    theta, designs = PRIOR.sample((2, 1000)), torch.tensor([[-1.0], [1.0], [1.0]]).expand(2, -1, -1)
    with seeded(0):
        outcomes = surrogate.simulate_alike(theta, designs, seed=0)
        apart = surrogate(theta.unsqueeze(-3), designs.unsqueeze(-2))
    assert outcomes.shape == apart.shape == (2, 3, 1000, 2)
    assert torch.equal(outcomes[:, 1], outcomes[:, 2]) and not torch.equal(apart[:, 1], apart[:, 2])
    # Two samples of the same distributions: means of 1,000 draws differ by at most about 5 standard errors.
    errors = (outcomes.mean(-2) - apart.mean(-2)) / (apart.std(-2) * math.sqrt(2 / 1000))
    assert errors.abs().max() < 5


def test_training_learns_by_itself_within_the_time():
    simulator = process(one_row)
    trainer = DAD(simulator, 2, show_progress_bars=False)
    trainer.train(seed=0, max_seconds=6)
    assert trainer.num_steps > 0 and simulator.likelihood_is_learned and simulator.report is not None


def test_a_net_takes_its_scales_from_a_few_slow_runs():
    def slow(theta, design):
        time.sleep(0.08)
        return one_row(theta, design)

    simulator = process(slow)
    trainer = DAD(simulator, 2, show_progress_bars=False)  # its net measures the outcomes
    assert 20 <= len(simulator.simulations.theta) < 100  # all 512 would take 41 s
    mean, sd = simulator.simulations.outcome.mean(0), simulator.simulations.outcome.std(0)
    torch.testing.assert_close(trainer.policy.features.outcome_mean, mean)
    torch.testing.assert_close(trainer.policy.features.outcome_sd, sd)


def test_it_is_simulated_where_the_policy_goes():
    simulator = process(many_rows, num_simulations=2000)
    DAD(simulator, 2, show_progress_bars=False).train(20, 32, 31, seed=0)
    assert len(simulator.simulations.theta) == 3000


@pytest.mark.parametrize("killed_at", [8, 16])
def test_a_resumed_training_has_the_likelihood_of_the_whole_one(tmp_path, killed_at):
    """Before and after the likelihood is improved, which is after the tenth step."""
    settings = {"num_steps": 20, "batch_size": 16, "num_contrastive": 15, "seed": 3}
    whole = DAD(process(many_rows, num_simulations=1200, max_seconds=1e4), 2, show_progress_bars=False)
    weights = torch.cat([p.flatten() for p in whole.train(**settings).parameters()])

    class Killed(DAD):
        def _loss(self, num, done):
            if self.num_steps == killed_at:
                raise KeyboardInterrupt
            return super()._loss(num, done)

    settings |= {"checkpoint": tmp_path / "checkpoint", "checkpoint_every": 4}
    killed = Killed(process(many_rows, num_simulations=1200, max_seconds=1e4), 2, show_progress_bars=False)
    with pytest.raises(KeyboardInterrupt):
        killed.train(**settings)
    content = load_file(settings["checkpoint"], "training")
    content["settings"]["trainer"] = "DAD"
    save_file(settings["checkpoint"], "training", content)
    simulator = process(many_rows, num_simulations=1200, max_seconds=1e4)
    resumed = DAD(simulator, 2, show_progress_bars=False)
    policy = resumed.train(**settings, resume=True)
    assert torch.equal(torch.cat([p.flatten() for p in policy.parameters()]), weights)
    assert len(simulator.simulations.theta) == 1800
    assert simulator.runner.num_runs < (
        1300 if killed_at == 8 else 700
    )  # 512 by which nets scale; not the first 1200 again
    with pytest.raises(ValueError, match="of sizes"):
        DAD(process(of_shape(lambda y: [y, y])), 2, policy, show_progress_bars=False).train(**settings, resume=True)


def test_the_same_seed_gives_the_same_likelihood():
    values = []
    for _ in range(2):
        simulator = process(one_row)
        simulator.learn_likelihood(400, seed=3)
        values.append(simulator.log_likelihood(torch.zeros(2), torch.zeros(1), torch.ones(1)))
    assert torch.equal(*values)


def test_a_saved_likelihood_goes_on(learned, tmp_path):
    learned.save_likelihood(tmp_path / "likelihood.pt")
    other = process(many_rows)
    other.load_likelihood(tmp_path / "likelihood.pt")
    trials = torch.randn(20, 2), torch.rand(20, 1), torch.randn(20, 1)
    assert torch.equal(other.log_likelihood(*trials), learned.log_likelihood(*trials)) and str(other.report) == str(
        learned.report
    )
    with pytest.raises(
        ValueError, match=r"likelihood.pt cannot be loaded: it is of theta, design and outcome of sizes"
    ):
        process(of_shape(lambda y: [y, y])).load_likelihood(tmp_path / "likelihood.pt")
    with pytest.raises(ValueError, match="no likelihood to save"):
        process(many_rows).save_likelihood(tmp_path / "none.pt")
    again = pickle.loads(pickle.dumps(learned))
    assert torch.equal(again.log_likelihood(*trials), learned.log_likelihood(*trials))
    assert torch.equal(copy.deepcopy(learned).log_likelihood(*trials), learned.log_likelihood(*trials))


def test_another_prior_keeps_the_likelihood(learned):
    narrow = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    other = learned.with_prior(narrow)
    trials = torch.zeros(3, 2), torch.rand(3, 1), torch.randn(3, 1)
    assert torch.equal(other.log_likelihood(*trials), learned.log_likelihood(*trials))
    assert other.surrogate.prior is narrow and learned.surrogate.prior is learned.prior


def test_it_says_what_left_the_simulations(learned):
    trial = torch.zeros(5, 2), torch.zeros(1), torch.zeros(5, 1)
    history = torch.tensor([[0.5, 1000.0, 1.0]])
    experiment = AdaptiveExperiment(RandomPolicy(learned), learned, 2, seed=0)
    experiment.next_design()
    for call, what in (
        (
            lambda: learned.log_likelihood(trial[0] + 9, *trial[1:]),
            r"theta\[0\] = 9, simulated from -\d.*; theta\[1\] = 9",
        ),
        (
            lambda: learned.log_likelihood(trial[0], trial[1] - 2, trial[2]),
            r"design\[0\] = -2, simulated from -\S+ to \S+\. ",
        ),
        (lambda: learned.log_likelihood(*trial[:2], trial[2] + 1e3), r"outcome\[0\] = 1000"),
        (
            lambda: learned.with_prior(Independent(Normal(torch.full((2,), 4.0), 1.0), 1)),
            r"theta\[0\] = .*theta\[1\] = ",
        ),
        (lambda: likelihood_posterior(learned, history, num_particles=100, seed=0), r"outcome\[0\] = 1000"),
        (lambda: experiment.record([1000.0]), r"outcome\[0\] = 1000"),
    ):
        with pytest.warns(RuntimeWarning, match=what) as caught:
            call()
        assert sum("outside its simulations" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theta, design = PRIOR.sample((1000,)), learned.design_space.sample((1000,))
        learned.log_likelihood(theta, design, learned(theta, design))
        learned.with_prior(Independent(Uniform(-torch.ones(2), torch.ones(2)), 1))


def test_double_precision():
    simulator = process(many_rows, gaussian_prior(2, torch.float64))
    simulator.learn_likelihood(400, seed=0)
    theta = torch.zeros(5, 2, dtype=torch.float64)
    assert simulator(theta, torch.zeros(1)).dtype == torch.float64
    assert simulator.log_likelihood(theta, torch.zeros(1), torch.zeros(1)).dtype == torch.float64


def test_another_program(tmp_path):
    script = tmp_path / "model.py"
    script.write_text("import sys, random; a, t = map(float, sys.argv[1:]); print(a * t + random.gauss(0, 1))")

    def run(theta, design):
        command = [sys.executable, "-S", "-E", str(script), str(theta[0]), str(design[0])]
        return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    simulator = process(run, gaussian_prior(1))
    assert not simulator.runner.repeats and not simulator.runner.is_deterministic
    assert simulator(torch.zeros(2, 1), torch.zeros(1)).shape == (2, 1)


@pytest.mark.parametrize(
    "simulate",
    [
        lambda theta, design: (theta * design).detach() + torch.randn_like(theta),
        lambda theta, design: torch.from_numpy((theta * design.detach()).numpy()) + torch.randn_like(theta),
        lambda theta, design: (theta * design + torch.randn_like(theta)).round(),
    ],
)
def test_outcomes_without_gradients_are_not_taken_for_reparameterised_ones(simulate):
    simulator = DesignSimulator(gaussian_prior(1), simulate, SPACE, reparameterized=True)
    with pytest.raises(ValueError, match="outcomes carry no gradient to the design"):
        DAD(simulator, 2)
    DAD(LinearGaussian(), 2)


def test_simulations_in_processes_are_the_same_wherever_they_run():
    def draw(theta, design):  # made here, since processes cannot import this module by its name
        if np.random.rand() < failing:
            raise RuntimeError("solver diverged")
        return theta[0] + theta[1] * design[0] + NOISE * np.random.normal()

    outcomes, failing = [], 0.0
    for _ in range(2):
        simulator = process(draw, num_workers=2)
        with seeded(0):
            outcomes.append(simulator.runner.in_processes(*_rows(40), 2))
    assert torch.equal(*outcomes) and len(outcomes[0].unique()) == 40
    failing = 0.2
    simulator = process(draw, num_workers=2)
    outcome = simulator.runner.in_processes(*_rows(40), 2)
    assert simulator.runner.num_failed >= outcome.isnan().sum() > 0


def test_a_generator_of_its_own_is_not_copied_to_processes():
    generator = np.random.default_rng(0)
    simulator = process(lambda theta, design: theta[0] + generator.normal(), num_workers=2)
    assert not simulator.runner.repeats
    with pytest.raises(ValueError, match="a random generator of its own"):
        simulator.learn_likelihood(300, seed=0)


def _rows(num):
    return torch.linspace(-1.0, 1.9, 2 * num).reshape(num, 2), torch.zeros(num, 1)


RUN_UNTIL_KILLED = """
import sys, time
import numpy as np, torch
from torch.distributions import Independent, Normal, constraints
import sbi_bed.simulators.design.black_box as black_box
black_box._SAVE_EVERY = 0.05
def slow(theta, design):
    time.sleep(0.005)
    return theta[0] + np.random.normal()
simulator = black_box.process_design_simulator(
    slow, Independent(Normal(torch.zeros(2), 1.0), 1), constraints.interval(-torch.ones(1), torch.ones(1)), cache=sys.argv[1]
)
print("ready", flush=True)
simulator.learn_likelihood(100_000, seed=0, max_seconds=1000)
"""


def test_simulations_survive_a_kill(tmp_path):
    cache = tmp_path / "simulations.pt"
    running = subprocess.Popen([sys.executable, "-c", RUN_UNTIL_KILLED, str(cache)], stdout=subprocess.PIPE)
    try:
        assert running.stdout.readline() == b"ready\n"
        while not cache.exists():
            time.sleep(0.05)
        time.sleep(0.5)
    finally:
        running.kill()
        running.wait()
        running.stdout.close()
    simulator = process(lambda theta, design: float(theta[0] + np.random.normal()), cache=cache)
    num = len(simulator.simulations.theta)
    assert num > 0
    simulator.learn_likelihood(num + 300, seed=0)
    again = process(lambda theta, design: float(theta[0] + np.random.normal()), cache=cache)
    assert len(again.simulations.theta) == num + 300 and torch.equal(again.simulations[2], simulator.simulations[2])
    with pytest.raises(
        ValueError, match=r"simulations.pt cannot be loaded: it is of theta, design and outcome of sizes"
    ):
        process(of_shape(lambda y: [y, y]), cache=cache)


def test_what_is_done_in_time_is_learned_from():
    def slow(theta, design):
        time.sleep(0.002)
        return one_row(theta, design)

    simulator = process(slow)
    report = simulator.learn_likelihood(10**6, seed=0, max_seconds=2.0)
    assert 200 <= report.num_simulations < 10**6
    with pytest.raises(ValueError, match="simulations succeeded within the time limit"):
        process(slow).learn_likelihood(10**6, seed=0, max_seconds=0.01)
