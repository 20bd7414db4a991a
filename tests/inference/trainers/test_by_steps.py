"""The loop of all trainers by steps: stopped anywhere and resumed equals uninterrupted; settings; time; progress."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sbi_bed.inference as room
from sbi_bed.inference import DAD, ContextDAD, ImitationTrainer, StepSettings, StepTrainer
from sbi_bed.inference.trainers import by_steps
from sbi_bed.inference.trainers.settings import Settings, cosine_decay
from sbi_bed.objectives import PCE, InfoNCE, LikelihoodBound, ModelPCE
from sbi_bed.policies import DeepSetsPolicy, ExperimenterTransformer, NonContextualNeyman, StaticPolicy
from sbi_bed.simulators import HyperbolicDiscounting, LocationFinding, ModelMixture, PowerScaledPrior, TreatmentStream
from sbi_bed.utils.files import load_file

SIMULATOR, CHOICES = LocationFinding(), HyperbolicDiscounting()


class Line(StepTrainer):
    """Fits a line by noisy gradients: the smallest trainer there can be."""

    def __init__(self, **options):
        super().__init__(**options)
        self.net = nn.Linear(1, 1)

    def train(self, num_steps=100, batch_size=16, learning_rate=0.05, **settings):
        arguments = {"num_steps": num_steps, "batch_size": batch_size, "learning_rate": learning_rate}
        self._train(StepSettings.of({**arguments, **settings}))
        return self.net

    def _nets(self):
        return {"line": self.net}

    def _loss(self, num, done):
        x = torch.randn(num, 1)
        loss = (self.net(x) - 3 * x + 1).square().mean()
        return loss, loss.detach()


def line(**options):
    torch.manual_seed(0)
    return Line(show_progress_bars=False, **options)


def of_dad(simulator, policy=None, bound=None, **extra):
    def build(**options):
        torch.manual_seed(1)
        parts = {"policy": policy and policy(), "bound": bound and bound()}
        trainer = DAD(simulator, 2, show_progress_bars=False, **parts, **options)
        return trainer, {"num_steps": 11, "batch_size": 4, **extra}

    return build


def in_contexts(**options):
    prior = PowerScaledPrior(SIMULATOR.prior)
    return ContextDAD(SIMULATOR, prior, 2, show_progress_bars=False, **options), {"num_steps": 11, "batch_size": 4}


def by_imitation(**options):
    torch.manual_seed(1)
    student = ExperimenterTransformer(1, hidden_dim=8, num_layers=1, num_heads=2)
    trainer = ImitationTrainer(
        TreatmentStream(1.5), NonContextualNeyman(1), student, show_progress_bars=False, **options
    )
    return trainer, {"num_steps": 11, "batch_size": 4, "num_episodes": 6, "num_units": 20, "units_per_episode": 5}


TRAINERS = {
    "line": lambda **options: (line(**options), {"num_steps": 11, "batch_size": 4}),
    "DAD, default policy": of_dad(SIMULATOR, num_contrastive=3),
    "DAD, experiments that grow": of_dad(SIMULATOR, num_contrastive=3, first_trials=1),
    "DAD, score function": of_dad(CHOICES, lambda: DeepSetsPolicy(CHOICES, 4, 2), num_contrastive=3),
    "DAD, local proposal": of_dad(SIMULATOR, lambda: DeepSetsPolicy(SIMULATOR, 4, 2), lambda: PCE(3, "local")),
    "DAD, shards": of_dad(SIMULATOR, lambda: DeepSetsPolicy(SIMULATOR, 4, 2), num_contrastive=3, num_shards=2),
    "DAD, static starts": of_dad(SIMULATOR, lambda: StaticPolicy(SIMULATOR, 2, num_starts=2), num_contrastive=3),
    "DAD, InfoNCE": of_dad(SIMULATOR, None, lambda: InfoNCE(SIMULATOR, 4, 8, fitting_steps=1)),
    "DAD, NLE": of_dad(SIMULATOR, None, lambda: LikelihoodBound(SIMULATOR, num_contrastive=3, hidden_features=4)),
    "DAD, models": of_dad(ModelMixture([CHOICES, CHOICES]), None, lambda: ModelPCE(8)),
    "ContextDAD": in_contexts,
    "imitation": by_imitation,
}


class Stop(Exception):
    """Raised in place of a step: the process is gone."""


def state_of(trainer):
    """Weights of a finished trainer, and every public attribute that is plain data; a report is made when asked for."""
    weights = {name: net.state_dict() for name, net in trainer._nets().items()}
    plain = (bool, int, float, str, list, tuple, type(None))
    names = [name for name in dir(trainer) if not name.startswith("_") and name != "report"]
    return weights, {name: getattr(trainer, name) for name in names if isinstance(getattr(trainer, name), plain)}


def assert_equal(one, other):
    for name, weights in one[0].items():
        for key, value in weights.items():
            assert torch.equal(value, other[0][name][key]), (name, key)
    assert one[1] == other[1]


@pytest.mark.parametrize("name", TRAINERS)
@settings(max_examples=3, deadline=None)
@given(stop=st.integers(0, 11), every=st.integers(1, 6), seed=st.sampled_from([None, 0, np.int64(3)]))
def test_a_resumed_training_equals_an_uninterrupted_one(name, tmp_path_factory, stop, every, seed):
    path = tmp_path_factory.mktemp("training") / "checkpoint"
    torch.manual_seed(7)
    whole, arguments = TRAINERS[name]()
    torch.manual_seed(8)
    whole.train(**arguments, seed=seed)
    keep = {"checkpoint": path, "checkpoint_every": every}
    torch.manual_seed(7)
    stopped, _ = TRAINERS[name]()
    step = stopped._step

    def step_until(*given_):
        if stopped.num_steps == stop:
            raise Stop
        return step(*given_)

    stopped._step = step_until
    torch.manual_seed(8)
    try:
        stopped.train(**arguments, seed=seed, **keep)
    except Stop:
        assert stop < 11
    torch.manual_seed(7)
    resumed, _ = TRAINERS[name]()
    torch.manual_seed(8 if stop < every else 99)  # without a file it begins again, where the generator then stands
    resumed.train(**arguments, seed=seed, **keep, resume=True)
    assert_equal(state_of(resumed), state_of(whole))
    assert load_file(path, "training")["step"] == 11
    torch.manual_seed(7)
    again, _ = TRAINERS[name]()  # finished: nothing more to do
    again.train(**arguments, seed=seed, **keep, resume=True)
    assert_equal(state_of(again), state_of(whole))


@pytest.mark.parametrize("name", TRAINERS)
def test_numbers_of_numpy_are_settings(name, tmp_path):
    trainer, arguments = TRAINERS[name]()
    arguments |= {"num_steps": np.int64(2), "batch_size": np.int32(4), "learning_rate": np.float32(1e-3)}
    arguments |= {"seed": np.int64(0), "final_learning_rate": np.float64(0.1), "clip_max_norm": np.float32(2)}
    arguments |= {"max_seconds": np.float64(60), "checkpoint": str(tmp_path / "file"), "checkpoint_every": np.int64(1)}
    trainer.train(**arguments)
    again, _ = TRAINERS[name]()
    again.train(**arguments, resume=True)
    assert_equal(state_of(again), state_of(trainer))


def test_every_trainer_by_steps_takes_every_setting_and_refuses_others_by_name():
    trainers = [getattr(room, name) for name in room.__all__]
    trainers = [each for each in trainers if isinstance(each, type) and issubclass(each, StepTrainer)]
    assert {DAD, ContextDAD} <= set(trainers)
    for trainer in set(trainers) - {StepTrainer}:
        parameters = inspect.signature(trainer.train).parameters
        missing = set(inspect.signature(StepSettings).parameters) - set(parameters)
        assert not missing or any(p.kind is p.VAR_KEYWORD for p in parameters.values()), trainer
        assert "seed" not in parameters or parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY, trainer
    for name in TRAINERS:
        trainer, arguments = TRAINERS[name]()
        with pytest.raises(TypeError, match=r"train\(\) has no argument 'patience'; it takes learning_rate"):
            trainer.train(**arguments, patience=3)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be a whole number"),
        ({"batch_size": 1}, ValueError, "batch_size must be at least 2"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be positive"),
        ({"final_learning_rate": 1.5}, ValueError, "final_learning_rate must be a share"),
        ({"clip_max_norm": -1}, ValueError, "clip_max_norm must be positive"),
        ({"max_seconds": 0}, ValueError, "max_seconds must be positive"),
        ({"seed": 2.5}, TypeError, "seed must be a whole number"),
        ({"resume": True}, ValueError, "resume=True needs checkpoint="),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
        ({"num_shards": 0}, ValueError, "num_shards must be at least 1"),
        ({"batch_size": 7, "num_shards": 2}, ValueError, "a batch of 7 cannot be cut into 2 equal shards"),
    ],
)
def test_settings_out_of_range_are_refused(changes, error, match):
    with pytest.raises(error, match=match):
        line().train(**{"num_steps": 3, **changes})


def test_no_limit_is_none_or_infinity():
    for value in (None, float("inf"), np.inf):
        checked = Settings(learning_rate=0.1, clip_max_norm=value, max_seconds=value)
        assert checked.clip_max_norm is None and checked.max_seconds is None and checked.largest_norm == float("inf")


def test_the_learning_rate_falls_along_a_cosine():
    checked = Settings(learning_rate=0.2, final_learning_rate=0.1)
    rates = [checked.learning_rate_at(done) for done in (0.0, 0.5, 1.0, 2.0)]
    assert rates == pytest.approx([0.2, 0.11, 0.02, 0.02]) and cosine_decay(1.0) == pytest.approx(0.01)


def test_a_training_reaches_its_aim():
    net = line().train(400, seed=0)
    assert net.weight.item() == pytest.approx(3, abs=0.05) and net.bias.item() == pytest.approx(-1, abs=0.05)
    assert not net.training


class Clock:
    """Each look at the clock is a second later."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


