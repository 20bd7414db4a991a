"""Ensembles of classifiers and of sbi's posteriors: mixtures in random order, the same for any number of workers."""

import math
import pickle
import re
import warnings

import pytest
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

from sbi_bed.diagnostics import simulation_gap
from sbi_bed.inference import ContextNPE, DeepEnsemblePosterior, ModelComparison, train_ensemble
from sbi_bed.inference.trainers.ensemble import stuck_members
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.simulators import PowerScaledPrior, simulate_with_context
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


class Straight(torch.nn.Module):
    """A net of one weight, which `train` sets."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))


class Trainer:
    """Knows the loss of each held-out simulation: some level of its own, and what the simulations share."""

    built = 0

    def __init__(self, level):
        self.level = level
        Trainer.built += 1

    def train(self, split_seed, learning_rate=1.0):
        self.rows = torch.Generator().manual_seed(split_seed)
        self.held_out_losses = self.level + torch.randn(200, generator=self.rows)
        return Straight()

    def build_posterior(self):
        return Normal(self.level)


def quiet_ensemble(build, num_members, **settings):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # sbi's, of the last epoch
        return train_ensemble(build, num_members, seed=0, **settings)


def test_members_hold_out_the_same_simulations_and_differ_in_all_else():
    prior = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
    theta = prior.sample((600,))
    x = theta + 0.5 * torch.randn(600, 1)
    rows, orders, firsts = [], [], []

    class Watched(NPE):
        def get_dataloaders(self, *args, **kwargs):
            loaders = super().get_dataloaders(*args, **kwargs)
            rows.append(self.val_indices)
            return loaders

        def _initialize_neural_network(self, *args, **kwargs):
            super()._initialize_neural_network(*args, **kwargs)
            firsts.append(torch.cat([p.detach().flatten() for p in self._neural_net.parameters()]))
            orders.append(torch.randperm(600))

    def build():
        trainer = Watched(prior, density_estimator="mdn", tracker=NoTracker(), show_progress_bars=False)
        return trainer.append_simulations(theta, x)

    ensemble = quiet_ensemble(build, 2, train_settings={"max_num_epochs": 3, "training_batch_size": 50})
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(orders[0], orders[1])
    # The losses are those of the posteriors for just these simulations.
    assert ensemble.held_out_losses.shape == (2, 60)
    for member, losses in zip(ensemble, ensemble.held_out_losses, strict=True):
        found = member.log_prob_batched(theta[rows[0]].unsqueeze(0), x=x[rows[0]], norm_posterior=False)
        torch.testing.assert_close(-found.squeeze(0).double(), losses, rtol=1e-4, atol=1e-4)


def test_classifiers_share_a_split_too(classifiers):
    assert classifiers.held_out_losses.shape == (3, 50)
    # Losses of the same simulations go together; of different ones they would not: 0 ± 0.14.
    together = torch.corrcoef(classifiers.held_out_losses)
    assert together.min() > 0.6 and not torch.equal(classifiers.held_out_losses[0], classifiers.held_out_losses[1])


def test_a_stuck_member_is_trained_again():
    Trainer.built, stuck = 0, {2}

    def build(number):
        return Trainer(1.8 if number in stuck and not stuck.discard(number) else 0.6 + 0.01 * number)

    with pytest.warns(RuntimeWarning, match=r"member 2 \(.*\) got stuck.*training again") as warned:
        ensemble = train_ensemble(build, 5, seed=0)
    own, others = (float(number) for number in re.findall(r"-?\d+\.\d+", str(warned[0].message)))
    assert own - others == pytest.approx(1.8 - 0.62, abs=0.03)  # all see the same noise
    assert Trainer.built == 6 and len(ensemble) == 5
    assert [round(float(m.normal.mean), 2) for m in ensemble] == [0.6, 0.61, 0.62, 0.63, 0.64]


def test_a_member_that_stays_stuck_is_left_out():
    with pytest.warns(RuntimeWarning) as warned:
        ensemble = train_ensemble(lambda number: Trainer(1.8 if number == 1 else 0.6), 4, seed=0)
    assert [("training again" in str(w.message), "left out" in str(w.message)) for w in warned] == [
        (True, False),
        (False, True),
    ]
    assert {w.filename for w in warned} == {__file__}
    assert len(ensemble) == 3 and ensemble.held_out_losses.shape == (3, 200)
    assert all(round(float(m.normal.mean), 2) == 0.6 for m in ensemble)


def test_members_that_merely_differ_are_kept():
    noise = torch.randn(1, 400)
    assert stuck_members(torch.tensor([[0.6], [0.7], [0.5], [0.65]]) + noise, 0.3) == []
    assert stuck_members(torch.tensor([[0.6], [1.2], [0.1], [1.8]]) + noise, 0.3) == []  # all are apart
    assert stuck_members(torch.tensor([[0.6], [1.8]]) + noise, 0.3) == [1]
    assert stuck_members(torch.tensor([[0.6], [0.61], [float("nan")]]) + noise, 0.3) == [2]
    wild = torch.tensor([[0.6], [0.6], [1.0]]) + torch.cat([noise[:, :5]] * 2 + [20 * torch.randn(1, 5)])
    wild[2] += 1.0 - wild[2].mean()
    assert stuck_members(wild, 0.3) == []  # five simulations do not show it
    with pytest.raises(ValueError, match="no member could be trained"), pytest.warns(RuntimeWarning):
        train_ensemble(lambda: Trainer(float("nan")), 2, seed=0)


def test_weights():
    members = [Normal(-50), Normal(50), Normal(0)]
    ensemble = DeepEnsemblePosterior(members, weights=[3.0, 1.0, 0.0])
    assert ensemble.weights.tolist() == [0.75, 0.25, 0.0]
    draws = ensemble.sample((4000,)).squeeze(-1)
    assert (draws.abs() > 40).all()
    assert abs(float((draws < 0).double().mean()) - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 4000)
    theta = torch.tensor([[49.0], [-51.0]])
    exact = torch.stack([math.log(0.75) + members[0].log_prob(theta), math.log(0.25) + members[1].log_prob(theta)])
    torch.testing.assert_close(ensemble.log_prob(theta), exact.logsumexp(0))


def test_weights_of_classifiers(classifiers, tmp_path):
    torch.manual_seed(0)
    x = grouped(20)[1]
    weights = torch.tensor([0.5, 0.3, 0.2])
    ensemble = DeepEnsemblePosterior(classifiers.members, weights)
    each = torch.stack([member.probs(x) for member in ensemble])
    mean = (weights.view(-1, 1, 1) * each).sum(0)
    torch.testing.assert_close(ensemble.probs(x), mean)
    spread = (weights.view(-1, 1, 1) * (each - mean).square()).sum(0).sqrt()
    torch.testing.assert_close(ensemble.spread(x), spread)
    ensemble.save(tmp_path / "weighted")
    assert torch.equal(DeepEnsemblePosterior.load(tmp_path / "weighted").spread(x), ensemble.spread(x))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sbis_diagnostics_take_it():
    from sbi.diagnostics import run_sbc, run_tarp
    from sbi.diagnostics.sbc import check_uniformity_frequentist

    prior = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))

    class Exact:
        """The posterior of theta under x = theta + N(0, 1), as sbi's are called; shifted by so much."""

        def __init__(self, shift):
            self.shift, self.prior = shift, prior

        def sample_batched(self, sample_shape, x, show_progress_bars=True):
            return x / 2 + self.shift + math.sqrt(0.5) * torch.randn(*sample_shape, *x.shape)

    theta = prior.sample((300,))
    x = theta + torch.randn(300, 1)
    p_values = []
    for shift in (0.0, 1.0):
        ensemble = DeepEnsemblePosterior([Exact(shift), Exact(shift)])
        ranks, _ = run_sbc(theta, x, ensemble, num_posterior_samples=200, show_progress_bar=False)
        p_values.append(float(check_uniformity_frequentist(ranks, 200).min()))
        coverage, alpha = run_tarp(theta, x, ensemble, num_posterior_samples=200, show_progress_bar=False)
        assert (float((coverage - alpha).abs().max()) < 0.12) == (shift == 0)
    assert p_values[0] > 1e-3 and p_values[1] < 1e-6


