"""Ensembles of classifiers and of sbi's posteriors: mixtures in random order, the same for any number of workers."""

import math
import pickle
import warnings

import pytest
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

from sbi_bed.inference import DeepEnsemblePosterior, ModelComparison, train_ensemble
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.utils import NoTracker


class Normal:
    """A posterior over one parameter, in closed form."""

    def __init__(self, mean, calls=None):
        self.normal = torch.distributions.Normal(torch.tensor([float(mean)]), 1.0)
        self.x = None

    def sample(self, sample_shape=(), x=None, context=0.0):
        return self.normal.sample(sample_shape) + context

    def sample_batched(self, sample_shape, x):
        return self.sample((*sample_shape, len(x)))

    def log_prob(self, theta, x=None, context=0.0):
        return self.normal.log_prob(theta - context).sum(-1)

    def set_default_x(self, x):
        self.x = x

    def to(self, device):
        self.device = device


def grouped(num):
    model_index = torch.arange(num) % 2
    mask = (torch.rand(num, 3, 4, 1) < 0.8).float()
    mask[:, 0, 0] = 1
    return model_index, torch.cat([(torch.randn(num, 3, 4, 1) + 0.5 * model_index.view(-1, 1, 1, 1)) * mask, mask], -1)


def builder():
    """A function in a function: it travels to other processes whole, with its simulations."""
    torch.manual_seed(0)
    model_index, x = grouped(1000)

    def build():
        embedding = HierarchicalEmbedding(1, output_dim=4, hidden_dim=8, lowest_dim=4)
        return ModelComparison(2, embedding, show_progress_bars=False).append_simulations(model_index, x)

    return build


@pytest.fixture(scope="module")
def classifiers():
    return train_ensemble(builder(), num_members=3, seed=0, train_settings={"max_num_epochs": 6})


def test_probabilities_are_the_members_mean_and_spread_is_theirs(classifiers):
    torch.manual_seed(0)
    x = grouped(50)[1]
    each = torch.stack([member.probs(x) for member in classifiers.members])
    assert each.std(0).max() > 0.01  # the members differ
    torch.testing.assert_close(classifiers.probs(x), each.mean(0))
    torch.testing.assert_close(classifiers.log_probs(x), each.mean(0).log())
    torch.testing.assert_close(classifiers.spread(x), each.std(0, unbiased=False))
    factors = torch.stack([member.log_bayes_factor(x, 1, 0) for member in classifiers])
    torch.testing.assert_close(classifiers.log_bayes_factor(x, 1, 0), factors.mean(0))
    draws = classifiers.sample((3000,), x[:4])
    assert draws.shape == (3000, 4)
    assert ((draws == 1).double().mean(0) - classifiers.probs(x[:4])[:, 1]).abs().max() < 0.05
    prior = classifiers.probs(x, model_prior=[0.9, 0.1])
    assert (prior[:, 0] > classifiers.probs(x)[:, 0]).all()


def test_it_depends_on_the_seed_alone(classifiers):
    torch.manual_seed(0)
    x = grouped(10)[1]
    settings = {"train_settings": {"max_num_epochs": 6}}
    elsewhere = train_ensemble(builder(), 2, seed=0, num_workers=2, **settings)
    for member, twin in zip(elsewhere.members, classifiers.members, strict=False):
        assert torch.equal(member.probs(x), twin.probs(x))
    assert not torch.equal(elsewhere.members[0].probs(x), elsewhere.members[1].probs(x))
    other = train_ensemble(builder(), 1, seed=1, **settings)
    assert not torch.equal(other.members[0].probs(x), classifiers.members[0].probs(x))


def test_a_saved_ensemble_comes_back(tmp_path, classifiers):
    x = grouped(10)[1]
    classifiers.save(tmp_path / "ensemble")
    loaded = DeepEnsemblePosterior.load(tmp_path / "ensemble")
    assert len(loaded) == 3 and torch.equal(loaded.probs(x), classifiers.probs(x))
    assert torch.equal(pickle.loads(pickle.dumps(classifiers)).probs(x), classifiers.probs(x))


