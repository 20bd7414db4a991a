"""Refinement during an experiment: it helps where it should, is undone where it does not, and survives a crash."""

import math
import warnings

import pytest
import torch
from models import LinearGaussian, RandomWalk
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn

from sbi_bed.inference import DAD, StepDAD, refine_policy
from sbi_bed.inference.experiments.journal import journal_bytes
from sbi_bed.inference.trainers.design.hidden_state import replay_state
from sbi_bed.inference.trainers.design.refinement import HeldOutGain, Refinement
from sbi_bed.neural_nets import HistoryEmbedding
from sbi_bed.objectives import InfoNCE
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy, StaticPolicy, TransformerPolicy
from sbi_bed.simulators import DesignSimulator, LocationFinding, StochasticEpidemic, rollout, simulate_histories
from sbi_bed.simulators.experiments import Experiments
from sbi_bed.utils import pack_history

QUICK = {
    "num_steps": 40,
    "batch_size": 64,
    "num_contrastive": 63,
    "num_particles": 512,
    "num_held_out": 512,
    "show_progress_bars": False,
}


@pytest.fixture(scope="module")
def location():
    """A policy for four readings, trained a little, and a history of two of them."""
    torch.manual_seed(0)
    simulator = LocationFinding()
    policy = DAD(simulator, 4, DeepSetsPolicy(simulator, 32, 8), show_progress_bars=False).train(150, 128, 63, seed=0)
    with torch.no_grad():
        history = pack_history(*rollout(simulator, policy, torch.tensor([1.0, -0.5]), 2))
    return simulator, policy, history


def test_refinement_raises_the_gain_of_the_remaining_trials(location):
    """In the mean of eight experiments: how much there is to gain depends on what was seen."""
    simulator, policy, _ = location
    before = [p.clone() for p in policy.parameters()]
    with torch.no_grad():
        histories = pack_history(*rollout(simulator, policy, simulator.prior.sample((8,)), 2))
    settings = {**QUICK, "num_steps": 150}
    steps = [refine_policy(policy, simulator, 4, history, seed=1, **settings) for history in histories]
    stderr = math.hypot(*(step.difference_stderr for step in steps))
    assert sum(step.gain_after - step.gain_before for step in steps) > 3 * stderr
    assert any(step.accepted for step in steps)
    assert all((step.policy is not policy) == step.accepted for step in steps)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_a_refinement_that_does_harm_is_rolled_back(location):
    simulator, policy, history = location
    # A single step of huge size throws the policy far from what it had learned.
    step = refine_policy(policy, simulator, 4, history, seed=1, **{**QUICK, "num_steps": 1, "learning_rate": 30.0})
    assert not step.accepted and step.policy is policy
    assert step.gain_after <= step.gain_before + step.difference_stderr


def test_the_same_seed_refines_alike_and_leaves_the_global_generator_alone(location):
    simulator, policy, history = location
    state = torch.get_rng_state()
    first, second = (refine_policy(policy, simulator, 4, history, seed=3, **QUICK) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert (first.gain_before, first.gain_after) == (second.gain_before, second.gain_after)


def test_a_refined_gain_agrees_with_the_closed_form():
    """Linear-Gaussian: after |ξ| = 1 once, one more such trial gains ½ log((1 + 2/σ²) / (1 + 1/σ²))."""
    simulator = LinearGaussian(noise_sd=0.5)
    policy = StaticPolicy(simulator, 2)
    history = pack_history(torch.ones(1, 1), torch.tensor([[0.3]]))
    settings = {**QUICK, "num_steps": 150, "learning_rate": 0.05, "num_particles": 4000, "num_held_out": 4000}
    step = refine_policy(policy, simulator, 2, history, seed=0, **settings)
    exact = 0.5 * torch.log(torch.tensor((1 + 2 / 0.25) / (1 + 1 / 0.25)))
    stderr = 1.0 / 4000**0.5  # the spread of one history's gain is below 1 nat
    assert abs(step.gain_after - exact) < 4 * stderr + 0.01


def test_a_live_run_refines_once_and_continues_after_a_crash(location, tmp_path):
    simulator, policy, _ = location
    journal = tmp_path / "run.jsonl"
    experiment = StepDAD(policy, simulator, 4, refine_after=(2,), journal=journal, refine_settings=QUICK, seed=5)
    for outcome in (2.0, 1.2):
        experiment.next_design()
        experiment.record([outcome])
    third = experiment.next_design()
    assert len(experiment.refinements) == 1
    assert experiment.next_design().equal(third) and len(experiment.refinements) == 1
    experiment.close()
    again = StepDAD.load(journal, simulator)
    assert again.next_design().equal(third)
    assert again.refinements == []  # the refined policy came from the file
    again.close()
    assert again.refine_after == (2,) and again.refine_settings == experiment.refine_settings


def test_the_old_keyword_and_files_that_hold_it_still_work(location, tmp_path):
    simulator, policy, _ = location
    with pytest.warns(FutureWarning, match="refinement= is now refine_settings=") as caught:
        experiment = StepDAD(policy, simulator, 4, (2,), refinement=QUICK, seed=5)
    assert caught[0].filename == __file__
    header = {**experiment._header, "options": dict(experiment._header["options"])}
    header["options"]["refinement"] = header["options"].pop("refine_settings")
    (tmp_path / "run.jsonl").write_bytes(journal_bytes(header, []))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = StepDAD.load(tmp_path / "run.jsonl", simulator)
    assert again.refine_settings == experiment.refine_settings and again.next_design().equal(experiment.next_design())
    with pytest.raises(ValueError, match="refine_settings cannot be changed"):
        StepDAD.load(tmp_path / "run.jsonl", simulator, journal=False, refine_settings={})


def test_a_crash_before_the_refinement_leads_to_the_same_design(location, tmp_path):
    simulator, policy, _ = location
    designs = []
    for name in ("one", "two"):
        experiment = StepDAD(policy, simulator, 4, (1,), tmp_path / name, refine_settings=QUICK, seed=5)
        experiment.next_design()
        experiment.record([2.0])
        if name == "two":
            experiment.close()
            experiment = StepDAD.load(tmp_path / name, simulator)
        designs.append(experiment.next_design())
        experiment.close()
    assert designs[0].equal(designs[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"refine_after": (4,)}, ValueError, "within"),
        ({"refine_after": ()}, ValueError, "within"),
        ({"refine_after": (2,), "num_experiments": 3}, ValueError, "step_dad_information_gain"),
    ],
)
def test_arguments_are_checked(location, change, error, message):
    simulator, policy, _ = location
    with pytest.raises(error, match=message):
        StepDAD(policy, simulator, 4, **change)


