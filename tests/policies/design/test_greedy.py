"""One-step lookahead against closed forms, enumeration and exact posteriors."""

from __future__ import annotations

import math

import pytest
import torch
from models import LinearGaussian, YesNo, gaussian_prior
from sbi.utils import BoxUniform
from torch.distributions import (
    Beta,
    Binomial,
    HalfNormal,
    Independent,
    MultivariateNormal,
    Normal,
    Uniform,
    constraints,
)

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import AdaptiveExperiment
from sbi_bed.policies import GreedyPolicy, RandomPolicy, load_policy
from sbi_bed.policies.design.one_step_gain import (
    OutcomeTable,
    finite_outcomes,
    mutual_information,
    nested_information,
    nested_variance_reduction,
    predictive_information,
    variance_reduction,
)
from sbi_bed.simulators import DesignSimulator, DesignSpace, HyperbolicDiscounting, LocationFinding, rollout
from sbi_bed.utils.quasi_random import quasi_random_draws
from sbi_bed.utils.seeding import seeded


class Counts(DesignSimulator):
    """y ~ Binomial(4, sigmoid(θ ξ)): five outcomes, twelve candidates."""

    def __init__(self):
        def law(theta, design):
            return Binomial(4, logits=(theta * design).squeeze(-1))

        super().__init__(
            gaussian_prior(1),
            lambda theta, design: law(theta, design).sample().unsqueeze(-1),
            torch.linspace(-2.5, 3, 12).unsqueeze(-1),
            log_likelihood=lambda theta, design, outcome: law(theta, design).log_prob(outcome.squeeze(-1)),
            outcome_space=constraints.integer_interval(0, 4),
        )


def yes_no_candidates(num: int = 9) -> list[list[float]]:
    return torch.linspace(0.0, 2.0, num).unsqueeze(-1).tolist()


def random_table(num_outcomes: int, batch=()) -> tuple[OutcomeTable, torch.Tensor]:
    probability = torch.rand(*batch, num_outcomes, 6, 50, dtype=torch.float64).softmax(-3)
    weights = torch.randn(*batch, 50, dtype=torch.float64).softmax(-1)
    return OutcomeTable(probability, -(probability * probability.log()).sum(-3)), weights


def entropy(p: torch.Tensor, dims=-1) -> torch.Tensor:
    return -torch.xlogy(p, p).sum(dims)


# The criteria


@pytest.mark.parametrize("num_outcomes", [2, 3, 5])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_criteria_equal_brute_force(num_outcomes, batch):
    table, weights = random_table(num_outcomes, batch)
    p = table.probability
    marginal = torch.einsum("...kjn,...n->...jk", p, weights)
    noise = torch.einsum("...jn,...n->...j", entropy(p, -3), weights)
    torch.testing.assert_close(mutual_information(table, weights), entropy(marginal) - noise)
    joint = torch.einsum("...kin,...ljn,...n->...ijkl", p, p, weights)
    pairs = entropy(marginal).unsqueeze(-1) + entropy(marginal).unsqueeze(-2) - entropy(joint, (-1, -2))
    torch.testing.assert_close(predictive_information(table, weights), pairs.mean(-1))


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_variance_reduction_equals_brute_force(batch):
    table, weights = random_table(3, batch)
    theta = torch.randn(50, 2, dtype=torch.float64) + 5
    posterior = table.probability * weights[..., None, None, :]  # (*batch, K, J, N), joint with outcomes
    chance = posterior.sum(-1)
    posterior = (posterior / chance.unsqueeze(-1)).unsqueeze(-1)
    variance = (posterior * theta.square()).sum(-2) - (posterior * theta).sum(-2).square()
    left = (chance.unsqueeze(-1) * variance).sum(-3)  # (*batch, J, 2)
    prior = weights.unsqueeze(-1)
    before = (prior * theta.square()).sum(-2) - (prior * theta).sum(-2).square()
    expected = -0.5 * (left / before.unsqueeze(-2)).log().sum(-1)
    torch.testing.assert_close(variance_reduction(table, weights, theta), expected)


