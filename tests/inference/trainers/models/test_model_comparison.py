"""Model probabilities against exact ones; resuming, saving, priors, transfer, collapse."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch.nn.functional import logsigmoid

from sbi_bed.inference import ModelComparison, ModelPosterior
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.utils.files import load_file, save_file

UNIFORM = torch.tensor([1 / 3, 1 / 3, 1 / 3])


class Gaussians:
    """x ~ N(m, 1) in each of two dimensions, m = 0, 1 or 2: evidences are densities."""

    @staticmethod
    def simulate(num, prior):
        model_index = torch.multinomial(prior, num, replacement=True)
        return model_index, torch.randn(num, 2) + model_index.unsqueeze(-1)

    @staticmethod
    def log_evidences(x):
        means = torch.arange(3.0).double()
        return -0.5 * (x.double().unsqueeze(1) - means.view(1, 3, 1)).square().sum(-1)


class GroupedMeans:
    """x_li ~ N(μ + u_l, 1), u_l ~ N(0, ¼): M0 has μ = 0, M1 has μ ~ N(0, 1); up to 5 groups of 4."""

    @staticmethod
    def simulate(num, max_groups=5, model_index=None):
        model_index = torch.arange(num) % 2 if model_index is None else model_index
        shape = (num, max_groups, 4, 1)
        centres = (torch.randn(num) * model_index).view(-1, 1, 1, 1) + 0.5 * torch.randn(num, max_groups, 1, 1)
        groups = torch.randint(2, max_groups + 1, (num, 1))
        mask = (torch.arange(max_groups) < groups)[..., None, None].float().expand(shape)
        return model_index, torch.cat([(centres + torch.randn(shape)) * mask, mask], -1)

    @staticmethod
    def log_bayes_factor(x):
        groups = x[:, :, 0, 1].sum(-1).double()
        mean = x[..., 0].double().sum((1, 2)) / (4 * groups)
        v = (0.25 + 0.25) / groups
        return 0.5 * (v.log() - (1 + v).log() + mean.square() * (1 / v - 1 / (1 + v)))


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.SiLU(), torch.nn.Linear(32, 8))


def trainer(num=6000, prior=UNIFORM, **settings):
    torch.manual_seed(0)
    comparison = ModelComparison(3, mlp(), show_progress_bars=False, **settings)
    return comparison.append_simulations(*Gaussians.simulate(num, prior))


def divergence(posterior, x, prior=None):
    """Mean KL(exact ‖ net), nats."""
    weights = torch.ones(3).double() if prior is None else torch.as_tensor(prior).double()
    exact = (Gaussians.log_evidences(x) + weights.log()).log_softmax(-1)
    return float((exact.exp() * (exact - posterior.log_probs(x, prior))).sum(-1).mean())


def grouped_divergence(posterior, x):
    """KL(exact ‖ net) of each data set of `GroupedMeans`, nats."""
    factors = GroupedMeans.log_bayes_factor(x), posterior.log_bayes_factor(x, 1, 0)
    exact, found = (logsigmoid(torch.stack([-each, each], -1)) for each in factors)
    return (exact.exp() * (exact - found)).sum(-1)


@pytest.fixture(scope="module")
def gaussians():
    comparison = trainer()
    comparison.train(max_num_epochs=15, seed=0)
    return comparison.build_posterior()


@pytest.fixture(scope="module")
def test_x():
    torch.manual_seed(7)
    return Gaussians.simulate(3000, UNIFORM)[1]


@pytest.fixture(scope="module")
def grouped():
    torch.manual_seed(0)
    embedding = HierarchicalEmbedding(1, output_dim=8, hidden_dim=32, lowest_dim=8)
    comparison = ModelComparison(2, embedding, show_progress_bars=False)
    comparison.append_simulations(*GroupedMeans.simulate(8000)).train(max_num_epochs=12, seed=0)
    return comparison.build_posterior()


# ---- against exact probabilities


def test_probabilities_are_close_to_the_exact_ones(gaussians, test_x):
    """With d weights that matter KL is about d/2N; 6,000 simulations and some tens of weights give a few thousandths.

    Six weights that know the exact form, fitted by maximum likelihood, have an error of .105 (Fisher information) where log
    Bayes factors are below 5. Beyond there is about one simulation in 150 of the losing model.
    """
    assert divergence(gaussians, test_x) < 0.006
    torch.testing.assert_close(gaussians.probs(test_x).sum(-1), torch.ones(3000).double())
    exact = Gaussians.log_evidences(test_x)[:, [2, 0]] @ torch.tensor([1.0, -1]).double()
    error = (gaussians.log_bayes_factor(test_x, 2, 0) - exact)[exact.abs() < 5]
    assert error.square().mean().sqrt() < 0.105 * (50 / 6) ** 0.5


def test_grouped_data_of_different_sizes(grouped):
    torch.manual_seed(5)
    _, x = GroupedMeans.simulate(3000)
    exact, net = GroupedMeans.log_bayes_factor(x), grouped.log_bayes_factor(x, 1, 0)
    divergence = grouped_divergence(grouped, x)
    for few in (True, False):
        assert divergence[(x[..., 1].sum((1, 2)) < 14) == few].mean() < 0.015
    assert (exact - net)[exact.abs() < 5].square().mean().sqrt() < 0.4


@pytest.mark.parametrize("loss", ["cross-entropy", "l-pop"])
def test_how_often_models_were_simulated_and_the_prior_are_corrected_for(loss, test_x):
    """Simulated 6 : 3 : 1, under a stated prior of 1 : 2 : 3, asked for under that and under others."""
    comparison = trainer(8000, torch.tensor([0.6, 0.3, 0.1]), model_prior=[1, 2, 3], loss=loss)
    comparison.train(max_num_epochs=12, seed=0)
    posterior = comparison.build_posterior()
    assert divergence(posterior, test_x, [1, 1, 1]) < 0.015
    assert divergence(posterior, test_x, [1, 2, 3]) < 0.015
    assert divergence(posterior, test_x, [0.6, 0.3, 0.1]) < 0.01
    exact = (Gaussians.log_evidences(test_x) + torch.tensor([1.0, 2, 3]).double().log()).softmax(-1)
    assert (posterior.probs(test_x) - exact).mean(0).abs().max() < 0.02
    torch.testing.assert_close(posterior.probs(test_x), posterior.probs(test_x, model_prior=[1, 2, 3]))


def test_bayes_factors_do_not_depend_on_the_prior_and_do_not_saturate(gaussians):
    x = torch.tensor([[0.3, 0.1], [60.0, 60.0]])
    factor = gaussians.log_bayes_factor(x, 2, 0)
    assert torch.equal(factor, -gaussians.log_bayes_factor(x, 0, 2))
    other = ModelPosterior(gaussians.classifier, torch.tensor([0.9, 0.05, 0.05]), (2,))
    assert torch.equal(other.log_bayes_factor(x, 2, 0), factor)
    assert not torch.allclose(other.probs(x[:1]), gaussians.probs(x[:1]))
    assert 30 < factor[1] < math.inf  # an odds ratio that no difference of probabilities could hold
    log_probs = gaussians.log_probs(x)
    assert torch.isfinite(log_probs).all() and log_probs[1, 0] < -30
    torch.testing.assert_close(log_probs[:, 2] - log_probs[:, 0], factor)


def test_draws_and_summaries(gaussians, test_x):
    probs = gaussians.probs(test_x[:3])
    draws = gaussians.sample((4000,), test_x[:3])
    assert draws.shape == (4000, 3)
    shares = torch.stack([(draws == j).double().mean(0) for j in range(3)], -1)
    assert ((shares - probs).abs() < 5 * (probs * (1 - probs) / 4000).sqrt() + 1e-3).all()
    torch.testing.assert_close(gaussians.summary(test_x), gaussians.classifier.embedding_net(test_x).detach())
    assert torch.equal(gaussians.probs(test_x[0]), gaussians.probs(test_x[:1]))


def test_large_batches_go_through_in_parts(gaussians, monkeypatch, test_x):
    whole = gaussians.probs(test_x)
    monkeypatch.setattr("sbi_bed.inference.posteriors.model_posterior._CHUNK", 100)
    torch.testing.assert_close(gaussians.probs(test_x), whole, rtol=1e-5, atol=1e-6)


# ---- training


def weights_of(posterior):
    return torch.cat([p.flatten() for p in posterior.classifier.state_dict().values()])


def test_a_checkpoint_of_another_net_or_half_of_one_is_refused(tmp_path):
    path, settings = tmp_path / "checkpoint", {"max_num_epochs": 2, "seed": 3}
    trainer(1500).train(checkpoint=path, **settings)
    other = ModelComparison(3, torch.nn.Sequential(torch.nn.Linear(2, 7)), show_progress_bars=False)
    other.append_simulations(*Gaussians.simulate(1500, UNIFORM))
    with pytest.raises(ValueError, match="is a checkpoint of another net"):
        other.train(checkpoint=path, resume=True, **settings)
    save_file(path, "training", {"settings": {}})
    with pytest.raises(ValueError, match="lacks parts of a training"):
        trainer(1500).train(checkpoint=path, resume=True, **settings)


def test_training_stops_in_time_and_when_nothing_improves():
    comparison = trainer(3000)
    comparison.train(max_num_epochs=10_000, max_seconds=1.0, seed=0)
    assert 1 < len(comparison.validation_losses) < 1000
    comparison = trainer(3000)
    comparison.train(max_num_epochs=500, stop_after_epochs=3, learning_rate=0.01, seed=0)
    assert len(comparison.validation_losses) < 100
    assert min(comparison.validation_losses[:-3]) <= min(comparison.validation_losses[-3:])


def test_an_overfitted_end_is_not_preferred_to_an_earlier_epoch(test_x):
    """Few simulations, many passes, no early stop: the last weights are far too sure, and the best are kept."""
    comparison = trainer(1000)  # 300 to train on; the other 700 tell a difference of .03 nats
    comparison.train(
        32,
        0.02,
        max_num_epochs=100,
        stop_after_epochs=1000,
        validation_fraction=0.7,
        seed=0,
        final_learning_rate=1,
        weight_decay=0,
    )
    assert comparison.validation_losses[-1] > min(comparison.validation_losses) + 0.03
    assert divergence(comparison.build_posterior(), test_x) < 50 / 600


@pytest.mark.filterwarnings("ignore:the data leave the range")
def test_transfer_goes_on_from_a_trained_net_at_a_tenth_of_the_rate(grouped):
    """From up to 5 groups to 16: 600 simulations are too few for a new net, and unlearn no more than chance explains.

    Over six seeds KL was .18 to .33 of a new net's, and .6 to 1.3 of that before. Of d weights that matter it is about d/2N.
    """
    torch.manual_seed(3)

    def large(num):
        model_index, x = GroupedMeans.simulate(num, max_groups=16)
        return model_index, x

    def error(posterior):
        torch.manual_seed(4)
        _, x = large(2000)
        return float(grouped_divergence(posterior, x).mean())

    before, weights = error(grouped), weights_of(grouped).clone()
    comparison = ModelComparison.transfer(grouped, show_progress_bars=False).append_simulations(*large(600))
    comparison.train(max_num_epochs=5, seed=0)
    after = error(comparison.build_posterior())
    fresh = ModelComparison(
        2, HierarchicalEmbedding(1, output_dim=8, hidden_dim=32, lowest_dim=8), show_progress_bars=False
    )
    fresh.append_simulations(*large(600)).train(max_num_epochs=5, seed=0)
    assert after < before + 10 / 1200 and after < 0.7 * error(fresh.build_posterior())
    assert torch.equal(weights_of(grouped), weights)  # a copy was trained


class Dead(torch.nn.Module):
    """Blind with its first weights: gives zeros until it is reset."""

    def __init__(self):
        super().__init__()
        self.net, self.sees = mlp(), 0.0

    def reset_parameters(self):
        self.sees = 1.0

    def forward(self, x):
        return self.net(x) * self.sees


def test_a_collapse_to_chance_is_noticed_and_started_again(test_x):
    torch.manual_seed(0)
    comparison = ModelComparison(3, Dead(), show_progress_bars=False).append_simulations(
        *Gaussians.simulate(4000, UNIFORM)
    )
    with pytest.warns(
        RuntimeWarning, match="no better apart than chance: it is started again from other weights"
    ) as caught:
        comparison.train(64, max_num_epochs=8, seed=0)
    assert {w.filename for w in caught if w.category is RuntimeWarning} == {__file__}
    assert divergence(comparison.build_posterior(), test_x) < 0.02
    assert len(comparison.validation_losses) == 8


def test_models_that_cannot_be_told_apart_are_said_to_be_so():
    torch.manual_seed(0)
    comparison = ModelComparison(2, mlp(), show_progress_bars=False).append_simulations(
        torch.arange(600) % 2, torch.randn(600, 2)
    )
    with pytest.warns(RuntimeWarning) as caught:
        comparison.train(max_num_epochs=4, max_restarts=1, seed=0)
    messages = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert "started again" in messages[0] and "such data may not tell them apart" in messages[-1]


def test_nothing_is_said_or_written_where_all_is_well(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(1000).train(20, max_num_epochs=2, seed=0)
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


def test_a_tracker_is_told():
    class Tracker:
        log_dir = None

        def __init__(self):
            self.metrics, self.params = {}, {}

        def log_metric(self, name, value, step=None):
            self.metrics.setdefault(name, []).append(value)

        def log_params(self, params):
            self.params = params

        def flush(self):
            pass

    tracker = Tracker()
    comparison = trainer(1000, tracker=tracker)
    comparison.train(max_num_epochs=3, seed=0)
    assert tracker.metrics["validation_loss"] == comparison.validation_losses and tracker.params["max_num_epochs"] == 3


# ---- saving


def test_a_saved_posterior_comes_back(tmp_path, grouped, gaussians, test_x):
    grouped.save(tmp_path / "grouped")
    loaded = ModelPosterior.load(tmp_path / "grouped")
    _, x = GroupedMeans.simulate(20)
    assert torch.equal(loaded.log_probs(x), grouped.log_probs(x))
    assert torch.equal(loaded.model_prior, grouped.model_prior)
    gaussians.save(tmp_path / "gaussians")
    with pytest.raises(ValueError, match=r"the saved Sequential cannot be rebuilt .* give embedding_net="):
        ModelPosterior.load(tmp_path / "gaussians")
    loaded = ModelPosterior.load(tmp_path / "gaussians", embedding_net=mlp())
    assert torch.equal(loaded.log_probs(test_x), gaussians.log_probs(test_x))
    with pytest.raises(ValueError, match="do not fit embedding_net"):
        ModelPosterior.load(tmp_path / "gaussians", embedding_net=torch.nn.Linear(2, 8))
    content = load_file(tmp_path / "grouped", "model_posterior")
    name = "embedding_net.levels.0.context.weight"
    content["weights"][name] = content["weights"][name][:, :-1]  # as of a version with a feature less
    save_file(
        tmp_path / "older", "model_posterior", {k: v for k, v in content.items() if k not in ("format", "version")}
    )
    with pytest.raises(
        ValueError, match=r"older cannot be loaded: .* another version, .* Train the net again, or load the"
    ):
        ModelPosterior.load(tmp_path / "older")
    save_file(tmp_path / "half", "model_posterior", {"embedding": "HierarchicalEmbedding"})
    with pytest.raises(ValueError, match="lacks parts of a model posterior"):
        ModelPosterior.load(tmp_path / "half")
    for twin in (pickle.loads(pickle.dumps(gaussians)), copy.deepcopy(gaussians), gaussians.to("cpu")):
        assert torch.equal(twin.probs(test_x), gaussians.probs(test_x))


# ---- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: ModelComparison(1, mlp()), "num_models must be at least 2"),
        (lambda: ModelComparison(2, mlp(), model_prior=[1.0, 0.0]), "model_prior must be 2 positive weights"),
        (lambda: ModelComparison(2, mlp(), loss="mse"), "loss must be 'cross-entropy' or 'l-pop', got 'mse'"),
        (
            lambda: trainer(10).append_simulations(torch.zeros(3), torch.zeros(4, 2)),
            r"one length, got \(3,\) and \(4, 2\)",
        ),
        (lambda: trainer(10).append_simulations(torch.tensor([0, 3]), torch.zeros(2, 2)), "0 to 2, got 3 at index 1"),
        (
            lambda: trainer(10).append_simulations(torch.tensor([0, 0.5]), torch.zeros(2, 2)),
            "0 to 2, got 0.5 at index 1",
        ),
        (
            lambda: trainer(10).append_simulations([0], torch.tensor([[0, math.nan]])),
            r"x must be finite, got nan at index \(0, 1\)",
        ),
        (
            lambda: trainer(10).append_simulations([0], torch.zeros(1, 5)),
            r"one shape, got \(5,\) after \(2,\): pad them alike",
        ),
        (lambda: ModelComparison(2, mlp()).train(), "there are no simulations"),
        (lambda: ModelComparison(2, mlp()).build_posterior(), "call train"),
        (
            lambda: ModelComparison(4, mlp()).append_simulations(*Gaussians.simulate(99, UNIFORM)).train(),
            "no simulation of model 3",
        ),
        (lambda: trainer(10).train(resume=True), "resume=True needs checkpoint="),
        (lambda: trainer(10).train(max_num_epochs=0), "max_num_epochs must be at least 1"),
        (lambda: trainer(10).train(learning_rate=-1.0), "learning_rate must be positive"),
        (lambda: trainer(10).train(validation_fraction=1.0), "validation_fraction must be strictly between 0 and 1"),
        (lambda: trainer(10).train(final_learning_rate=2.0), "final_learning_rate must be a share"),
        (lambda: trainer(10).train(weight_decay=-1.0), "weight_decay must be 0 or more"),
        (
            lambda: trainer(3000).train(learning_rate=1e30, max_num_epochs=1, clip_max_norm=None, seed=0),
            "the loss became NaN or infinite",
        ),
    ],
)
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        change()


def test_errors_of_the_posterior(gaussians):
    with pytest.raises(ValueError, match=r"like those of training, \(B, 2\), got \(4, 3\)"):
        gaussians.probs(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"x must be finite, got inf at index \(0, 1\)"):
        gaussians.probs(torch.tensor([[0.0, math.inf]]))
    with pytest.raises(ValueError, match="models are numbered from 0 to 2, got j = 3"):
        gaussians.log_bayes_factor(torch.zeros(1, 2), 0, 3)
    with pytest.raises(ValueError, match="model_prior must be 3 positive weights"):
        gaussians.probs(torch.zeros(1, 2), model_prior=[1, 1])
    with pytest.raises(TypeError, match="embedding_net must be a torch module"):
        ModelComparison(2, lambda x: x)