def test_only_policies_with_weights_can_be_refined(location):
    simulator, _, _ = location
    with pytest.raises(TypeError, match="weights"):
        StepDAD(RandomPolicy(simulator), simulator, 4, (1,))


class ExactPosterior:
    """p(θ | h) of the linear-Gaussian experiment with σ = .5, under the interface of an sbi posterior."""

    def sample(self, sample_shape, x, show_progress_bars=False):
        designs, outcomes = x[0, :, :-2], x[0, :, -2:-1]  # padding is 0 and says nothing
        precision = torch.eye(designs.shape[-1]) + designs.T @ designs / 0.25
        covariance = precision.inverse()
        mean = covariance @ (designs.T @ outcomes).squeeze(-1) / 0.25
        return torch.distributions.MultivariateNormal(mean, covariance).sample(sample_shape)


def implicit(dim):
    model = LinearGaussian(dim)
    return model, DesignSimulator(model.prior, model.simulate, model.design_space, reparameterized=True)


def test_without_a_likelihood_a_trained_posterior_and_a_critic_refine():
    """After ξ_1 along x, a second design along x as well is mended to one along y."""
    model, simulator = implicit(2)
    policy = StaticPolicy(simulator, 2)
    policy.free.data[:] = torch.tensor([[3.0, 0.0], [3.0, 0.3]])
    history = pack_history(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.4]]))
    torch.manual_seed(0)
    bound = InfoNCE(simulator, 32, 64)
    DAD(simulator, 2, policy.requires_grad_(False), bound=bound, show_progress_bars=False).train(150, 128, seed=0)
    policy.requires_grad_(True)
    weights = [p.clone() for p in bound.parameters()]
    settings = {**QUICK, "num_steps": 250, "batch_size": 256, "learning_rate": 2e-2, "num_particles": 4000}
    step = refine_policy(policy, simulator, 2, history, sample_with=ExactPosterior(), bound=bound, seed=1, **settings)
    assert step.accepted and all(torch.equal(a, b) for a, b in zip(weights, bound.parameters(), strict=True))
    exact = [float(model.gain_of(torch.stack([history[0, :2], p(history).detach()]))) for p in (policy, step.policy)]
    best = math.log(1 + 1 / 0.25)  # two designs at right angles, each of length 1 or less
    assert exact[0] < 0.7 * best and exact[1] > 0.9 * best


def test_a_live_run_without_a_likelihood(tmp_path):
    _, simulator = implicit(1)
    policy, journal = DeepSetsPolicy(simulator, 16, 8), tmp_path / "run.jsonl"
    given = {"posterior": ExactPosterior(), "bound": InfoNCE(simulator, 8, 16)}
    experiment = StepDAD(
        policy, simulator, 3, (1,), journal, refine_settings={**QUICK, "num_steps": 5}, seed=5, **given
    )
    experiment.next_design()
    experiment.record([0.3])
    second = experiment.next_design()
    assert len(experiment.refinements) == 1
    experiment.close()
    with pytest.raises(ValueError, match="posterior=, a trained sbi posterior"):
        StepDAD.load(journal, simulator)
    again = StepDAD.load(journal, simulator, **given)
    assert again.next_design().equal(second)
    again.close()