def test_nested_variance_reduction_against_closed_form():
    """Of y = θ · ξ + noise, the variance of θ_k becomes 1 − ξ_k² / (σ² + |ξ|²)."""
    simulator = LinearGaussian(dim=2, noise_sd=0.5)
    designs = torch.tensor([[0.0, 1.0], [0.3, 0.4], [1.0, 0.0], [1.0, 1.0]])
    share_left = 1 - designs.square() / (0.25 + designs.square().sum(-1, keepdim=True))
    for of in ([0], [0, 1]):
        estimates = []
        for seed in range(20):
            with seeded(seed):
                theta = simulator.prior.sample((1024,))
                estimates.append(nested_variance_reduction(simulator, theta, designs, 512, seed, of))
        estimates = torch.stack(estimates)
        error = estimates.std(0) / math.sqrt(20)
        exact = -0.5 * share_left[:, of].log().sum(-1)
        assert ((estimates.mean(0) - exact).abs() <= 3 * error + 0.01).all()


def test_gradient_of_variance_reduction():
    simulator = LinearGaussian(dim=2, dtype=torch.float64)
    with seeded(0):
        theta = torch.randn(40, 2, dtype=torch.float64)

    def gain(designs):
        with seeded(0):
            return nested_variance_reduction(simulator, theta, designs, 20, 0, [0])

    assert torch.autograd.gradcheck(gain, torch.rand(3, 2, dtype=torch.float64, requires_grad=True))


def test_enumerated_information_against_quadrature():
    simulator = YesNo()
    policy = GreedyPolicy(simulator, candidates=yes_no_candidates(), num_particles=4096)
    theta = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    weights = Normal(0.0, 1.0).log_prob(theta).softmax(0)
    p = torch.sigmoid(3 * theta * torch.tensor(yes_no_candidates(), dtype=torch.float64))
    p = torch.stack([p, 1 - p])
    exact = entropy(p @ weights, 0) - entropy(p, 0) @ weights
    torch.testing.assert_close(policy.candidate_gains(policy.initial_state()), exact, atol=1e-4, rtol=0)


def test_gradient_of_enumerated_information():
    simulator, theta = YesNo(), torch.randn(200, 1, dtype=torch.float64)
    weights, outcomes = torch.rand(200, dtype=torch.float64), finite_outcomes(simulator).double()

    def gain(designs):
        return mutual_information(OutcomeTable.of(simulator, theta, designs, outcomes), weights / weights.sum())

    assert torch.autograd.gradcheck(gain, torch.randn(3, 1, dtype=torch.float64, requires_grad=True))


def test_nested_information_against_closed_form():
    simulator = LinearGaussian(dim=2, noise_sd=0.5)
    designs = torch.tensor([[0.0, 0.0], [0.3, 0.4], [1.0, 1.0]])
    exact = 0.5 * torch.log1p(designs.square().sum(-1) / 0.25)
    estimates = []
    for seed in range(20):
        with seeded(seed):
            theta = simulator.prior.sample((1024,))
            estimates.append(nested_information(simulator, theta, designs, 512, seed))
    estimates = torch.stack(estimates)
    error = estimates.std(0) / math.sqrt(20)
    # A lower bound, whose bias is about (exp(2 I) − 1) / 2 N here.
    assert (estimates.mean(0) <= exact + 3 * error).all()
    assert (estimates.mean(0) >= exact - 3 * error - 0.01).all()


def test_finite_outcomes():
    assert finite_outcomes(YesNo()).tolist() == [[0.0], [1.0]]
    assert finite_outcomes(Counts()).squeeze(-1).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert finite_outcomes(LinearGaussian()) is None


# Designs


