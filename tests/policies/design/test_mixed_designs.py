"""Designs with a continuous value, a category and a whole number: found by greedy lookahead, and learned by policies."""

import math

import pytest
import torch
from mixed_designs import dose_drug_time, fine_grid
from models import gaussian_prior
from torch.distributions import constraints

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD, AdaptiveExperiment
from sbi_bed.objectives import InfoNCE
from sbi_bed.policies import GreedyPolicy, RandomPolicy, StaticPolicy, TransformerPolicy, load_policy
from sbi_bed.policies.base import describe_policy, restore_policy
from sbi_bed.policies.design.particle_filter import flatten
from sbi_bed.simulators import DesignSimulator, DesignSpace, rollout

SMALL = {"num_particles": 512, "num_candidates": 64, "num_inner": 128, "num_outer": 64}


@pytest.mark.parametrize("pass_on_gradients", [True, False])
def test_greedy_finds_what_a_grid_finds(pass_on_gradients):
    simulator = dose_drug_time(pass_on_gradients)
    policy = GreedyPolicy(simulator, **SMALL)
    theta, state = torch.tensor([-1.0, -0.5, -2.0, -1.5]), policy.initial_state()
    for _ in range(3):
        design = policy.propose(state)
        gain = policy._nested_gain(flatten(state))
        assert (
            gain(design.reshape(1, 1, 3)) > 0.99 * gain(fine_grid(8).unsqueeze(0)).amax()
        )  # by the same random numbers
        state = policy.update(state, design, simulator(theta, design))


def which_category(pass_on_gradients=True):
    """y ~ N(θ s_j, 1) with s = (.1, 3, .5) and a weak effect of a continuous value; nothing leads from j to a derivative."""
    strength = torch.tensor([0.1, 3.0, 0.5])

    def mean(theta, design):
        return theta[..., 0] * strength[design[..., 0].round().long()] * (1 + 0.2 * design[..., 1])

    return DesignSimulator(
        gaussian_prior(1),
        lambda theta, design: (mean(theta, design) + torch.randn_like(mean(theta, design))).unsqueeze(-1),
        DesignSpace.of_parts(kind=["weak", "strong", "middle"], level=constraints.interval(-1.0, 1.0)),
        lambda theta, design, outcome: (
            -0.5 * (outcome[..., 0] - mean(theta, design)).square() - math.log(2 * math.pi) / 2
        ),
        reparameterized=pass_on_gradients,
    )


@pytest.mark.parametrize("bound", ["score", "pathwise", "critic"])
def test_a_policy_learns_the_category_and_the_value_beside_it(bound):
    simulator = which_category(bound != "score")
    torch.manual_seed(0)
    policy = StaticPolicy(simulator, 1)
    if bound == "critic":  # the choice has to wait for the critic
        trainer = DAD(simulator, 1, policy, bound=InfoNCE(simulator, fitting_steps=2), show_progress_bars=False)
        trainer.train(200, 256, learning_rate=0.01, seed=0)
    else:
        DAD(simulator, 1, policy, show_progress_bars=False).train(250, 256, 127, 0.05, seed=0)
    with torch.no_grad():
        kind, level = policy(torch.zeros(0, 4)).tolist()
    assert kind == 1.0
    assert bound == "critic" or level > 0.3  # a critic of 250 steps hardly knows of its weak effect


def test_the_gradient_through_draws_is_that_of_the_mean_over_choices():
    """Against the derivative of Σ_j π_j · (gain of j), by enumeration."""
    simulator = which_category()
    policy = StaticPolicy(simulator, 1)
    with torch.no_grad():
        policy.free.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    trainer = DAD(simulator, 1, policy, show_progress_bars=False)
    trainer.bound.num_contrastive, gradients = 63, []
    torch.manual_seed(0)
    for _ in range(40):
        (gradient,) = torch.autograd.grad(-trainer._loss(512, 1.0)[0], policy.free)
        gradients.append(gradient.flatten())
    found, stderr = torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / math.sqrt(40)
    gains = []
    with torch.no_grad():
        for kind in range(3):
            fixed = simulator.design_space.from_free(policy.free[0, 0]).clone()
            fixed[0] = kind
            held = DAD(simulator, 1, StaticPolicy(simulator, 1), show_progress_bars=False)
            held.bound.num_contrastive = 63
            batch = held.experiments.run(lambda history, fixed=fixed: fixed, 100_000)
            gains.append(held.bound.training_loss(batch, held.experiments)[1].mean())
    share = policy.free[0, 0, :3].detach().softmax(-1)
    expected = share * (torch.stack(gains) - (share * torch.stack(gains)).sum())
    assert ((found[:3] - expected).abs() < 4.5 * stderr[:3] + 0.01).all()
    assert found[3] > 0