def test_time_counts_from_the_call_and_goes_on_in_a_resumed_training(monkeypatch, tmp_path):
    monkeypatch.setattr(by_steps.time, "perf_counter", Clock())
    trainer = line()
    trainer.train(10**6, max_seconds=50, checkpoint=tmp_path / "file", seed=0)
    assert 40 < trainer.num_steps <= 50
    content = load_file(tmp_path / "file", "training")  # the state in which the time was up
    assert content["step"] == trainer.num_steps and content["reports"] == trainer.reports
    assert len(trainer.reports) == trainer.num_steps // 20 + (trainer.num_steps % 20 > 0)
    resumed = line()
    resumed.train(10**6, max_seconds=50, checkpoint=tmp_path / "file", seed=0, resume=True)
    assert resumed.num_steps == trainer.num_steps  # its time was up before


def test_the_learning_rate_falls_within_the_time(monkeypatch):
    rates = []

    class Listener:
        def log_params(self, params):
            pass

        def log_metrics(self, metrics, step=None):
            rates.append(metrics["learning_rate"])

    monkeypatch.setattr(by_steps.time, "perf_counter", Clock())
    line(tracker=Listener()).train(10**6, learning_rate=1.0, max_seconds=200, seed=0)
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.02


def test_nothing_is_written_or_shown_unasked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line().train(3, seed=0)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr() == ("", "")
    torch.manual_seed(0)
    Line().train(41, seed=0)
    shown = capsys.readouterr().err
    assert "training: 100%" in shown and "41/41" in shown and "loss=" in shown