def test_finds_the_corner_of_the_box():
    policy = GreedyPolicy(LinearGaussian(dim=1), num_candidates=64, num_steps=40, learning_rate=0.5)
    assert policy(torch.zeros(0, 3)).abs() > 0.97
    simulator = LinearGaussian(dim=2)
    policy = GreedyPolicy(
        simulator, num_candidates=64, num_steps=40, learning_rate=0.5, num_inner=512, num_outer=512
    )  # over ten seeds the second design loses .022 nats, with a standard deviation of .005
    first = policy(torch.zeros(0, 4))
    assert simulator.gain_of(first.unsqueeze(0)) > simulator.gain_of(torch.ones(1, 2)) - 0.03
    # After a corner, the best second design is the other diagonal.
    second = policy(torch.tensor([[1.0, 1.0, 0.5, 1.0]]))
    both = torch.stack([torch.ones(2), second])
    assert simulator.gain_of(both) > simulator.best_gain(2) - 0.05


def test_variance_of_one_parameter_leaves_the_others_alone():
    simulator, candidates = LinearGaussian(dim=2), [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]
    empty = torch.zeros(0, 4)
    assert GreedyPolicy(simulator, candidates=candidates)(empty).tolist() == [1.0, 1.0]
    for of, best in (([0], [1.0, 0.0]), ([1], [0.0, 1.0])):
        policy = GreedyPolicy(simulator, candidates=candidates, objective="variance", of=of)
        assert policy(empty).tolist() == best
    continuous = GreedyPolicy(simulator, num_candidates=64, num_steps=40, objective="variance", of=[1])(empty)
    exact = 1 - continuous[1] ** 2 / (0.25 + continuous.square().sum())
    assert exact < 0.23  # 0.2 at the best, 0.56 at the corners


def test_variance_by_name_with_two_answers(tmp_path):
    simulator = DesignSimulator(
        gaussian_prior(2),
        lambda theta, design: torch.bernoulli(torch.sigmoid(2 * (theta * design).sum(-1, keepdim=True))),
        constraints.interval(-torch.ones(2), torch.ones(2)),
        log_likelihood=lambda theta, design, outcome: torch.nn.functional.logsigmoid(
            (2 * outcome[..., 0] - 1) * 2 * (theta * design).sum(-1)
        ),
        outcome_space=constraints.boolean,
    )
    simulator.parameter_names = ("slope", "nuisance")
    policy = GreedyPolicy(simulator, objective="variance", of=("slope",), num_particles=512)
    design = policy(torch.zeros(0, 4))
    assert design[0].abs() > 0.9 and design[1].abs() < 0.2
    policy.save(tmp_path / "policy.pt")
    loaded = load_policy(tmp_path / "policy.pt", simulator)
    history = torch.tensor([[0.5, 0.1, 1.0, 1.0], [-0.5, 0.8, 1.0, 1.0]])
    torch.testing.assert_close(loaded(history), policy(history), rtol=0, atol=0)
    for of, message in (
        (("offset",), "no parameter 'offset'"),
        ([2], "each once, of the 2"),
        ([0, "slope"], "each once, of the 2"),
        ([], "each once, of the 2"),
    ):
        with pytest.raises(ValueError, match=message):
            GreedyPolicy(simulator, objective="variance", of=of)


def test_gradient_search_finds_the_best_enumerated_design():
    """A threshold θ, y ~ Bernoulli(sigmoid(3 (θ − ξ))): the best ξ lies within the posterior."""

    def log_likelihood(theta, design, outcome):
        return torch.nn.functional.logsigmoid((2 * outcome - 1) * 3 * (theta - design)).squeeze(-1)

    simulator = DesignSimulator(
        gaussian_prior(1, torch.float64),
        lambda theta, design: torch.bernoulli(torch.sigmoid(3 * (theta - design))),
        DesignSpace(constraints.real, dim=1),
        log_likelihood=log_likelihood,
        outcome_space=constraints.boolean,
    )
    over_grid = GreedyPolicy(simulator, candidates=torch.linspace(-3, 3, 601).unsqueeze(-1))
    history = torch.tensor([[0.7, 1.0, 1.0], [0.5, 1.0, 1.0]], dtype=torch.float64)
    gains = over_grid.candidate_gains(over_grid.read(history))
    design = GreedyPolicy(simulator)(history)
    found = GreedyPolicy(simulator, candidates=[design.tolist()])
    assert found.candidate_gains(found.read(history)) >= gains.max() - 1e-6


