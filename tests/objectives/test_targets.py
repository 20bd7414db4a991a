"""Gains about some parameters and about predictions: brackets of closed forms, and policies that find other designs."""

import math

import pytest
import torch
from models import LinearGaussian
from torch.distributions import Bernoulli, Dirichlet, Independent, LogNormal, MultivariateNormal, constraints

from sbi_bed.diagnostics import expected_information_gain
from sbi_bed.inference import DAD, likelihood_posterior
from sbi_bed.inference.trainers.design.refinement import refine_policy
from sbi_bed.objectives import PCE, PosteriorBound
from sbi_bed.objectives.proposals import ConditionalProposal
from sbi_bed.objectives.targets import ParametersOf
from sbi_bed.policies import DeepSetsPolicy, RandomPolicy, StaticPolicy
from sbi_bed.simulators import DesignSimulator, process_design_simulator
from sbi_bed.simulators.experiments import Experiments

CORRELATED = MultivariateNormal(torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.9], [0.9, 2.0]]))
DESIGNS = torch.tensor([[1.0, 1.0], [1.0, 0.3], [0.5, -0.5]])
QUESTIONS = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])


def covariance_after(model, designs, covariance=None):
    start = model.prior.covariance_matrix.double() if covariance is None else covariance
    designs = designs.double()
    return torch.linalg.inv(torch.linalg.inv(start) + designs.mT @ designs / model.noise_sd**2)


def exact_gain(model, designs, of=None, questions=None):
    before, after = model.prior.covariance_matrix.double(), covariance_after(model, designs)
    if of is not None:
        return float(0.5 * (torch.logdet(before[of][:, of]) - torch.logdet(after[of][:, of])))
    variances = [((q @ s) * q).sum(-1) + model.noise_sd**2 for q in [questions.double()] for s in (before, after)]
    return float(0.5 * (variances[0] / variances[1]).log().mean())


def correlated():
    model = LinearGaussian(2)
    model.prior = CORRELATED
    return model


@pytest.mark.parametrize("build", [lambda: LinearGaussian(2), correlated], ids=["independent", "correlated"])
@pytest.mark.parametrize("aim", [{"of": [0]}, {"target_designs": QUESTIONS}], ids=["of", "predictions"])
def test_bounds_are_around_the_closed_form_and_meet(build, aim):
    model = build()
    exact = exact_gain(model, DESIGNS, aim.get("of"), aim.get("target_designs"))
    policy, widths = StaticPolicy(model, 3, DESIGNS), []
    for num_contrastive in (200, 3200):
        gain = expected_information_gain(model, policy, 3, 2000, num_contrastive, bound=PCE(**aim), seed=1)
        assert gain.lower - 4.5 * gain.lower_stderr < exact < gain.upper + 4.5 * gain.upper_stderr
        widths.append(gain.upper - gain.lower)
    assert widths[1] < widths[0] / 3  # with enough samples as 1 / L


def test_two_of_three_parameters_with_a_prior_that_is_not_normal():
    """Log-normal parameters: the gain about θ is that about log θ, in which the model is linear."""
    plain = LinearGaussian(3)
    prior = Independent(LogNormal(torch.zeros(3), torch.ones(3)), 1)
    model = DesignSimulator(
        prior,
        lambda theta, design: plain.simulate(theta.log(), design),
        plain.design_space,
        log_likelihood=lambda theta, design, outcome: plain.log_likelihood(theta.log(), design, outcome),
        reparameterized=True,
    )
    designs = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.5, -1.0]])
    exact = exact_gain(plain, designs, of=[0, 2])
    gain = expected_information_gain(
        model, StaticPolicy(model, 2, designs), 2, 1500, 2000, bound=PCE(of=[2, 0]), seed=2
    )
    assert gain.lower - 4.5 * gain.lower_stderr < exact < gain.upper + 4.5 * gain.upper_stderr
    assert gain.upper - gain.lower < 0.1


def test_in_mid_experiment_posterior_draws_serve():
    """After a trial that ties the parameters together, draws have no density of their own."""
    model = correlated()
    design = torch.tensor([[0.8, -0.6]])
    history = torch.cat([design, torch.tensor([[0.4, 1.0]])], -1)
    draws = likelihood_posterior(model, history, sample_with="smc", num_particles=8192).sample((8192,))
    policy = StaticPolicy(model, 3, torch.cat([design, DESIGNS[:2]]))
    gain = expected_information_gain(
        model, policy, 3, 2000, 2000, bound=PCE(of=[1]), prior=draws, history=history, seed=3
    )
    after = covariance_after(model, design)
    exact = float(0.5 * (after[1, 1] / covariance_after(model, DESIGNS[:2], after)[1, 1]).log())
    error = 4.5 * math.hypot(gain.lower_stderr, 0.01)  # of the posterior variance of so many draws, ½ √(2 / 8192)
    assert gain.lower - error < exact < gain.upper + error


