"""DAD: reaches known optima, repeats itself, resumes bitwise, and says what is wrong."""

import itertools
import math
import types

import numpy as np
import pytest
import torch
from models import LinearGaussian, TinyPolicy, YesNo
from torch.distributions import MultivariateNormal, constraints
from torch.utils._python_dispatch import TorchDispatchMode

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD
from sbi_bed.inference.trainers.design.bounded_gradients import BoundedGradients
from sbi_bed.objectives import PCE, InfoNCE
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy, StaticPolicy, TransformerPolicy
from sbi_bed.simulators import ConstantElasticity, DesignSimulator, HyperbolicDiscounting, LocationFinding, rollout
from sbi_bed.simulators.experiments import Experiments
from sbi_bed.utils import pack_history
from sbi_bed.utils.files import load_file, save_file


class Recorder:
    """An sbi `Tracker` that keeps what it is told, and may fail at a step."""

    log_dir = None

    def __init__(self, fail_at=None):
        self.params, self.metrics, self.fail_at = [], [], fail_at

    def log_params(self, params):
        self.params.append(params)

    def log_metric(self, name, value, step=None):
        self.log_metrics({name: value}, step)

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, metrics))
        if step == self.fail_at:
            raise KeyboardInterrupt

    def add_figure(self, name, figure, step=None): ...

    def flush(self): ...


def trainer(simulator=None, horizon=2, policy="tiny", **arguments):
    simulator = LinearGaussian() if simulator is None else simulator
    policy = TinyPolicy(simulator) if policy == "tiny" else policy
    return DAD(simulator, horizon, policy, show_progress_bars=False, **arguments)


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def exact_gain(simulator, policy, horizon, num=2000):
    with torch.no_grad():
        return float(
            simulator.gain_of(rollout(simulator, policy, simulator.prior.sample((num,)), horizon).designs).mean()
        )


@pytest.mark.parametrize(
    ("dim", "build", "gradient", "learning_rate", "num_starts"),
    [
        (1, lambda s: DeepSetsPolicy(s, 32, 8), "pathwise", 2e-2, 1),
        (2, lambda s: StaticPolicy(s, 2, num_starts=8), "pathwise", 1e-1, 1),
        (2, lambda s: TransformerPolicy(s, 2, 16, 1, 2), "auto", 2e-2, 5),  # one start in eight stays in one corner
        (1, lambda s: DeepSetsPolicy(s, 32, 8), "score", 2e-2, 1),
    ],
)
def test_training_reaches_the_best_designs(dim, build, gradient, learning_rate, num_starts):
    simulator = LinearGaussian(dim)
    torch.manual_seed(2)
    policy = build(simulator)
    before = exact_gain(simulator, policy, 2)
    bound = PCE(gradient=gradient)
    trainer = DAD(simulator, 2, policy, bound=bound, show_progress_bars=False)
    trainer.train(250, 128, 63, learning_rate, seed=0, num_starts=num_starts)
    after, best = exact_gain(simulator, policy, 2), simulator.best_gain(2)
    assert before < 0.9 * best
    assert 0.97 * best < after <= best + 1e-6


def test_the_best_of_several_starts_is_trained():
    """The policy given is stuck where designs cannot move; the others are not."""
    simulator = LinearGaussian(2)
    gains = []
    for num_starts in (1, 5):
        torch.manual_seed(0)
        policy = TransformerPolicy(simulator, 2, 16, 1, 2)
        with torch.no_grad():
            policy.head[1].bias.fill_(30.0)
        result = DAD(simulator, 2, policy, show_progress_bars=False).train(
            60, 64, 31, 1e-2, seed=0, num_starts=num_starts
        )
        assert result is policy
        gains.append(exact_gain(simulator, policy, 2))
    assert gains[1] > gains[0] + 0.1
    with pytest.raises(ValueError, match="starts of its own"):
        DAD(simulator, 2, StaticPolicy(simulator, 2), show_progress_bars=False).train(num_starts=2)


def test_training_on_discrete_outcomes_raises_the_gain():
    simulator = HyperbolicDiscounting()
    recorder = Recorder()
    policy = DeepSetsPolicy(simulator, 32, 16)
    before = expected_information_gain(simulator, policy, 3, 500, 500, seed=1)
    DAD(simulator, 3, policy, tracker=recorder, show_progress_bars=False).train(100, 128, 63, 1e-2, seed=0)
    after = expected_information_gain(simulator, policy, 3, 500, 500, seed=1)
    assert after.lower - before.lower > 5 * math.hypot(after.lower_stderr, before.lower_stderr)
    bounds = [metrics["information_gain_bound"] for _, metrics in recorder.metrics]
    assert len(bounds) == 5 and all(0 < bound <= math.log(64) for bound in bounds)