def test_priors_are_compared_by_value():
    class Plain:
        def __init__(self, low, high):
            self.prior = BoxUniform(low * torch.ones(2), high * torch.ones(2))

    same = DeepEnsemblePosterior([Plain(-1, 1), Plain(-1, 1)])
    assert same.prior is same.members[0].prior
    with pytest.raises(ValueError, match="must have one prior: that of member 1"):
        DeepEnsemblePosterior([Plain(-1, 1), Plain(-1, 2)])
    with pytest.raises(ValueError, match="must have one prior: that of member 1"):
        DeepEnsemblePosterior([Plain(-1, 1), Plain(0, 1)])


def test_it_conditions_each_member():
    class Conditional(Normal):
        def condition_on(self, context):
            return Normal(float(self.normal.mean) + context)

    ensemble = DeepEnsemblePosterior([Conditional(0), Conditional(100)], [0.2, 0.8]).condition_on(5.0)
    assert [float(m.normal.mean) for m in ensemble] == [5.0, 105.0] and ensemble.weights.tolist() == [0.2, 0.8]


def test_posteriors_with_a_context():
    prior = PowerScaledPrior(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    simulations = simulate_with_context(lambda theta: theta + 0.5 * torch.randn_like(theta), prior, 600, seed=0)

    def build():
        return ContextNPE(prior, "mdn", show_progress_bars=False).append_simulations(*simulations)

    ensemble = train_ensemble(build, 2, seed=0, train_settings={"max_num_epochs": 6})
    context, x = [1.0] * simulations[2].shape[1], simulations[1][:1]
    theta = torch.zeros(3, 2)
    each = torch.stack([member.log_prob(theta, x=x, context=context, norm_posterior=False) for member in ensemble])
    found = ensemble.log_prob(theta, x=x, context=context, norm_posterior=False)
    torch.testing.assert_close(found, each.exp().mean(0).log())
    inside = ensemble.condition_on(context)
    torch.testing.assert_close(inside.log_prob(theta, x=x, norm_posterior=False), found, rtol=1e-4, atol=1e-4)
    assert ensemble.sample((5,), x=x, context=context).shape == (5, 2)
    gap = simulation_gap(
        inside, torch.tensor([[0.1, 0.1], [90.0, -90.0]]), simulations[1][:400], num_samples=50, seed=0
    )
    assert gap.p_value[0] > 0.03 and gap.p_value[1] < 0.01


def test_errors(classifiers, tmp_path):
    with pytest.raises(ValueError, match="needs at least one member"):
        DeepEnsemblePosterior([])
    with pytest.raises(ValueError, match="must all be posteriors over models, or all over parameters"):
        DeepEnsemblePosterior([classifiers.members[0], Normal(0)])
    with pytest.raises(TypeError, match="must return a trainer with train"):
        train_ensemble(lambda: 3, 2, seed=0)
    with pytest.raises(ValueError, match="num_members must be at least 1"):
        train_ensemble(builder(), 0, seed=0)
    with pytest.raises(ValueError, match="stuck_by must be positive"):
        train_ensemble(builder(), 2, seed=0, stuck_by=0.0)
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="weights must be 2 numbers"):
            DeepEnsemblePosterior([Normal(0), Normal(1)], weights)
    parameters = DeepEnsemblePosterior([Normal(0)])
    for call in (lambda: parameters.probs(torch.zeros(1)), lambda: parameters.save(tmp_path / "file")):
        with pytest.raises(
            TypeError, match=r"needs (posteriors over models|members that are ModelPosterior), got Normal"
        ):
            call()