def design_of(policy):
    with torch.no_grad():
        return policy(torch.zeros(0, 4)).flatten().double()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("gradient", ["pathwise", "score"])
def test_another_aim_has_another_best_design(seed, gradient):
    """The whole of θ is best read in a corner, ±(1, ±1); θ_0 and outcomes at (1, 0) with all else at 0, ±(1, 0)."""
    model, best = LinearGaussian(2), {}
    for name, aim in {"all": {}, "of": {"of": [0]}, "predictions": {"target_designs": [[1.0, 0.0]]}}.items():
        torch.manual_seed(seed)
        policy = StaticPolicy(model, 1)
        bound = PCE(255, gradient=gradient, **aim)
        DAD(model, 1, policy, bound=bound, show_progress_bars=False).train(150, 128, learning_rate=0.1, seed=seed)
        best[name] = exact_gain(model, design_of(policy).unsqueeze(0), of=[0])
    attainable = 0.5 * math.log(5)
    assert best["of"] > 0.9 * attainable and best["predictions"] > 0.9 * attainable
    assert best["all"] < 0.5 * attainable


def gradients(bound, reparameterized, num=24, size=1024):
    model = LinearGaussian(2, reparameterized=reparameterized)
    experiments, found = Experiments(model, 2), []
    bound.check(experiments)
    for _ in range(num):
        policy = StaticPolicy(model, 2, DESIGNS[1:])
        designs = policy.fixed.clone().requires_grad_()

        def propose(history, designs=designs):
            return designs[history.shape[-2]].expand(*history.shape[:-2], 2)

        batch = experiments.run(propose, size)
        loss, _ = bound.training_loss(batch, experiments)
        found.append(torch.autograd.grad(loss, designs)[0])
    found = torch.stack(found).double()
    return found.mean(0), found.std(0) / math.sqrt(num)


@pytest.mark.parametrize("aim", ["of", "predictions", "net"])
def test_score_function_and_pathwise_gradients_agree(aim):
    torch.manual_seed(4)
    if aim == "net":
        bound = PosteriorBound(LinearGaussian(2), 2, of=[0], num_components=1)
    else:
        bound = PCE(63, **({"of": [0]} if aim == "of" else {"target_designs": QUESTIONS}))
    (pathwise, a), (score, b) = gradients(bound, True), gradients(bound, False)
    assert ((pathwise - score).abs() < 4.5 * (a.square() + b.square()).sqrt()).all()
    assert (pathwise.abs() > 4.5 * a).any()


def test_a_net_learns_the_gain_about_some_parameters_without_a_likelihood():
    model = LinearGaussian(2)
    simulator = DesignSimulator(model.prior, model.simulate, model.design_space, reparameterized=True)
    bound = PosteriorBound(simulator, 3, of=[1], num_components=1)
    policy = StaticPolicy(simulator, 3, DESIGNS)
    trainer = DAD(simulator, 3, policy, bound=bound, show_progress_bars=False)
    trainer.train(400, 120, learning_rate=2e-3, seed=0)
    gain = expected_information_gain(simulator, policy, 3, 4096, bound=trainer.bound, seed=1)
    exact = exact_gain(model, DESIGNS, of=[1])
    assert exact - 0.1 < gain.lower < exact + 4.5 * gain.lower_stderr + 0.02  # H(z) from 20,000 draws: ± .007
    with pytest.raises(ValueError, match="some parameters alone"):
        trainer.bound.posterior()


def test_a_refinement_has_the_aim_of_the_training():
    """Two trials are left. About θ_1 they are best spent on it, wherever the policy that begins would look."""
    model = LinearGaussian(2)
    history = torch.tensor([[1.0, 0.0, 0.3, 1.0]])
    torch.manual_seed(0)
    policy = DeepSetsPolicy(model, 32, 8)
    found = {}
    for name, bound in {"all": None, "of": PCE(of=[1])}.items():
        step = refine_policy(
            policy, model, 2, history, num_steps=150, learning_rate=1e-2, bound=bound, num_held_out=1024, seed=0,
            show_progress_bars=False,
        )  # fmt: skip
        assert step.accepted
        with torch.no_grad():
            found[name] = step.policy(history)
    assert bound.target._proposal is None  # the bound that was given is not changed
    before = covariance_after(model, history[:, :2])
    after = covariance_after(model, found["of"].unsqueeze(0), before)
    best = covariance_after(model, torch.tensor([[0.0, 1.0]]), before)  # θ_0 is known well: near the best there is
    assert after[1, 1] < 1.1 * best[1, 1]