def test_the_same_seed_gives_the_same_result_and_leaves_no_trace():
    simulator = LinearGaussian()
    torch.manual_seed(1)
    first = DAD(simulator, 2, show_progress_bars=False).train(5, 8, 7, seed=4)
    torch.manual_seed(2)
    second = DAD(simulator, 2, show_progress_bars=False).train(5, 8, 7, seed=4)
    assert torch.equal(weights(first), weights(second))
    other = DAD(simulator, 2, show_progress_bars=False).train(5, 8, 7, seed=5)
    assert not torch.equal(weights(first), weights(other))
    before = torch.get_rng_state()
    trainer().train(5, 8, 7, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_global_generator_decides():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(weights(trainer().train(5, 8, 7)))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_experiments_grow_to_their_full_length(monkeypatch):
    lengths = []

    def recorded(simulator, policy, theta, num_trials, *arguments):
        lengths.append(num_trials)
        return rollout(simulator, policy, theta, num_trials, *arguments)

    monkeypatch.setattr("sbi_bed.simulators.experiments.rollout", recorded)
    trainer(horizon=4).train(20, 8, 7, seed=0, first_trials=1)
    assert lengths == [1] * 3 + [2] * 3 + [3] * 2 + [4] * 12
    lengths.clear()
    trainer(horizon=2).train(2, 8, 7, seed=0, first_trials=9)
    assert lengths == [2, 2]
    with pytest.raises(ValueError, match="first_trials"):
        trainer().train(2, 8, 7, first_trials=0)


def test_the_policy_is_trained_in_place_and_returned_for_use():
    policy = TinyPolicy(LinearGaussian())
    before = weights(policy).clone()
    returned = trainer(policy=policy).train(3, 8, 7, seed=0)
    assert returned is policy and not policy.training and not torch.equal(weights(policy), before)


@pytest.mark.parametrize("build", [LinearGaussian, lambda: YesNo(torch.float32)])
def test_an_interrupted_training_ends_bitwise_as_an_uninterrupted_one(build, tmp_path):
    settings = {
        "num_steps": 60,
        "batch_size": 8,
        "num_contrastive": 7,
        "learning_rate": 1e-2,
        "seed": 3,
        "first_trials": 1,
    }
    whole = trainer(build(), policy=None)
    policy = whole.train(**settings)
    path = tmp_path / "checkpoint"
    killed = trainer(build(), policy=None, tracker=Recorder(fail_at=39))
    with pytest.raises(KeyboardInterrupt):
        killed.train(**settings, checkpoint=path, checkpoint_every=25)
    assert load_file(path, "training")["step"] == 25
    torch.manual_seed(77)
    resumed = trainer(build(), policy=None)
    before = torch.get_rng_state()
    continued = resumed.train(**settings, checkpoint=path, checkpoint_every=25, resume=True)
    assert torch.equal(weights(continued), weights(policy))
    assert resumed.bounds == whole.bounds and len(whole.bounds) == 3
    assert torch.equal(torch.get_rng_state(), before)
    assert load_file(path, "training")["step"] == 60
    # Finished: nothing more to do.
    again = trainer(build(), policy=None).train(**settings, checkpoint=path, resume=True)
    assert torch.equal(weights(again), weights(policy))


def test_checkpoints_do_not_change_the_training(tmp_path):
    settings = {"num_steps": 6, "batch_size": 8, "num_contrastive": 7, "seed": 3}
    plain = trainer().train(**settings)
    kept = trainer().train(**settings, checkpoint=tmp_path / "checkpoint", checkpoint_every=1)
    assert torch.equal(weights(plain), weights(kept))
    # Nothing to resume yet: from the start.
    fresh = trainer().train(**settings, checkpoint=tmp_path / "new", resume=True)
    assert torch.equal(weights(plain), weights(fresh))


def test_settings_of_numpy_can_be_resumed(tmp_path):
    settings = {
        "num_steps": np.int64(2),
        "batch_size": 8,
        "num_contrastive": 7,
        "learning_rate": np.float64(1e-2),
        "seed": np.int64(3),
    }
    trainer().train(**settings, checkpoint=tmp_path / "checkpoint")
    trainer().train(**settings, checkpoint=tmp_path / "checkpoint", resume=True)


def test_wrong_checkpoints_are_refused(tmp_path):
    path, settings = tmp_path / "checkpoint", {"num_steps": 2, "batch_size": 8, "num_contrastive": 7, "seed": 3}
    trainer().train(**settings, checkpoint=path)
    for changes in (
        {"batch_size": 9},
        {"seed": 4},
        {"num_steps": 3},
        {"learning_rate": 0.5},
        {"clip_max_norm": 2.0},
        {"num_starts": 2},
    ):
        (name,) = changes
        with pytest.raises(ValueError, match=f"is a checkpoint of a training with .*{name}"):
            trainer().train(**{**settings, **changes}, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"is a checkpoint of a training with .*gradient"):
        trainer(bound=PCE(gradient="score")).train(**settings, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"is a checkpoint of a training with .*num_trials"):
        trainer(horizon=3).train(**settings, checkpoint=path, resume=True)
    with pytest.raises(ValueError, match=r"is a checkpoint of a training with .*policy"):
        trainer(policy=None).train(**settings, checkpoint=path, resume=True)
    trainer(policy=DeepSetsPolicy(LinearGaussian(), 8, 4)).train(**settings, checkpoint=path)
    assert "num_starts" not in load_file(path, "training")["settings"]  # as in files from before there were starts
    with pytest.raises(ValueError, match="is a checkpoint of another net"):
        trainer(policy=DeepSetsPolicy(LinearGaussian(), 9, 4)).train(**settings, checkpoint=path, resume=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated or not a file of sbi_bed"):
        trainer().train(**settings, checkpoint=path, resume=True)
    TinyPolicy(LinearGaussian()).save(path)
    with pytest.raises(ValueError, match=r"holds 'sbi_bed.policy' .*expected 'sbi_bed.training'"):
        trainer().train(**settings, checkpoint=path, resume=True)
    save_file(path, "training", {"step": 2})
    with pytest.raises(ValueError, match="lacks parts of a training"):
        trainer().train(**settings, checkpoint=path, resume=True)


def test_the_tracker_hears_of_settings_bound_rate_and_norm():
    recorder = Recorder()
    trainer(tracker=recorder).train(45, 8, 7, 1e-2, seed=0)
    assert recorder.params[0]["batch_size"] == 8 and recorder.params[0]["seed"] == 0
    assert [step for step, _ in recorder.metrics] == [19, 39, 44]
    for _, metrics in recorder.metrics:
        assert set(metrics) == {"information_gain_bound", "learning_rate", "gradient_norm"}
        assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
        assert metrics["information_gain_bound"] <= math.log(8)
    rates = [metrics["learning_rate"] for _, metrics in recorder.metrics]
    assert 1e-2 > rates[0] > rates[1] > rates[2] > 1e-4


def test_nothing_is_written_without_being_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trainer().train(3, 8, 7, seed=0)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
    DAD(LinearGaussian(), 2, TinyPolicy(LinearGaussian())).train(3, 8, 7, seed=0)
    assert "training policy" in capsys.readouterr().err


def test_refinement_trains_on_the_trials_that_remain():
    """Given ξ_1 along x, the best second design under the posterior lies along y, out to the bound."""
    simulator = LinearGaussian(2)
    history = pack_history(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.3]]), horizon=2)
    precision = torch.eye(2) + torch.tensor([[4.0, 0.0], [0.0, 0.0]])
    posterior = MultivariateNormal(torch.tensor([4 * 0.3 / 5, 0.0]), precision_matrix=precision)
    for prior in (posterior, posterior.sample((5000,)), lambda num: posterior.sample((num,))):
        torch.manual_seed(0)
        policy = StaticPolicy(simulator, 2)
        refiner = DAD(simulator, 2, policy, show_progress_bars=False, prior=prior, history=history)
        assert refiner.num_trials == 1
        first = policy.free.detach()[0, 0].clone()
        refiner.train(200, 128, 127, 1e-1, seed=0)
        assert torch.equal(policy.free.detach()[0, 0], first)  # the trial that was done is not designed again
        design = policy.design_space.from_free(policy.free.detach()[0, 1])
        gain = 0.5 * torch.logdet(precision + torch.outer(design, design) * 4) - 0.5 * torch.logdet(precision)
        best = 0.5 * math.log(torch.linalg.det(precision + 4 * torch.ones(2, 2)) / torch.linalg.det(precision))
        assert float(gain) > 0.95 * best


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: trainer(DesignSimulator(LinearGaussian().prior, lambda t, d: t + d, constraints.real)),
            ValueError,
            "needs a simulator with a log_likelihood",
        ),
        (lambda: trainer(horizon=0), ValueError, "horizon must be at least 1"),
        (lambda: trainer(policy=lambda history: torch.zeros(1)), TypeError, "DAD trains a Policy"),
        (lambda: trainer(policy=RandomPolicy(LinearGaussian())), ValueError, "RandomPolicy has nothing to train"),
        (
            lambda: trainer(policy=StaticPolicy(LinearGaussian(), 2, torch.ones(2, 1))),
            ValueError,
            "StaticPolicy has nothing to train",
        ),
        (lambda: trainer(history=torch.ones(2, 3)), ValueError, "no trial remains of a horizon of 2"),
        (lambda: trainer(history=torch.ones(1, 4)), ValueError, "history must have 3 values"),
        (lambda: trainer(history=torch.ones(5, 1, 3)), ValueError, "history must be that of one experiment"),
        (lambda: trainer(prior=3), TypeError, "prior must be a distribution, draws"),
        (lambda: trainer(prior=torch.zeros(5)), ValueError, r"draws of theta must have shape \(N, P\)"),
    ],
)
def test_what_cannot_be_trained_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"batch_size": 1}, ValueError, "batch_size must be at least 2"),
        ({"num_contrastive": 0}, ValueError, "num_contrastive must be at least 1"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be a whole number"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be positive"),
        ({"patience": 3}, TypeError, r"train\(\) has no argument 'patience'; it takes learning_rate, seed"),
        ({"resume": True}, ValueError, "resume=True needs checkpoint="),
        ({"clip_max_norm": 0.0}, ValueError, "clip_max_norm must be positive"),
        ({"final_learning_rate": 2.0}, ValueError, "final_learning_rate must be a share"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        trainer().train(**{"num_steps": 2, "batch_size": 8, "num_contrastive": 7, **changes})


def test_pathwise_is_refused_where_it_would_be_wrong():
    for simulator in (HyperbolicDiscounting(), ConstantElasticity()):
        with pytest.raises(ValueError, match="pathwise gradients need a simulator with reparameterized=True"):
            DAD(simulator, 2, bound=PCE(gradient="pathwise"))
    for name in ("gradient", "baseline", "proposal"):
        with pytest.raises(ValueError, match=f"{name} must be '"):
            PCE(**{name: "own"})
    with pytest.raises(ValueError, match="max_design_gradient must be positive"):
        PCE(max_design_gradient=0.0)


def test_a_likelihood_that_breaks_is_reported_and_the_weights_are_kept():
    broken = DesignSimulator(
        LinearGaussian().prior,
        lambda theta, design: theta + design,
        constraints.real,
        lambda theta, design, outcome: (design * float("nan") + theta * outcome).squeeze(-1),
        reparameterized=True,
    )
    policy = TinyPolicy(broken)
    before = weights(policy).clone()
    with pytest.raises(ValueError, match="the gradient became NaN or infinite: check that log_likelihood"):
        DAD(broken, 2, policy, show_progress_bars=False).train(2, 8, 7, seed=0)
    assert torch.equal(weights(policy), before)


def test_a_few_steps_on_every_benchmark_model():
    for simulator in (LocationFinding(2), ConstantElasticity(), HyperbolicDiscounting()):
        policy = DAD(simulator, 3, show_progress_bars=False).train(3, 16, 15, seed=0)
        assert torch.isfinite(weights(policy)).all()


def test_samples_near_the_truth_teach_where_prior_draws_are_silent():
    """Of 15 prior draws none comes near a posterior .005 wide: sPCE is flat at log 16 where local samples still slope."""
    simulator = LinearGaussian(noise_sd=0.01)
    gains = {}
    for proposal in ("prior", "local"):
        policy = TinyPolicy(simulator, start=0.3)
        before = exact_gain(simulator, policy, 2)
        bound = PCE(proposal=proposal)
        trainer(simulator, policy=policy, bound=bound).train(150, 128, 15, 1e-2, seed=0)
        gains[proposal] = exact_gain(simulator, policy, 2) - before
    assert gains["local"] > gains["prior"] + 0.1
    with pytest.raises(ValueError, match="needs the density of the prior"):
        trainer(prior=torch.randn(50, 1), bound=PCE(proposal="local"))


def test_compiled_training_takes_the_same_steps():
    policies = []
    for compile in (False, True):
        policies.append(TinyPolicy(LinearGaussian()))
        trainer(policy=policies[-1], bound=PCE(compile=compile)).train(5, 32, 31, 1e-2, seed=0)
    torch.testing.assert_close(weights(policies[0]), weights(policies[1]), rtol=1e-4, atol=1e-5)


def test_shards_of_one_process_and_a_checkpoint(tmp_path):
    """A training in shards resumes bitwise too: seeds of shards depend on the step, not on what came before."""
    simulator = LinearGaussian()
    whole, halves = TinyPolicy(simulator), TinyPolicy(simulator)
    trainer(simulator, policy=whole).train(6, 32, 15, 1e-2, seed=0, num_shards=2)
    path = tmp_path / "training.pt"
    settings = {"num_shards": 2, "checkpoint": path, "checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        trainer(simulator, policy=halves, tracker=Recorder(fail_at=5)).train(6, 32, 15, 1e-2, seed=0, **settings)
    halves = TinyPolicy(simulator)
    trainer(simulator, policy=halves).train(6, 32, 15, 1e-2, seed=0, resume=True, **settings)
    assert torch.equal(weights(whole), weights(halves))


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to another device, for which a step has to wait."""

    def __init__(self):
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_copy = any(name in str(func) for name in ("_to_copy", "copy_", "lift_fresh"))
        self.num += is_copy and any(isinstance(a, torch.Tensor) and a.device.type == "cpu" for a in args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("build_bound", [lambda s: PCE(7), lambda s: InfoNCE(s, 8, 16)])
@pytest.mark.parametrize("build_policy", [lambda s: TransformerPolicy(s, 3, 16), lambda s: DeepSetsPolicy(s, 8, 4)])
def test_a_step_on_a_device_copies_nothing_from_the_cpu(build_bound, build_policy):
    """The device "meta" computes nothing, but knows where tensors are."""
    simulator = LocationFinding()
    policy, bound = build_policy(simulator).to("meta"), build_bound(simulator).to("meta")
    experiments = Experiments(simulator, 3, device="meta")
    bound.check(experiments)
    bounded = BoundedGradients(policy, simulator.design_space, 1.0)
    for copies in (Copies(), Copies()):  # constants are copied once
        with copies:
            bound.training_loss(experiments.run(bounded, 16), experiments)[0].backward()
    assert copies.num == 0


def test_with_nothing_but_a_time_limit_small_steps_use_all_of_it(tmp_path, monkeypatch):
    ticks = itertools.count()  # a clock on which each look takes 20 ms
    clock = types.SimpleNamespace(perf_counter=lambda: 0.02 * next(ticks))
    monkeypatch.setattr("sbi_bed.inference.trainers.by_steps.time", clock)
    simulator, recorder, path = LinearGaussian(2), Recorder(), tmp_path / "checkpoint"
    in_time = DAD(simulator, 2, tracker=recorder, show_progress_bars=False)
    in_time.report_every = 1
    in_time.train(max_seconds=2.0, seed=0, checkpoint=path)
    assert 90 <= in_time.num_steps <= 96  # a twentieth of the time is the report's
    assert recorder.params[0]["batch_size"] == 256 and in_time.bound.num_contrastive == 255
    rates = [metrics["learning_rate"] for _, metrics in recorder.metrics]
    assert rates == sorted(rates, reverse=True) and rates[0] > 1.99e-3 and rates[-1] < 2.2e-5
    again = DAD(simulator, 2, show_progress_bars=False)
    again.train(max_seconds=2.0, seed=0, checkpoint=path, resume=True)
    assert again.num_steps - in_time.num_steps in (0, 1)  # its time is over
    in_time.train(1, 8, seed=0)
    assert in_time.bound.num_contrastive == 1023
    own = DAD(simulator, 2, bound=PCE(31), show_progress_bars=False)
    own.train(1, 8, max_seconds=60.0, seed=0)
    assert own.bound.num_contrastive == 31