def test_sbi_posteriors_are_mixed_draw_by_draw():
    prior = BoxUniform(-torch.ones(1) * 3, torch.ones(1) * 3)
    torch.manual_seed(0)
    theta = prior.sample((1500,))
    x = theta + torch.randn(1500, 1)

    def build():
        inference = NPE(prior, density_estimator="mdn", tracker=NoTracker(), show_progress_bars=False)
        return inference.append_simulations(theta, x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sbi's, of the last epoch
        ensemble = train_ensemble(build, 2, seed=0, train_settings={"max_num_epochs": 8, "learning_rate": 3e-3})
    ensemble.set_default_x(torch.zeros(1, 1))
    values = torch.linspace(-2, 2, 41).unsqueeze(-1)
    each = torch.stack([member.log_prob(values) for member in ensemble.members])
    torch.testing.assert_close(ensemble.log_prob(values), each.exp().mean(0).log())
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(values.squeeze(-1))
    assert (ensemble.log_prob(values) - exact).abs().max() < 0.5
    draws = ensemble.sample((2000,), show_progress_bars=False)
    assert draws.shape == (2000, 1) and abs(float(draws.mean())) < 0.2
    batched = ensemble.sample_batched((50,), x=torch.zeros(3, 1), show_progress_bars=False)
    assert batched.shape == (50, 3, 1)


def test_members_come_in_random_order_and_in_equal_parts():
    torch.manual_seed(0)
    ensemble = DeepEnsemblePosterior([Normal(-50), Normal(50)])
    signs = ensemble.sample((4000,), x=torch.zeros(1)).sign().squeeze(-1)
    assert abs(float(signs.mean())) < 5 / math.sqrt(4000)
    changes = (signs[1:] != signs[:-1]).double().mean()
    assert abs(float(changes) - 0.5) < 5 * 0.5 / math.sqrt(4000)
    assert ensemble.sample((3, 5)).shape == (3, 5, 1) and ensemble.sample((0,)).shape == (0, 1)
    assert ensemble.sample().shape == (1,)
    assert ensemble.sample_batched((7,), x=torch.zeros(4, 1)).shape == (7, 4, 1)
    assert (ensemble.sample((100,), context=1000.0) > 900).all()  # keywords reach the members
    theta = torch.tensor([[50.0], [0.0]])
    expected = torch.stack([m.log_prob(theta) for m in ensemble]).logsumexp(0) - math.log(2)
    torch.testing.assert_close(ensemble.log_prob(theta), expected)
    ensemble.set_default_x(torch.ones(1)).to("cpu")
    assert all(m.x == 1 and m.device == "cpu" for m in ensemble.members)


def test_a_builder_may_take_its_number_and_return_a_posterior():
    ensemble = train_ensemble(lambda number: Normal(number), 3, seed=0)
    assert [float(m.normal.mean) for m in ensemble.members] == [0.0, 1.0, 2.0]


def test_errors(classifiers, tmp_path):
    with pytest.raises(ValueError, match="needs at least one member"):
        DeepEnsemblePosterior([])
    with pytest.raises(ValueError, match="must all be posteriors over models, or all over parameters"):
        DeepEnsemblePosterior([classifiers.members[0], Normal(0)])
    with pytest.raises(TypeError, match="must return a trainer with train"):
        train_ensemble(lambda: 3, 2, seed=0)
    with pytest.raises(ValueError, match="num_members must be at least 1"):
        train_ensemble(builder(), 0, seed=0)
    parameters = DeepEnsemblePosterior([Normal(0)])
    for call in (lambda: parameters.probs(torch.zeros(1)), lambda: parameters.save(tmp_path / "file")):
        with pytest.raises(TypeError, match="needs posteriors over models, got Normal"):
            call()