def test_discrete_outcomes_with_a_nuisance_and_a_black_box():
    """A yes-or-no answer at strength ξ: about a slope, with an offset as nuisance; also without the likelihood."""

    def law(theta, design):
        return Bernoulli(logits=(3 * theta[..., :1] * design + theta[..., 1:]))

    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    space = constraints.interval(-torch.ones(1), torch.ones(1))
    simulator = DesignSimulator(
        prior,
        lambda theta, design: law(theta, design).sample(),
        space,
        log_likelihood=lambda theta, design, outcome: law(theta, design).log_prob(outcome).squeeze(-1),
        outcome_space=constraints.boolean,
    )
    simulator.parameter_names = ("slope", "offset")
    near_ends = StaticPolicy(simulator, 2, torch.tensor([[0.85], [-0.85]]))  # the best designs are the ends, ±1
    judged = {"num_rollouts": 1000, "num_contrastive": 2000, "seed": 1}
    good = expected_information_gain(simulator, near_ends, 2, bound=PCE(of=["slope"]), **judged)
    black_box = process_design_simulator(lambda theta, design: law(theta, design).sample(), prior, space)
    black_box.learn_likelihood(4000, seed=0)
    for which, name in ((simulator, "slope"), (black_box, 0)):
        torch.manual_seed(3)
        policy = StaticPolicy(which, 2)
        trainer = DAD(which, 2, policy, bound=PCE(127, of=[name]), show_progress_bars=False)
        trainer.train(150, 256, learning_rate=0.1, seed=0)
        gain = expected_information_gain(simulator, policy, 2, bound=PCE(of=["slope"]), **judged)
        assert gain.lower > good.lower - 2 * good.lower_stderr


def test_wrong_targets_are_refused():
    model = LinearGaussian(2)

    def train(**aim):
        return DAD(model, 1, StaticPolicy(model, 1), bound=PCE(7, **aim), show_progress_bars=False)

    for aim, message in (
        ({"of": ["slope"]}, "no parameter 'slope'"),
        ({"of": [2]}, "each once, of the 2"),
        ({"of": [0, 1]}, "names all parameters"),
        ({"target_designs": [[0.0, 2.0]]}, r"target_designs: design \[0.0, 2.0\] lies outside"),
        ({"target_designs": [0.0, 1.0]}, "target_designs must have shape"),
        ({"target_designs": [[0.0]]}, "target_designs must have 2 values"),
    ):
        with pytest.raises(ValueError, match=message):
            train(**aim)
    with pytest.raises(ValueError, match="give one of them"):
        PCE(of=[0], target_designs=[[0.0, 1.0]])
    with pytest.raises(ValueError, match="density of the prior"):
        DAD(model, 1, StaticPolicy(model, 1), bound=PCE(of=[0]), prior=torch.randn(50, 2))
    with pytest.raises(ValueError, match="no truth, proposal or max_gap"):
        expected_information_gain(model, RandomPolicy(model), 1, 8, bound=PCE(of=[0]), max_gap=0.1)
    with pytest.raises(ValueError, match="coordinates of their own"):
        ConditionalProposal(Dirichlet(torch.ones(3)), [0])
    assert ParametersOf("slope").of == ["slope"]


def test_the_report_judges_by_the_aim():
    """About θ_0 alone, designs on its axis gain ½ log 9; by the whole gain they would be no better than random ones."""
    model = LinearGaussian(2)
    torch.manual_seed(0)
    policy = StaticPolicy(model, 2)
    trainer = DAD(model, 2, policy, bound=PCE(127, of=[0]), show_progress_bars=False)
    trainer.train(150, 64, learning_rate=0.1, seed=0)
    gains, errors = trainer.report.gains, trainer.report.stderrs
    assert abs(gains["trained"] - 0.5 * math.log(9)) < 4.5 * errors["trained"] + 0.05
    assert gains["trained"] > gains["random"] + 4.5 * errors["random"] and trainer.report.unit == "nats"
    assert abs(gains["one step ahead"] - gains["trained"]) < 4.5 * errors["one step ahead"] + 0.1