def test_prediction_ignores_what_no_question_depends_on():
    """Design 0 tells of θ_1 alone, which no other candidate depends on; the others tell, noisily, of θ_2."""

    def log_likelihood(theta, design, outcome):
        which, strength = design.unbind(-1)
        value = torch.where(which == 0, theta[..., 0], theta[..., 1]) * strength
        return torch.nn.functional.logsigmoid((2 * outcome.squeeze(-1) - 1) * value)

    simulator = DesignSimulator(
        gaussian_prior(2),
        lambda theta, design: torch.bernoulli(log_likelihood(theta, design, torch.ones(1)).exp()).unsqueeze(-1),
        [[0.0, 9.0]] + [[1.0, 3.0 + 0.1 * i] for i in range(9)],
        log_likelihood=log_likelihood,
        outcome_space=constraints.boolean,
    )
    empty = torch.zeros(0, 4)
    assert GreedyPolicy(simulator)(empty)[0] == 0
    assert GreedyPolicy(simulator, objective="prediction")(empty)[0] == 1


@pytest.mark.parametrize("simulator", [Counts(), LinearGaussian()], ids=["finite", "nested"])
def test_mask_is_respected(simulator):
    candidates = torch.linspace(-1, 1, 12).unsqueeze(-1) if simulator.design_space.candidates is None else None
    policy = GreedyPolicy(simulator, candidates=candidates, num_inner=64, num_outer=64)
    state = policy.initial_state((2,))
    gains = policy.candidate_gains(state)
    assert gains.shape == (2, 12)
    allowed = torch.ones(2, 12, dtype=torch.bool)
    allowed[0, gains[0].argmax()] = False
    runner_up = gains[0].topk(2).indices[1]
    index = policy.best_candidate(state, allowed)
    assert index.tolist() == [runner_up, gains[1].argmax()]
    torch.testing.assert_close(policy.propose_among(state, allowed), policy.candidates[index])
    only = torch.zeros(12, dtype=torch.bool)
    only[7] = True
    assert policy.best_candidate(state, only).tolist() == [7, 7]


# Posteriors


def exact_posterior(simulator, history, grid):
    """Weights and log evidence of a grid with equal spacing, (N, P), of prior N(0, I)."""
    log_prior = simulator.prior.log_prob(grid)
    designs, outcomes = history[:, : simulator.design_dim], history[:, simulator.design_dim : -1]
    log_likelihood = simulator.log_likelihood(grid.unsqueeze(1), designs, outcomes).sum(-1)
    log_evidence = (log_prior + log_likelihood).logsumexp(0) - log_prior.logsumexp(0)
    return (log_prior + log_likelihood).softmax(0), log_evidence


