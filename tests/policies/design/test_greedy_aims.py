"""One-step lookahead for some parameters, for predictions and for decisions, against closed forms and enumeration."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from models import LinearGaussian, gaussian_prior
from torch.distributions import Binomial, constraints

from sbi_bed.objectives import Decision
from sbi_bed.policies import GreedyPolicy, load_policy
from sbi_bed.policies.design.one_step_gain import (
    OutcomeTable,
    cells_of,
    log_likely_targets,
    nested_information,
    nested_utility,
    predictive_information,
    value_of_information,
)
from sbi_bed.simulators import BatchedSimulator, DesignSimulator, process_design_simulator
from sbi_bed.utils.seeding import seeded

DIRECTIONS = [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
EMPTY = torch.zeros(0, 4)
COUNTS = torch.arange(5.0).unsqueeze(-1)


class Counts(DesignSimulator):
    """y ~ Binomial(4, sigmoid(2 θ · ξ)), two parameters, designs in a square."""

    parameter_names = ("slope", "nuisance")

    def __init__(self):
        def law(theta, design):
            return Binomial(4, logits=2 * (theta * design).sum(-1))

        super().__init__(
            gaussian_prior(2),
            lambda theta, design: law(theta, design).sample().unsqueeze(-1),
            constraints.interval(-torch.ones(2), torch.ones(2)),
            log_likelihood=lambda theta, design, outcome: law(theta, design).log_prob(outcome.squeeze(-1)),
            outcome_space=constraints.integer_interval(0, 4),
        )


def belief(num=2048, batch=2):
    theta = torch.randn(batch, num, 2)
    weights = torch.rand(batch, num).double()
    return theta, weights / weights.sum(-1, keepdim=True)


def test_cells_halve_the_belief_row_by_row():
    torch.manual_seed(0)
    theta, weights = belief()
    weights[1, 40:] = 0  # the second belief counts for fewer than 64 particles: one cell
    weights = weights / weights.sum(-1, keepdim=True)
    cells = cells_of(theta, weights)
    assert cells.shape == (2, 16, 1, 2048) and (cells.sum(1) == 1).all()
    mass = (cells.squeeze(2) * weights.unsqueeze(1)).sum(-1)
    assert (mass[0] - 1 / 16).abs().max() < 4 * weights[0].max()
    assert (mass[1] > 0).sum() == 1
    assert torch.equal(cells[:1], cells_of(theta[:1], weights[:1]))  # the rest of the batch changes nothing
    first = cells_of(theta[:1, :, :1], weights[:1]).squeeze(2)[0]
    highest = [theta[0, row.bool(), 0].max() for row in first]
    assert all(a < b for a, b in pairwise(highest))


def test_information_about_targets_is_that_of_the_joint_table():
    torch.manual_seed(1)
    simulator, (theta, weights) = Counts(), belief(300)
    table = OutcomeTable.of(simulator, theta, torch.tensor(DIRECTIONS), COUNTS)
    others = OutcomeTable.of(simulator, theta, torch.rand(7, 2), COUNTS)
    for targets in (others.probability, cells_of(theta[..., :1], weights)):
        found = predictive_information(table, weights.float(), targets.float())
        p, q = table.probability.double(), targets.double()
        joint = torch.einsum("bn,bkjn,blin->bjikl", weights, p, q).clamp_min(1e-300)
        product = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
        exact = (joint * (joint / product).log()).sum((-1, -2)).mean(-1)
        torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["cells", "outcomes", "utility"])
def test_nested_criteria_agree_with_enumeration(kind):
    """With every particle as a source and many passes over them, simulated outcomes are as good as a list of them."""
    torch.manual_seed(2)
    simulator, theta, designs = Counts(), torch.randn(1, 256, 2), torch.tensor([DIRECTIONS])
    weights = torch.full((1, 256), 1 / 256)
    table = OutcomeTable.of(simulator, theta, designs, COUNTS)
    utilities = torch.stack([theta[..., 0], -theta[..., 0]], -1)
    asked = torch.tensor([[1.0, 0.0], [0.6, 0.2]])
    draws = []
    for seed in range(24):
        with seeded(seed):
            if kind == "utility":
                draws.append(nested_utility(simulator, theta, designs, 256, seed, utilities))
                continue
            if kind == "cells":
                cells = cells_of(theta[..., :1], weights).squeeze(-2)
                log_targets = (cells.mT @ cells).log()
            else:
                log_targets = log_likely_targets(simulator, theta, asked, 256)
            draws.append(nested_information(simulator, theta, designs, 256, seed, log_targets))
    draws = torch.cat(draws)
    if kind == "utility":
        exact = value_of_information(table, weights, utilities)
    elif kind == "cells":
        exact = predictive_information(table, weights, cells_of(theta[..., :1], weights))
    else:
        exact = predictive_information(table, weights, OutcomeTable.of(simulator, theta, asked, COUNTS).probability)
    assert ((draws.mean(0) - exact[0]).abs() < 4.5 * draws.std(0) / math.sqrt(24)).all()


def test_information_about_one_parameter_chooses_its_axis():
    model = LinearGaussian(2)
    assert GreedyPolicy(model, candidates=DIRECTIONS)(EMPTY).tolist() == [1.0, 1.0]
    for of, best in (([0], [1.0, 0.0]), ([1], [0.0, 1.0])):
        assert GreedyPolicy(model, candidates=DIRECTIONS, of=of)(EMPTY).tolist() == best
    # The gain is ½ log 5 on the axis and ½ log 1.8 in the corner; of it, cells of equal probability show a part.
    policy = GreedyPolicy(model, candidates=DIRECTIONS, of=[0], num_inner=2048, num_outer=1024)
    corner, axis, other = policy.candidate_gains(policy.initial_state()).tolist()
    assert 0.85 * 0.5 * math.log(5) < axis < 0.5 * math.log(5) + 0.05
    assert 0.85 * 0.5 * math.log(1.8) < corner < 0.5 * math.log(1.8) + 0.05
    assert abs(other) < 0.05


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_aims_in_a_continuous_space(seed):
    """Outcomes with a density, and outcomes that are counts: for all four aims the axis is best, and not the corner."""
    side = Decision(lambda theta, action: theta[..., 0] * action[..., 0], [[-1.0], [1.0]])
    limits = constraints.interval(-torch.full((1,), 4.0), torch.full((1,), 4.0))
    guess = Decision(lambda theta, action: -(theta[..., 0] - action[..., 0]).square(), limits)
    for simulator in (LinearGaussian(2), Counts()):
        for aim in (
            {"of": [0]},
            {"objective": "prediction", "target_designs": [[1.0, 0.0], [-0.5, 0.0]]},
            {"objective": "utility", "decision": side},
            {"objective": "utility", "decision": guess},
        ):
            design = GreedyPolicy(simulator, num_starts=4, seed=seed, **aim)(EMPTY)
            assert design[0].abs() > 0.7 and design[1].abs() < 0.4 * design[0].abs()


def test_few_of_the_particles_still_cover_the_prior():
    """Every second, fourth … of quasi-random points in their own order would lie in a corner of the prior."""
    policy = GreedyPolicy(LinearGaussian(3), num_particles=2048)
    belief = policy.initial_state().belief
    for num in (64, 256, 1024):
        with seeded(0):
            sd = belief.resample(num).theta.std(0)
        assert (sd - 1).abs().max() < 4.5 / math.sqrt(2 * num)


def test_value_of_a_test_before_the_best_of_three_is_chosen():
    """Arm 0 is known to give 0.3; testing arm k at noise .5 is worth E max(0.3, m + s Z) − before; an idle test nothing."""
    model = LinearGaussian(3)
    means, sds = torch.tensor([0.3, 0.0, 0.0]), torch.tensor([1e-3, 1.0, 0.5])

    def of(theta):
        return means + sds * theta

    simulator = DesignSimulator(
        model.prior,
        lambda theta, design: torch.distributions.Normal((of(theta) * design).sum(-1, keepdim=True), 0.5).rsample(),
        torch.eye(3),
        log_likelihood=lambda theta, design, outcome: torch.distributions.Normal((of(theta) * design).sum(-1), 0.5).log_prob(
            outcome.squeeze(-1)
        ),
        reparameterized=True,
    )  # fmt: skip
    best = Decision(lambda theta, arm: (of(theta) * arm).sum(-1), torch.eye(3))
    policy = GreedyPolicy(
        simulator, objective="utility", decision=best, num_particles=8192, num_inner=4096, num_outer=2048
    )
    gains = policy.candidate_gains(policy.initial_state())
    normal = torch.distributions.Normal(0.0, 1.0)

    def worth(sd, c=0.3):  # E max(c, s Z) − c, s the sd of the posterior mean, if the third arm is left out
        s = sd**2 / math.sqrt(sd**2 + 0.25)
        z = torch.tensor(c / s)
        return float(s * normal.log_prob(z).exp() - c * (1 - normal.cdf(z)))

    exact = torch.tensor([0.0, worth(1.0), worth(0.5)])
    assert (gains - exact).abs().max() < 4.5 * 0.6 / math.sqrt(2048) and gains.argmax() == 1


def test_a_black_box_and_a_saved_policy(tmp_path):
    simulator = Counts()
    black_box = process_design_simulator(simulator.simulate, simulator.prior, simulator.design_space)
    black_box.learn_likelihood(6000, seed=0)
    side = Decision(lambda theta, action: theta[..., 0] * action[..., 0], [[-1.0], [1.0]])
    for aim in ({"of": [0]}, {"objective": "utility", "decision": side}):
        assert GreedyPolicy(black_box, candidates=DIRECTIONS, **aim)(EMPTY).tolist() == [1.0, 0.0]
    history = torch.tensor([[0.5, 0.1, 3.0, 1.0], [-0.5, 0.8, 1.0, 1.0]])
    for aim in ({"of": ["slope"]}, {"objective": "prediction", "target_designs": [[1.0, 0.0]]}):
        policy = GreedyPolicy(simulator, num_particles=512, num_starts=2, **aim)
        policy.save(tmp_path / "policy.pt")
        loaded = load_policy(tmp_path / "policy.pt", simulator)
        torch.testing.assert_close(loaded(history), policy(history), rtol=0, atol=0)
    policy = GreedyPolicy(simulator, objective="utility", decision=side)
    policy.save(tmp_path / "policy.pt")
    with pytest.raises(ValueError, match="decision="):
        load_policy(tmp_path / "policy.pt", simulator)


def test_predictions_from_a_batch_of_readings():
    """The readings of one batch look along the axis that will be asked about."""
    model = BatchedSimulator(LinearGaussian(2), 2)
    asked = [[1.0, 0.0, 1.0, 0.0], [-0.5, 0.0, 1.0, 0.0]]
    readings = GreedyPolicy(model, objective="prediction", target_designs=asked, num_starts=4)(torch.zeros(0, 7))
    readings = readings.reshape(2, 2)
    left = torch.linalg.inv(torch.eye(2) + readings.mT @ readings / 0.25)[0, 0]
    assert left < 1.3 / 9  # 1 / 9 at the best


def test_wrong_aims_are_refused():
    simulator = LinearGaussian(2)
    side = Decision(lambda theta, action: theta[..., 0] * action[..., 0], [[-1.0], [1.0]])
    for aim, message in (
        ({"objective": "utility"}, "come together"),
        ({"decision": side}, "come together"),
        ({"objective": "prediction", "of": [0]}, "is for no other"),
        ({"objective": "variance"}, "needs of="),
        ({"target_designs": [[0.0, 1.0]]}, 'prediction" alone'),
        ({"objective": "prediction"}, "needs target_designs="),
        ({"objective": "prediction", "target_designs": [[0.0, 3.0]]}, "target_designs: design .* lies outside"),
        ({"of": [5]}, "each once, of the 2"),
    ):
        with pytest.raises(ValueError, match=message):
            GreedyPolicy(simulator, **aim)
