"""Decisions after an experiment: closed forms of their value, policies trained for them, and clear errors."""

import math

import pytest
import torch
from models import LinearGaussian
from torch.distributions import Independent, Normal, constraints

from sbi_bed.diagnostics import expected_information_gain, expected_utility
from sbi_bed.inference import DAD
from sbi_bed.inference.trainers.design.refinement import refine_policy
from sbi_bed.objectives import Decision, DecisionUtility
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy, StaticPolicy
from sbi_bed.simulators import DesignSimulator, DesignSpace, process_design_simulator

LIMITS = constraints.interval(-torch.full((1,), 4.0), torch.full((1,), 4.0))
GUESS = Decision(lambda theta, action: -(theta[..., :1] - action).square().sum(-1), LIMITS)
SIDE = Decision(lambda theta, action: 1000 * theta[..., 0] * action[..., 0], [[-1.0], [1.0]])


def variance_after(design):
    """Variance of θ_0 in the linear-Gaussian model after one trial."""
    design = torch.as_tensor(design).double()
    return float(1 - design[0] ** 2 / (0.25 + design.square().sum()))


def exact_value(decision, variance):
    """−Var(θ_0 | h) for the guess, and 1000 E|E[θ_0 | h]| for the side."""
    return -variance if decision is GUESS else 1000 * math.sqrt(2 / math.pi * (1 - variance))


@pytest.mark.parametrize("decision", [GUESS, SIDE], ids=["continuous", "finite"])
@pytest.mark.parametrize("design", [[1.0, 0.0], [1.0, 1.0], [0.3, -0.2]])
def test_expected_utility_is_that_of_the_closed_form(decision, design):
    model = LinearGaussian(2)
    found = expected_utility(model, StaticPolicy(model, 1, torch.tensor([design])), 1, decision, 4000, 4000, seed=1)
    exact, before = exact_value(decision, variance_after(design)), exact_value(decision, 1.0)
    slack = 0.01 * abs(exact)  # decisions from 4,000 weighted draws lose about as much as 1 / 1,000 of the variance
    assert exact - 4.5 * found.stderr - slack < found.utility < exact + 4.5 * found.stderr
    assert abs(found.without - before) < (0.15 if decision is GUESS else 75)  # of 4,000 draws, 4.5 standard errors
    assert found.value == found.utility - found.without
    if decision is SIDE:
        assert abs(found.with_certainty - 1000 * math.sqrt(2 / math.pi)) < 45
    assert "without the experiment" in str(found)


def design_of(policy):
    with torch.no_grad():
        return policy(torch.zeros(0, 4)).flatten()