def test_a_loss_that_is_nan_leaves_the_weights_of_the_step_before():
    class Breaks(Line):
        advice_about_nan = "look at x"

        def _loss(self, num, done):
            loss, value = super()._loss(num, done)
            return (loss * float("nan"), value) if self.num_steps == 3 else (loss, value)

    torch.manual_seed(0)
    broken = Breaks(show_progress_bars=False)
    with pytest.raises(ValueError, match="the gradient became NaN or infinite: look at x"):
        broken.train(10, seed=0)
    fine = line()
    fine._step = lambda *arguments: (_ for _ in ()).throw(Stop) if fine.num_steps == 3 else Line._step(fine, *arguments)
    with pytest.raises(Stop):
        fine.train(10, seed=0)
    assert torch.equal(broken.net.weight, fine.net.weight)
    with pytest.raises(ValueError, match="the gradient became NaN or infinite"):
        Breaks(show_progress_bars=False).train(10, seed=0, clip_max_norm=None)


def test_another_trainings_checkpoint_is_refused(tmp_path):
    path = tmp_path / "file"
    line().train(3, seed=0, checkpoint=path)
    policy, arguments = TRAINERS["DAD, default policy"]()
    with pytest.raises(ValueError, match=r"is a checkpoint of a training with .*Line"):
        policy.train(**arguments, checkpoint=path, resume=True)


def test_arguments_that_moved_to_the_bound_still_mean_the_same():
    def weights(bound=None, **moved):
        torch.manual_seed(1)
        policy = DeepSetsPolicy(SIMULATOR, 4, 2)
        DAD(SIMULATOR, 2, policy, bound=bound, show_progress_bars=False).train(3, 4, 3, seed=0, **moved)
        return nn.utils.parameters_to_vector(policy.parameters())

    for moved in ({"proposal": "local"}, {"gradient": "score", "baseline": "mean"}, {"max_design_gradient": 1e-3}):
        with pytest.warns(FutureWarning, match=f"{', '.join(moved)}: now arguments of the bound"):
            before = weights(**moved)
        assert torch.equal(before, weights(PCE(**moved))) and not torch.equal(before, weights())
    mixture = ModelMixture([CHOICES, CHOICES])
    trainer = DAD(mixture, 2, show_progress_bars=False)
    with pytest.warns(FutureWarning):
        trainer.train(1, 4, 8, seed=0, objective="model")
    assert isinstance(trainer.bound, ModelPCE) and trainer.bound.num_contrastive == 8
    trainer = DAD(SIMULATOR, 2, bound=InfoNCE(SIMULATOR, 4, 8), show_progress_bars=False)
    with pytest.warns(FutureWarning):
        trainer.train(1, 4, seed=0, bound_steps=2)
    assert trainer.bound.fitting_steps == 2
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="neither score-function gradients nor proposals"):
        trainer.train(1, 4, gradient="score")


def test_contexts_that_a_policy_was_not_built_for_are_refused():
    prior = PowerScaledPrior(SIMULATOR.prior)
    policy = ContextDAD(SIMULATOR, prior, 2).policy
    other = type(policy.contexts).power_scaling(prior, 0.9, 1.1)
    with pytest.raises(ValueError, match="the policy was built for"):
        ContextDAD(SIMULATOR, prior, 2, other, policy)
    assert ContextDAD(SIMULATOR, prior, 2, None, policy).contexts is policy.contexts
    with pytest.raises(ValueError, match="needs one prior for all experiments"):
        ContextDAD(SIMULATOR, prior, 2, bound=PCE(proposal="local"))
    with pytest.raises(TypeError, match="bound must be a PCE"):
        ContextDAD(SIMULATOR, prior, 2, bound=InfoNCE(SIMULATOR))