def test_a_hidden_state_is_replayed_along_the_history():
    """Of each theta's runs the one that came closest to the walk that was seen goes on from where that was."""
    simulator = RandomWalk()
    torch.manual_seed(0)
    theta = simulator.prior.sample((200,))
    designs, outcomes = rollout(simulator, lambda h: torch.ones(*h.shape[:-2], 1), theta[:1], 2)
    history = pack_history(designs[0], outcomes[0], 4)
    state = replay_state(simulator, theta, history, num_replays=64)
    fresh = simulator.start(theta)
    assert state.shape == fresh.shape
    following = simulator.step(theta, torch.ones(200, 1), state)[0]
    unguided = simulator.step(theta, torch.ones(200, 1), replay_state(simulator, theta, history, num_replays=1))[0]
    gap, wide = ((x - outcomes[0, -1]).abs().median() for x in (following, unguided))
    assert gap < 0.8 * wide
    with pytest.raises(ValueError, match="no hidden state"):
        replay_state(LinearGaussian(), theta, history)


@pytest.mark.parametrize("budget", [1e-3, *(pytest.param(s, marks=pytest.mark.benchmark) for s in (1.0, 2.0))])
def test_a_refinement_keeps_its_budget(location, budget):
    simulator, policy, history = location
    settings = {name: value for name, value in QUICK.items() if name != "num_steps"}
    refine_policy(policy, simulator, 4, history, seed=1, **{**settings, "num_steps": 1})  # imports and caches
    step = refine_policy(policy, simulator, 4, history, seed=1, max_seconds=budget, **settings)
    if budget < 0.1:
        assert not step.accepted and step.num_steps == 0 and step.policy is policy
    else:
        assert step.num_steps > 5 and step.seconds < 1.15 * budget
    with pytest.raises(ValueError, match="max_seconds must be positive"):
        refine_policy(policy, simulator, 4, history, max_seconds=0.0)


def test_held_out_gains_that_run_out_of_time_are_the_first_ones(location):
    simulator, policy, history = location
    held_out = HeldOutGain(Experiments(simulator, 2, history, simulator.prior.sample((500,))), 50)
    whole, cut = held_out.gains(policy), held_out.gains(policy, end=-math.inf)
    assert 0 < len(cut) < len(whole) == 50 and torch.equal(cut, whole[: len(cut)])
    step = Refinement.judged(policy, policy, cut, cut + 0.1, 100.0, 1, 1.0)
    assert step.accepted and math.isclose(step.gain_after - step.gain_before, 0.1, rel_tol=1e-4)


def test_a_live_run_has_a_budget_too(location, tmp_path):
    simulator, policy, _ = location
    quick = {name: value for name, value in QUICK.items() if name != "num_steps"}
    experiment = StepDAD(
        policy, simulator, 4, (1,), tmp_path / "run.jsonl", refine_seconds=1.0, refine_settings=quick, seed=5
    )
    experiment.next_design()
    experiment.record([2.0])
    experiment.close()
    again = StepDAD.load(tmp_path / "run.jsonl", simulator)
    again.next_design()
    assert again.refine_seconds == 1.0 and len(again.refinements) == 1
    again.close()


def test_an_epidemic_is_refined_with_npe():
    """Counts on one path, no likelihood, increasing times: sbi's NPE is the posterior, and the path is replayed."""
    simulator, horizon = StochasticEpidemic(dt=1.0), 3
    torch.manual_seed(0)
    trainer = DAD(simulator, horizon, TransformerPolicy(simulator, horizon, 16), show_progress_bars=False)
    policy = trainer.train(60, 128, learning_rate=3e-3, seed=0)
    theta, x = simulate_histories(simulator, policy, horizon, 2000, min_trials=1, seed=0)
    net = posterior_nn("mdn", embedding_net=HistoryEmbedding(simulator, 8, 16), z_score_x="none")
    inference = NPE(simulator.prior, density_estimator=net, show_progress_bars=False)
    inference.append_simulations(theta, x).train(max_num_epochs=5)
    experiment = StepDAD(
        policy,
        simulator,
        horizon,
        (1, 2),
        posterior=inference.build_posterior(),
        bound=trainer.bound,
        refine_settings={**QUICK, "num_steps": 10, "num_particles": 512},
        seed=0,
    )
    truth = simulator.prior.mean
    path = simulator.start(truth)
    while not experiment.done:
        outcome, path = simulator.step(truth, experiment.next_design(), path)
        experiment.record(outcome)
    assert len(experiment.refinements) == 2
    times = experiment.designs[:, 0]
    assert (times.diff() > 0).all() and times[-1] < 100