def test_weights_are_exact_bayes():
    simulator = YesNo()
    policy = GreedyPolicy(simulator, candidates=yes_no_candidates(), ess_threshold=1e-6)
    history = torch.tensor([[0.5, 1.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    belief = policy.read(history).belief
    likelihood = simulator.log_likelihood(policy.theta.unsqueeze(1), history[:, :1], history[:, 1:2]).sum(-1)
    torch.testing.assert_close(belief.log_weights, likelihood.log_softmax(0))
    torch.testing.assert_close(belief.log_evidence, likelihood.logsumexp(0) - math.log(len(likelihood)))


def test_batch_equals_singles():
    policy = GreedyPolicy(Counts(), ess_threshold=1e-6)
    designs, outcomes = policy.candidates[torch.randint(12, (2, 3, 4))], torch.randint(5, (2, 3, 4, 1)).float()
    histories = torch.cat([designs, outcomes, torch.ones(2, 3, 4, 1)], -1)
    together = policy.candidate_gains(policy.read(histories))
    alone = torch.stack([policy.candidate_gains(policy.read(h)) for h in histories.flatten(0, 1)])
    torch.testing.assert_close(together.flatten(0, 1), alone)
    torch.testing.assert_close(
        policy(histories).flatten(0, 1), torch.stack([policy(h) for h in histories.flatten(0, 1)])
    )


def test_moved_particles_follow_the_posterior():
    simulator = LocationFinding()
    policy = GreedyPolicy(simulator, candidates=[[0.0, 0.0]], ess_threshold=0.3)
    theta = torch.tensor([[0.5, -0.3], [1.5, 1.0], [-0.2, 0.1]])
    trials = rollout(simulator, RandomPolicy(simulator), theta, 25)
    histories = torch.cat([*trials, torch.ones(3, 25, 1)], -1)
    state = policy.read(histories)
    assert state.moved and state.belief.theta.shape == (3, 2048, 2)
    axis = torch.linspace(-4, 4, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for b, history in enumerate(histories.double()):
        weights, log_evidence = exact_posterior(simulator.with_prior(gaussian_prior(2, torch.float64)), history, grid)
        mean = weights @ grid
        sd = (weights @ (grid - mean).square()).sqrt()
        assert ((state.belief.mean()[b] - mean).abs() < 0.15 * sd).all()
        assert (state.belief.stddev()[b] / sd - 1).abs().max() < 0.15
        assert (state.belief.log_evidence[b] - log_evidence).abs() < 0.3


def test_moving_some_experiments_leaves_the_others():
    simulator = LocationFinding()
    policy = GreedyPolicy(simulator, candidates=[[0.0, 0.0], [1.0, 1.0]], ess_threshold=0.3)
    near, far = torch.tensor([[0.0, 0.0, 0.25, 1.0]]), torch.tensor([[0.0, 0.0, 500.0, 1.0]])
    state = policy.read(torch.stack([near, far]))
    assert torch.equal(state.belief.theta[0], policy.theta)
    assert not torch.equal(state.belief.theta[1], policy.theta)
    assert state.belief.theta[1].norm(dim=-1).mean() < 0.1


def test_table_follows_moved_particles():
    """The cached table, and the one computed in chunks, are both those of the particles that moved."""
    simulator = HyperbolicDiscounting()
    candidates = simulator.design_space.sample((30,))
    policy = GreedyPolicy(simulator, candidates=candidates, ess_threshold=0.5)
    trials = rollout(simulator, policy, simulator.prior.sample((3,)), 12)
    state = policy.read(torch.cat([*trials, torch.ones(3, 12, 1)], -1))
    assert state.moved and state.table is not None
    again = policy.candidate_gains(state._replace(table=None))
    torch.testing.assert_close(policy.candidate_gains(state), again)


# Behaviour


def test_gains_over_random():
    simulator, horizon = HyperbolicDiscounting(), 4
    greedy = GreedyPolicy(simulator, num_particles=512, num_candidates=32, num_starts=4, num_steps=10)
    gains = [
        expected_information_gain(simulator, p, horizon, 64, 20_000, seed=1) for p in (greedy, RandomPolicy(simulator))
    ]
    error = math.hypot(gains[0].lower_stderr, gains[1].upper_stderr)
    assert gains[0].lower - gains[1].upper > 3 * error


def test_same_history_same_design_and_no_side_effects():
    simulator = LocationFinding()
    state = torch.random.get_rng_state()
    options = {
        "num_particles": 256,
        "num_candidates": 16,
        "num_starts": 2,
        "num_steps": 3,
        "num_inner": 32,
        "num_outer": 32,
    }
    policy = GreedyPolicy(simulator, ess_threshold=0.5, **options)
    history = torch.tensor([[0.0, 0.0, 30.0, 1.0], [0.1, 0.1, 3.0, 1.0]])
    design = policy(history)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.randn(3)
    assert torch.equal(design, policy(history))
    assert torch.equal(design, GreedyPolicy(simulator, ess_threshold=0.5, **options)(history))
    other = GreedyPolicy(simulator, ess_threshold=0.5, seed=1, **options)
    assert not torch.equal(design, other(history))


def test_save_and_load(tmp_path):
    simulator = YesNo()
    policy = GreedyPolicy(simulator, candidates=yes_no_candidates(), num_particles=128, seed=3)
    policy.save(tmp_path / "policy.pt")
    loaded = load_policy(tmp_path / "policy.pt", simulator)
    history = torch.tensor([[0.5, 1.0, 1.0]], dtype=torch.float64)
    assert torch.equal(policy.candidate_gains(policy.read(history)), loaded.candidate_gains(loaded.read(history)))


@pytest.mark.parametrize(
    "prior",
    [
        Independent(Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])), 1),
        MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.6], [0.6, 2.0]])),
        Independent(Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 5.0])), 1),
        Independent(Beta(torch.tensor([2.0, 1.0]), torch.tensor([3.0, 1.0])), 1),
        Independent(HalfNormal(torch.tensor([2.0, 1.0])), 1),
    ],
    ids=["normal", "correlated", "uniform", "beta (plain draws)", "half-normal"],
)
def test_prior_draws(prior):
    state = torch.random.get_rng_state()
    theta = quasi_random_draws(prior, 4096, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(theta, quasi_random_draws(prior, 4096, seed=5))
    error = 5 * prior.stddev / 64  # of independent draws
    assert ((theta.mean(0) - prior.mean).abs() < error).all()
    torch.testing.assert_close(theta.std(0), prior.stddev, rtol=0.08, atol=0)
    expected = prior.covariance_matrix[0, 1] if isinstance(prior, MultivariateNormal) else 0.0
    assert abs(torch.cov(theta.mT)[0, 1] - expected) < 0.1 * prior.stddev.prod()


# Errors


def test_errors():
    simulator = LinearGaussian()
    blind = DesignSimulator(gaussian_prior(1), lambda theta, design: theta * design, constraints.interval(-1.0, 1.0))
    with pytest.raises(ValueError, match="log_likelihood"):
        GreedyPolicy(blind)
    with pytest.raises(ValueError, match="objective must be"):
        GreedyPolicy(simulator, objective="entropy")
    with pytest.raises(ValueError, match="needs of="):
        GreedyPolicy(simulator, objective="variance")
    with pytest.raises(ValueError, match="outside the design space"):
        GreedyPolicy(simulator, candidates=[[0.5], [1.5]])
    with pytest.raises(ValueError, match="candidates must have shape"):
        GreedyPolicy(simulator, candidates=[0.5])
    with pytest.raises(ValueError, match="ess_threshold"):
        GreedyPolicy(simulator, ess_threshold=0.0)
    with pytest.raises(ValueError, match="num_particles"):
        GreedyPolicy(simulator, num_particles=2)
    policy = GreedyPolicy(simulator)
    with pytest.raises(ValueError, match="continuous space"):
        policy.propose_among(policy.initial_state(), torch.ones(3, dtype=torch.bool))
    policy = GreedyPolicy(Counts())
    with pytest.raises(ValueError, match="boolean mask over 12"):
        policy.propose_among(policy.initial_state(), torch.ones(11, dtype=torch.bool))
    with pytest.raises(ValueError, match="no candidate is left"):
        policy.propose_among(policy.initial_state(), torch.zeros(12, dtype=torch.bool))


def test_impossible_outcomes_and_nan():
    sure = DesignSimulator(
        gaussian_prior(1),
        lambda theta, design: torch.ones_like(theta * design),
        DesignSpace(candidates=[[0.0], [1.0]]),
        log_likelihood=lambda theta, design, outcome: (
            torch.where((outcome * design).squeeze(-1) == 1, -torch.inf, 0.0) + 0 * theta.squeeze(-1)
        ),
        outcome_space=constraints.boolean,
    )
    policy = GreedyPolicy(sure)
    with pytest.warns(UserWarning, match="impossible for every particle. It is kept"):
        state = policy.update(policy.initial_state(), torch.ones(1), torch.ones(1))
    assert torch.isfinite(state.belief.theta).all() and state.outcomes.tolist() == [[1.0]]
    broken = DesignSimulator(
        gaussian_prior(1),
        lambda theta, design: theta * design,
        [[0.0], [1.0]],
        log_likelihood=lambda theta, design, outcome: (
            torch.where(design.squeeze(-1) == 1, torch.nan, 0.0) + 0 * (theta + outcome).squeeze(-1)
        ),
        outcome_space=constraints.boolean,
    )
    policy = GreedyPolicy(broken)
    with pytest.raises(ValueError, match="NaN for candidate 1"):
        policy.propose(policy.initial_state())


def steps_without_lapses():
    """y = 1 exactly where θ > ξ, θ ~ U(0, 1): a second opinion about the same ξ contradicts for sure."""

    def log_likelihood(theta, design, outcome):
        return torch.where((theta > design).squeeze(-1) == (outcome.squeeze(-1) == 1), 0.0, -torch.inf)

    return DesignSimulator(
        BoxUniform(torch.zeros(1), torch.ones(1)),
        lambda theta, design: (theta > design).float(),
        DesignSpace(constraints.interval(0.0, 1.0)),
        log_likelihood,
        outcome_space=constraints.boolean,
    )


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_contradiction_does_not_end_a_run(batch):
    policy = GreedyPolicy(steps_without_lapses(), num_particles=512)
    trials = [(0.5, 1.0), (0.7, 0.0), (0.4, 0.0), (0.6, 1.0)]  # θ in (0.6, 0.7), but for the third answer
    state = policy.initial_state(batch)
    with pytest.warns(UserWarning, match="outcome .* of trial 3 is impossible") as caught:
        for design, outcome in trials:
            state = policy.update(state, torch.full((*batch, 1), design), torch.full((*batch, 1), outcome))
    assert len(caught) == max(1, sum(batch)) and bool(state.lapsed.all())
    weights, theta = state.belief.log_weights.exp(), state.belief.theta.squeeze(-1)
    inside = (weights * ((theta > 0.6) & (theta < 0.7))).sum(-1)
    assert (inside > 0.95).all()  # one contradiction there, two or more elsewhere: odds of a thousand times the widths
    assert policy.propose(state).shape == (*batch, 1)


def test_a_live_run_and_its_posterior_survive_a_contradiction():
    simulator = steps_without_lapses()
    experiment = AdaptiveExperiment(GreedyPolicy(simulator, num_particles=512), simulator, 6, seed=0)
    for outcome in (1.0, 1.0, 0.0):
        experiment.next_design()
        experiment.record([outcome])
    with pytest.warns(UserWarning, match="impossible"):
        experiment.record([1.0 - float(experiment.outcomes[1, 0])], design=experiment.designs[1])
        experiment.next_design()
    assert experiment.num_trials == 4 and experiment.next_design().shape == (1,)
    for sample_with in ("smc", "importance"):
        with pytest.warns(UserWarning, match="the history is impossible under the prior"):
            posterior = experiment.posterior(sample_with)
        low, high = float(experiment.designs[0, 0]), float(experiment.designs[2, 0])  # one contradiction in between
        draws = posterior.sample((500,))
        assert float(((draws > low) & (draws < high)).float().mean()) > 0.9


def test_bad_input_is_refused_early():
    policy = GreedyPolicy(steps_without_lapses(), num_particles=64)
    state = policy.initial_state()
    for design, outcome, message in [
        (torch.ones(2), torch.ones(1), "design must have 1 values"),
        (torch.ones(1), torch.ones(2), "outcome must have 1 values"),
        (torch.tensor([torch.nan]), torch.ones(1), "design must be finite"),
        (torch.ones(1), torch.tensor([torch.inf]), "outcome must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            policy.update(state, design, outcome)
    for candidates, message in [
        (torch.zeros(0, 1), r"candidates must have shape \(J, 1\)"),
        (torch.tensor([[0.5], [torch.nan]]), "candidates must be finite"),
        (torch.tensor([[0.5], [2.0]]), "outside the design space"),
    ]:
        with pytest.raises(ValueError, match=message):
            GreedyPolicy(steps_without_lapses(), candidates=candidates)