def test_live_runs_of_mixed_designs_are_saved_keep_apart_and_refuse_what_is_no_design(tmp_path):
    simulator = dose_drug_time()
    experiment = AdaptiveExperiment(
        TransformerPolicy(simulator, 3), simulator, 3, journal=tmp_path / "run.jsonl", seed=0, min_distance=0.5
    )
    theta = simulator.prior.sample()
    with pytest.raises(ValueError, match=r"hours must be a whole number from 1 to 24, got 2.5"):
        experiment.record([0.5], design=[1.0, 0.0, 2.5])
    with pytest.raises(ValueError, match=r"drug must be 0 = A, 1 = B, 2 = C, got 3"):
        experiment.record([0.5], design=[1.0, 3.0, 2.0])
    while not experiment.done:
        design = experiment.next_design()
        assert simulator.design_space.describe(design)["drug"] in "ABC"
        experiment.record(simulator(theta, design))
        experiment.close()
        experiment = AdaptiveExperiment.load(tmp_path / "run.jsonl", simulator)
    places = simulator.design_space.standardize(experiment.designs)
    assert torch.pdist(places).min() >= 0.5


def test_trained_policies_are_saved_and_those_that_scored_otherwise_are_refused(tmp_path):
    simulator = dose_drug_time()
    policy = TransformerPolicy(simulator, 2)
    policy.save(tmp_path / "policy.pt")
    history = torch.tensor([[3.0, 1.0, 7.0, 0.4, 1.0]])
    assert torch.equal(load_policy(tmp_path / "policy.pt", simulator)(history), policy(history))
    description = describe_policy(policy)
    del description["scores"]
    with pytest.raises(ValueError, match=r"chooses among candidates as sbi_bed 0.1 did: train it again"):
        restore_policy(description, simulator)


def test_policies_propose_designs_of_the_space_in_a_rollout():
    simulator = dose_drug_time()
    trainer = DAD(simulator, 3, show_progress_bars=False)
    policy = trainer.train(5, 32, 31, seed=0)
    with torch.no_grad():
        designs = rollout(simulator, policy, simulator.prior.sample((50,)), 3).designs
    assert simulator.design_space.contains(designs).all()
    assert "one step ahead" in trainer.report.gains


@pytest.mark.slow
def test_training_on_candidates_does_not_collapse():
    """Poisson counts at 13 candidates, T = 5: a policy once settled on one of them, with less than random designs have."""

    def law(theta, design):
        return torch.distributions.Poisson((theta[..., 0] + theta[..., 1] * design[..., 0]).exp())

    simulator = DesignSimulator(
        gaussian_prior(2),
        lambda theta, design: law(theta, design).sample().unsqueeze(-1),
        torch.linspace(-1.5, 1.5, 13).unsqueeze(-1),
        lambda theta, design, outcome: law(theta, design).log_prob(outcome.squeeze(-1)),
        outcome_space=constraints.nonnegative_integer,
    )
    policy = DAD(simulator, 5, show_progress_bars=False).train(500, 256, 255, 4e-3, seed=0)
    greedy = GreedyPolicy(simulator, num_particles=512, num_inner=128, num_outer=64)
    judged = [(policy, 1000), (RandomPolicy(simulator), 1000), (greedy, 128)]
    trained, random, ahead = (expected_information_gain(simulator, p, 5, n, 5000, seed=1) for p, n in judged)
    assert trained.lower - random.lower > 4.5 * math.hypot(trained.lower_stderr, random.lower_stderr)
    assert trained.lower - ahead.lower > -3 * math.hypot(trained.lower_stderr, ahead.lower_stderr)