SEEDS = [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("decision", [GUESS, SIDE], ids=["continuous", "finite"])
def test_a_policy_for_a_decision_reads_what_the_decision_depends_on(decision, seed):
    """About the whole of θ the corners are best, where .56 of the variance of θ_0 is left; .20 on the first axis."""
    model = LinearGaussian(2)
    torch.manual_seed(seed)
    policy = DeepSetsPolicy(model, 32, 8)
    trainer = DAD(model, 1, policy, bound=DecisionUtility(model, decision), show_progress_bars=False)
    trainer.train(300, 128, learning_rate=3e-3, seed=seed)
    assert variance_after(design_of(policy)) < 0.3
    found = expected_utility(model, policy, 1, decision, 2000, 2000, seed=1)
    bound = torch.tensor(trainer.bounds[-10:])  # the net's own decisions are hardly worse
    share = bound.mean() / found.utility
    error = 4.5 * (bound.std() / math.sqrt(10) + found.stderr) / abs(found.utility)
    assert (share < 1.1 + error) if decision is GUESS else (share > 0.9 - error)


@pytest.mark.slow
def test_two_valued_outcomes_and_a_black_box():
    """Which side is θ_0 on? Yes-or-no outcomes have no gradient, the black box no likelihood of its own."""
    prior = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    space = constraints.interval(-torch.ones(2), torch.ones(2))

    def law(theta, design):
        return torch.distributions.Bernoulli(logits=4 * (theta * design).sum(-1, keepdim=True))

    def simulate(theta, design):
        return law(theta, design).sample()

    simulator = DesignSimulator(
        prior,
        simulate,
        space,
        log_likelihood=lambda theta, design, outcome: law(theta, design).log_prob(outcome).squeeze(-1),
        outcome_space=constraints.boolean,
    )
    black_box = process_design_simulator(simulate, prior, space)
    black_box.learn_likelihood(4000, seed=0)
    utilities = []
    for which in (simulator, black_box):
        torch.manual_seed(2)
        policy = DeepSetsPolicy(which, 32, 8)
        trainer = DAD(which, 1, policy, bound=DecisionUtility(which, SIDE), show_progress_bars=False)
        trainer.train(300, 128, learning_rate=3e-3, seed=0)
        utilities.append(expected_utility(simulator, policy, 1, SIDE, 2000, 2000, seed=3).utility)
    corner = expected_utility(simulator, StaticPolicy(simulator, 1, torch.ones(1, 2)), 1, SIDE, 2000, 2000, seed=3)
    assert min(utilities) > corner.utility + 4.5 * corner.stderr
    assert expected_utility(black_box, policy, 1, SIDE, 200, 2000, seed=3).utility > corner.utility


def test_a_refinement_has_the_decision_as_its_aim():
    model = LinearGaussian(2)
    history = torch.tensor([[0.0, 1.0, 0.2, 1.0]])
    torch.manual_seed(1)
    policy = DeepSetsPolicy(model, 32, 8)
    bound = DecisionUtility(model, GUESS)
    weights = bound.head.weight.clone()
    step = refine_policy(
        policy, model, 2, history, num_steps=200, learning_rate=3e-3, bound=bound, num_held_out=1024, seed=0,
        show_progress_bars=False,
    )  # fmt: skip
    assert step.accepted and torch.equal(weights, bound.head.weight)
    with torch.no_grad():
        design = step.policy(history)
    # θ_1 is known up to a variance of .2: the best second trial leaves .2 of that of θ_0.
    left = 1 - design[0] ** 2 / (0.25 + design[0] ** 2 + 0.2 * design[1] ** 2)
    assert left < 0.3
    assert abs(step.gain_after + float(left)) < 0.1  # the utility is the negative variance


def test_actions_in_a_plane_and_on_the_line():
    """The best guess is the weighted mean, also far from 0 and in two dimensions."""
    torch.manual_seed(0)
    theta, weights = 50 + 3 * torch.randn(2, 4000, 2), torch.rand(2, 4000)
    weights = weights / weights.sum(-1, keepdim=True)
    space = DesignSpace(constraints.real, dim=2, loc=50.0, scale=3.0)
    guess = Decision(lambda theta, action: -(theta - action).square().sum(-1), space)
    exact = (weights.unsqueeze(-1) * theta).sum(-2)
    assert (guess.best_actions(theta, weights) - exact).abs().max() < 4.5 * 3 / math.sqrt(1000)  # of 1,000 draws


def test_wrong_decisions_are_refused():
    model = LinearGaussian(2)
    for utility, error, message in (
        (lambda theta, action: theta, ValueError, "must return one value for each"),
        (lambda theta, action: theta[..., 0], ValueError, "must return one value for each"),
        (lambda theta, action: torch.log(theta[..., 0] * action[..., 0]), ValueError, "it must be finite"),
        (lambda theta, action: 1.0, TypeError, "must return a tensor"),
    ):
        with pytest.raises(error, match=message):
            DecisionUtility(model, Decision(utility, [[-1.0], [1.0]]))
        with pytest.raises(error, match=message):
            expected_utility(model, RandomPolicy(model), 1, Decision(utility, [[-1.0], [1.0]]), 8, 8)
    with pytest.raises(TypeError, match="must be a callable"):
        Decision("profit", [[1.0]])
    with pytest.raises(ValueError, match="actions must have shape"):
        Decision(GUESS.utility, torch.zeros(3))
    with pytest.raises(ValueError, match="use expected_utility"):
        expected_information_gain(model, RandomPolicy(model), 1, 8, bound=DecisionUtility(model, GUESS))
    with pytest.raises(TypeError, match="must be a Decision"):
        DecisionUtility(model, GUESS.utility)
    implicit = DesignSimulator(model.prior, model.simulate, model.design_space, reparameterized=True)
    with pytest.raises(ValueError, match="expected_utility needs"):
        expected_utility(implicit, RandomPolicy(implicit), 1, GUESS, 8, 8)
