"""The gain about the model: below the exact one, equal to it with many samples, and its gradient against enumeration."""

import itertools
import math

import pytest
import torch
from models import LinearGaussian

from sbi_bed.diagnostics import model_information_gain
from sbi_bed.inference import DAD
from sbi_bed.objectives import PCE, ModelPCE, log_model_probs, model_gain_loss
from sbi_bed.policies import RandomPolicy, StaticPolicy
from sbi_bed.simulators import (
    DesignSimulator,
    DesignSpace,
    ExponentialDiscounting,
    HyperbolicDiscounting,
    ModelMixture,
)
from sbi_bed.simulators.rollout import Rollout, rollout


class NarrowPrior(LinearGaussian):
    """The linear-Gaussian model with θ ~ N(0, s²): told from the wide one by the spread of its outcomes."""

    def __init__(self, sd):
        super().__init__(noise_sd=0.5)
        self.prior = torch.distributions.MultivariateNormal(torch.zeros(1), sd**2 * torch.eye(1))


def gaussian_mixture():
    return ModelMixture([NarrowPrior(0.1), NarrowPrior(3.0)], model_prior=[0.3, 0.7])


def exact_log_probs(designs, outcomes):
    """h | m ~ N(0, s_m² ξ ξᵀ + ¼ I)."""
    logs = []
    for sd, prior in ((0.1, 0.3), (3.0, 0.7)):
        covariance = sd**2 * designs @ designs.transpose(-1, -2) + 0.25 * torch.eye(designs.shape[1])
        normal = torch.distributions.MultivariateNormal(torch.zeros(designs.shape[1]), covariance)
        logs.append(normal.log_prob(outcomes.squeeze(-1)) + math.log(prior))
    return torch.stack(logs, -1).log_softmax(-1)


def test_probabilities_are_exact_with_many_samples():
    torch.manual_seed(0)
    mixture = gaussian_mixture()
    trials = rollout(mixture, RandomPolicy(mixture), mixture.prior.sample((50,)), 3)
    contrastive = [s.prior.sample((100_000,)) for s in mixture.simulators]
    found = log_model_probs(mixture, *trials, contrastive).exp()
    torch.testing.assert_close(found, exact_log_probs(*trials).exp(), atol=0.02, rtol=0)


def test_few_samples_give_a_lower_bound():
    torch.manual_seed(0)
    mixture = gaussian_mixture()
    theta = mixture.prior.sample((4000,))
    index = mixture.model_index(theta)
    trials = rollout(mixture, RandomPolicy(mixture), theta, 3)
    exact = exact_log_probs(*trials).gather(-1, index[:, None])
    few = [
        log_model_probs(mixture, *(part[b] for part in trials), [s.prior.sample((8,)) for s in mixture.simulators])
        for b in torch.arange(4000).split(1)
    ]
    difference = exact - torch.cat(few).gather(-1, index[:, None])
    assert float(difference.mean()) > 4 * float(difference.std()) / math.sqrt(4000)


def test_score_function_gradient_is_that_of_enumeration():
    """Two coins whose heads depend on the design: all histories of two tosses can be listed."""

    def coin(sign):
        def log_prob(theta, design, outcome):
            heads = torch.sigmoid(sign * design[..., 0] + 0.1 * theta[..., 0])
            return torch.log(torch.where(outcome[..., 0] > 0.5, heads, 1 - heads))

        def toss(theta, design):
            return torch.bernoulli(torch.sigmoid(sign * design + 0.1 * theta))

        prior = torch.distributions.MultivariateNormal(torch.zeros(1, dtype=torch.float64), torch.eye(1).double())
        return DesignSimulator(prior, toss, DesignSpace(torch.distributions.constraints.real), log_likelihood=log_prob)

    mixture = ModelMixture([coin(1.0), coin(-0.5)])
    contrastive = [s.prior.sample((5,)) for s in mixture.simulators]
    design = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.0, 0.3], dtype=torch.float64)  # of model 0
    expected, designs = 0.0, design.view(1, 2, 1)
    for tosses in itertools.product((0.0, 1.0), repeat=2):
        outcomes = torch.tensor(tosses, dtype=torch.float64).view(1, 2, 1)
        probability = mixture.log_likelihood(theta, designs, outcomes).sum().exp()
        expected = expected + probability * (
            log_model_probs(mixture, designs, outcomes, contrastive)[0, 0] - math.log(0.5)
        )
    (exact,) = torch.autograd.grad(expected, design)
    torch.manual_seed(0)
    num = 200_000
    many = design.view(1, 2, 1).expand(num, -1, -1)
    with torch.no_grad():
        outcomes = mixture(theta.expand(num, 2, -1), many)
    loss, terms = model_gain_loss(mixture, theta.expand(num, -1), Rollout(many, outcomes), contrastive)
    (found,) = torch.autograd.grad(loss, design)
    assert abs(float(terms.mean()) - float(expected.detach())) < 4 * float(terms.std()) / math.sqrt(num)
    torch.testing.assert_close(-found, exact, atol=0.005, rtol=0)  # its standard error is about .001


def test_pathwise_training_finds_the_designs_that_tell_most():
    """Spreads are told apart best where designs are largest, |ξ| = 1."""
    mixture = gaussian_mixture()
    torch.manual_seed(0)
    policy = StaticPolicy(mixture, 2)
    DAD(mixture, 2, policy, bound=ModelPCE(256), show_progress_bars=False).train(200, 128, learning_rate=0.2, seed=0)
    designs = rollout(mixture, policy, mixture.prior.sample((1,)), 2).designs
    assert (designs.abs() > 0.9).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_policy_learns_which_questions_tell_discounting_models_apart(seed):
    """From scratch, the best of several starts: designs that tell little about the model are hard to leave."""
    mixture, horizon = ModelMixture([HyperbolicDiscounting(), ExponentialDiscounting()]), 6
    torch.manual_seed(seed)
    trainer = DAD(mixture, horizon, bound=ModelPCE(256), show_progress_bars=False)
    policy = trainer.train(150, 256, learning_rate=1e-3, seed=seed, num_starts=4)
    policies = policy, RandomPolicy(mixture)
    trained, random = (model_information_gain(mixture, each, horizon, 2000, 2000, seed=1) for each in policies)
    assert trained.lower - random.lower > 3 * math.hypot(trained.lower_stderr, random.lower_stderr)
    assert trained.log_prob == pytest.approx(trained.lower - math.log(2), abs=1e-5)


def test_what_needs_models_says_so():
    simulator, mixture = HyperbolicDiscounting(), gaussian_mixture()
    with pytest.raises(ValueError, match="needs a ModelMixture"):
        DAD(simulator, 2, bound=ModelPCE())
    with pytest.raises(ValueError, match="takes no prior and no history"):
        DAD(mixture, 2, bound=ModelPCE(), prior=mixture.prior.sample((9,)))
    with pytest.raises(ValueError, match="baseline must be"):
        ModelPCE(baseline="models")
    with pytest.raises(ValueError, match="discrete in part"):
        DAD(mixture, 2, bound=PCE(proposal="local"))
    with pytest.raises(TypeError, match="ModelMixture"):
        model_information_gain(simulator, RandomPolicy(simulator), 2)
