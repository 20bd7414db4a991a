"""Nets know the sizes they were trained on: good answers at all sizes with `vary_sizes`, a warning at others without."""

import math
import warnings

import pytest
import torch
from torch.distributions import Beta, Gamma

from sbi_bed.diagnostics import atypicality, data_sensitivity, evidence_recovery, model_report, simulation_gap
from sbi_bed.inference import DeepEnsemblePosterior, ModelComparison, ModelPosterior
from sbi_bed.neural_nets import HierarchicalEmbedding
from sbi_bed.simulators import NestedNormal, simulate_models

GROUPS, OBSERVATIONS = 8, 20
FULL = [OBSERVATIONS] * GROUPS
SIZES = {
    "full": FULL,
    "one person of one trial": [20] * 7 + [1],
    "one person of three": [20] * 7 + [3],
    "a trial each": [1] * 8,
    "five trials each": [5] * 8,
    "one group": [20],
    "one trial": [1],
    "two groups": [20, 20],
    "one group beside single trials": [20] + [1] * 7,
    "any": [1, 3, 20, 7, 12],
}


def packed(values):
    return torch.cat([values.unsqueeze(-1), torch.ones_like(values).unsqueeze(-1)], -1)


class BetaBinomial:
    """Groups of binary outcomes whose rates are Beta(a, b); both models have the mean 1/2."""

    parameters = (1.0, 1.0), (6.0, 6.0)

    def simulate(self, j, num):
        rates = Beta(*map(torch.tensor, self.parameters[j])).sample((num, GROUPS, 1))
        return packed(torch.bernoulli(rates.expand(num, GROUPS, OBSERVATIONS)))

    def log_evidence(self, x, j):
        a, b = torch.tensor(self.parameters[j]).double()
        n, k = x[..., 1].double().sum(-1), (x[..., 0] * x[..., 1]).double().sum(-1)
        return (_log_beta(a + k, b + n - k) - _log_beta(a, b)).sum(-1)


class GammaPoisson:
    """Groups of counts whose rates are Gamma(a, b); both models have the mean 2."""

    parameters = (2.0, 1.0), (8.0, 4.0)

    def simulate(self, j, num):
        rates = Gamma(*map(torch.tensor, self.parameters[j])).sample((num, GROUPS, 1))
        return packed(torch.poisson(rates.expand(num, GROUPS, OBSERVATIONS)))

    def log_evidence(self, x, j):
        a, b = torch.tensor(self.parameters[j]).double()
        n, k = x[..., 1].double().sum(-1), (x[..., 0] * x[..., 1]).double().sum(-1)
        return (a * b.log() - (a + k) * (b + n).log() + torch.lgamma(a + k) - torch.lgamma(a)).sum(-1)


class Scattered:
    """People who differ by .1 or by .5, each trial with noise of 1: exact, for group means are sufficient."""

    parameters = 0.1, 0.5

    def simulate(self, j, num):
        people = self.parameters[j] * torch.randn(num, GROUPS, 1)
        return packed(people + torch.randn(num, GROUPS, OBSERVATIONS))

    def log_evidence(self, x, j):
        n = x[..., 1].double().sum(-1)
        mean, variance = (x[..., 0] * x[..., 1]).double().sum(-1) / n.clamp_min(1), self.parameters[j] ** 2 + 1 / n
        terms = -0.5 * (variance.log() + mean.square() / variance)
        return torch.where(n > 0, terms, 0.0).sum(-1)


class Nested:
    """The nested normal family of the package, by quadrature."""

    models = NestedNormal(GROUPS, OBSERVATIONS)

    def simulate(self, j, num):
        return self.models.sample(j, num)[1]

    def log_evidence(self, x, j):
        return self.models.log_evidence(x, j)


FAMILIES = {"beta-binomial": BetaBinomial(), "gamma-Poisson": GammaPoisson(), "README": Scattered(), "nested": Nested()}


def _log_beta(a, b):
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def cut(x, sizes, missing=0.0):
    """Data sets with groups of these sizes, and a share of the observations missing, but one."""
    sizes = torch.tensor(sizes + [0] * (GROUPS - len(sizes)))
    mask = (torch.arange(OBSERVATIONS) < sizes[:, None]).expand(len(x), -1, -1)
    mask = mask & (torch.rand(mask.shape) >= missing)
    mask[:, 0, 0] = True
    return x * mask.unsqueeze(-1)


def trained(family, num=4000, seed=0, vary_sizes=None, epochs=30):
    model_index, x = simulate_models([lambda n, j=j: family.simulate(j, n) for j in range(2)], num, seed=seed + 1)
    comparison = ModelComparison(2, HierarchicalEmbedding(1), show_progress_bars=False)
    comparison.append_simulations(model_index, x).train(max_num_epochs=epochs, seed=seed, vary_sizes=vary_sizes)
    return comparison


def simulated(family, num):
    x = torch.cat([family.simulate(j, num // 2) for j in range(2)])
    return x[torch.randperm(len(x))]


def divergence(posterior, family, x):
    """KL(exact ‖ found) of each data set, nats."""
    exact = torch.stack([family.log_evidence(x, j) for j in range(2)], -1).log_softmax(-1)
    return (exact.exp() * (exact - posterior.log_probs(x))).sum(-1)


def caught(call, *arguments, **settings):
    """Warnings of one call."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(*arguments, **settings)
    return [w for w in found if "leave the range" in str(w.message)]


def check_all_sizes(posterior, family, limit, num):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing leaves the trained range
        for name, sizes in SIZES.items():
            for missing in (0.0, 0.3, 0.6):
                kl = divergence(posterior, family, cut(simulated(family, num), sizes, missing))
                assert kl.mean() < limit + 3 * kl.std() / num**0.5, (name, missing, float(kl.mean()))


@pytest.fixture(scope="module")
def varied():
    return trained(Scattered(), epochs=10)  # `vary_sizes` by default


@pytest.fixture(scope="module")
def fixed():
    return trained(Scattered(), vary_sizes=False, epochs=5)


def test_at_any_size_with_varying_sizes(varied):
    """A net for full sets is off by up to 1.6 nats if one person has one trial; a third of the usual steps gives .06."""
    assert varied.varied_sizes
    check_all_sizes(varied.build_posterior(), Scattered(), 0.06, 400)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_at_any_size(name, seed):
    """As in the README: 4,000 simulations, and all settings by default."""
    torch.manual_seed(seed)
    posterior = trained(FAMILIES[name], seed=seed).build_posterior()
    check_all_sizes(posterior, FAMILIES[name], 0.02, 600)


def test_without_it_each_call_warns_once_outside_and_never_inside(fixed, tmp_path):
    assert not fixed.varied_sizes
    posterior = fixed.build_posterior()
    posterior.save(tmp_path / "posterior")
    ensemble = DeepEnsemblePosterior([posterior, fixed.build_posterior()])
    ensemble.save(tmp_path / "ensemble")
    everyone = posterior, ModelPosterior.load(tmp_path / "posterior"), DeepEnsemblePosterior.load(tmp_path / "ensemble")
    x = simulated(Scattered(), 6)
    outside = [x[:, :7], *(cut(x, sizes) for name, sizes in SIZES.items() if name != "full")]
    outside += [cut(x, FULL, missing=0.1), torch.cat([x, x], 1), torch.cat([x, x], 2)]
    for who in everyone:
        for each in outside:
            for call in (who.probs, who.log_probs, lambda x, who=who: who.log_bayes_factor(x, 1, 0)):
                found = caught(call, each)
                assert len(found) == 1 and found[0].category is RuntimeWarning and found[0].filename == __file__
                assert "groups" in str(found[0].message) or "observations per group" in str(found[0].message)
        padded = torch.cat([x, torch.zeros(6, 3, OBSERVATIONS, 2)], 1)
        for each in (x, x[0], x.double(), padded, simulated(Scattered(), 2000)):
            assert caught(who.probs, each) == [] and caught(who.sample, (3,), each) == []
    message = str(caught(posterior.probs, cut(x, [20] * 7 + [1]))[0].message)
    assert "observations per group: 1 to 20, trained on 20" in message and "vary_sizes=True" in message


def test_reports_warn_once_and_say_it(fixed):
    posterior, family = fixed.build_posterior(), Scattered()
    ensemble = DeepEnsemblePosterior([posterior, trained(family, 1000, 1, False, 3).build_posterior()])
    reference, x = simulated(family, 400), simulated(family, 4)
    x[1:2] = cut(x[1:2], [20] * 7 + [1])
    for who in (posterior, ensemble):
        with pytest.warns(RuntimeWarning, match="leave the range") as found:
            report = model_report(who, x, reference, seed=0)
        assert len(found) == 1 and report.outside.tolist() == [False, True, False, False]
        lines = str(report).splitlines()
        assert [("SIZE NOT TRAINED" in line) for line in lines[2:6]] == [False, True, False, False]
        assert any("observations per group: 1 to 20, trained on 20" in line for line in lines[6:])
        assert caught(model_report, who, x[2:], reference, seed=0) == []
        assert "SIZE" not in str(model_report(who, x[2:], reference, seed=0))
    for call, arguments in ((simulation_gap, (ensemble, x, reference)), (atypicality, (posterior, x, reference))):
        assert len(caught(call, *arguments, seed=0)) == 1
        assert caught(call, arguments[0], x[2:], reference, seed=0) == []
    assert len(caught(data_sensitivity, posterior, x[0], num_bootstrap=20, num_missing=5, seed=0)) == 1
    with pytest.warns(RuntimeWarning):
        assert "trained on 20" in str(data_sensitivity(posterior, x[0], num_bootstrap=20, num_missing=5, seed=0))
        assert "trained on 20" in str(simulation_gap(ensemble, x, reference, seed=0))


def test_with_varying_sizes_reports_are_silent(varied):
    posterior, family = varied.build_posterior(), Scattered()
    reference, x = simulated(family, 400), cut(simulated(family, 4), [20] * 7 + [1])
    assert caught(model_report, posterior, x, reference, seed=0) == []
    assert caught(data_sensitivity, posterior, x[0], num_bootstrap=20, num_missing=5, seed=0) == []


@pytest.mark.filterwarnings("ignore:the data leave the range")
def test_typicality_is_of_sizes_as_trained_and_of_sizes_as_observed(fixed):
    """Single trials are odd beside full sets, and not beside single trials; large values are odd beside both."""
    posterior, family = fixed.build_posterior(), Scattered()
    reference = simulated(family, 1200)
    x = cut(simulated(family, 60), [1] * 8)
    large = torch.cat([x[:4, ..., :1] * 30, x[:4, ..., 1:]], -1)
    found = atypicality(posterior, torch.cat([x, large]), reference, seed=0)
    assert (found.p_value[:60] < 0.05).double().mean() > 0.5
    assert (found.same_size_p_value[:60] < 0.05).sum() <= 3 + 4 * (60 * 0.05 * 0.95) ** 0.5
    assert (found.same_size_p_value[60:] < 0.02).all()
    typical = atypicality(posterior, simulated(family, 20), reference, seed=0)
    assert torch.equal(typical.p_value, typical.same_size_p_value)
    small = atypicality(posterior, torch.cat([x[:3], x[:3]], 2), cut(reference, [1] * 8), seed=0)
    assert small.same_size_p_value.isnan().all() or torch.equal(small.same_size_p_value, small.p_value)


@pytest.mark.filterwarnings("ignore:the net tells the models no better apart")
def test_it_is_the_default_only_for_sets_of_one_size():
    family = Scattered()
    x, index = simulated(family, 200), torch.arange(200) % 2
    ragged = x * (torch.rand(200, GROUPS, OBSERVATIONS, 1) < 0.9)
    for data, net, varies in (
        (x, HierarchicalEmbedding(1), True),
        (ragged, HierarchicalEmbedding(1), False),
        (x, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * GROUPS * OBSERVATIONS, 3)), False),
    ):
        comparison = ModelComparison(2, net, show_progress_bars=False).append_simulations(index, data)
        comparison.train(max_num_epochs=1, max_restarts=0, seed=0)
        assert comparison.varied_sizes == varies
    with pytest.raises(ValueError, match="vary_sizes=True needs a HierarchicalEmbedding"):
        comparison.train(max_num_epochs=1, vary_sizes=True)


@pytest.mark.slow
def test_varying_costs_little_at_the_full_size(varied):
    """A net for all sizes beside one for full sets alone, as long trained: less than .01 nats apart."""
    family = Scattered()
    x = simulated(family, 2000)
    alone = trained(family, vary_sizes=False, epochs=10)
    both = [divergence(trainer.build_posterior(), family, x) for trainer in (varied, alone)]
    assert (both[0] - both[1]).mean() < 0.01


@pytest.mark.filterwarnings("ignore:the net tells the models no better apart")
def test_the_progress_bar_says_so(capsys):
    for vary in (True, False):
        x, index = simulated(Scattered(), 100), torch.arange(100) % 2
        comparison = ModelComparison(2, HierarchicalEmbedding(1)).append_simulations(index, x)
        comparison.train(max_num_epochs=1, max_restarts=0, seed=0, vary_sizes=vary)
        assert ("on random sizes" in capsys.readouterr().err) == vary


# ---- Bayes factors between two losing models


class Apart:
    """Three normal models with means 0, 1 and far away: the first two lose wherever the third wins."""

    num_models = 3

    def __init__(self):
        self.means = torch.tensor([0.0, 1.0, 30.0])

    def simulate(self, num):
        index = torch.arange(num) % 3
        return index, torch.randn(num, 2) + self.means[index].unsqueeze(-1)


@pytest.fixture(scope="module")
def apart():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.SiLU(), torch.nn.Linear(32, 8))
    comparison = ModelComparison(3, net, show_progress_bars=False).append_simulations(*Apart().simulate(3000))
    comparison.train(max_num_epochs=8, seed=0)
    return comparison.build_posterior()


def test_the_order_of_losing_models_is_not_claimed(apart):
    lost, near = torch.full((4, 2), 30.0), torch.zeros(4, 2)
    for who in (apart, DeepEnsemblePosterior([apart, apart])):
        with pytest.warns(
            RuntimeWarning, match=r"models 0 and 1 both have less than 0\.001 .* 4 of 8 .*PosteriorEvidence"
        ) as w:
            who.log_bayes_factor(torch.cat([lost, near]), 0, 1)
        assert len(w) == 1 and w[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            who.log_bayes_factor(near, 0, 1)
            who.log_bayes_factor(lost, 0, 2)  # one of them wins
    report = model_report(apart, torch.cat([lost[:1], near[:1]]), Apart().simulate(300)[1], seed=0)
    lines = str(report).splitlines()
    assert lines[2].count("<0.001") == 2 and lines[3].count("<0.001") == 0
    assert "PosteriorEvidence" in str(report)
    assert math.isclose(float(report.probs[0].sum()), 1, rel_tol=1e-6)


def test_what_a_classifier_knows_of_losing_models_is_a_bound():
    """Means 0, 2 and 4, eight observations: at x near 2 both others lose, with |log BF| up to 9 exactly known.

    The bound p < 0.001 holds, up to a factor of 10. The Bayes factor is off by nats, and each of them is warned of.
    """
    means, num = torch.tensor([0.0, 2.0, 4.0]), 6000
    index = torch.arange(num) % 3
    x = torch.randn(num, 8) + means[index].unsqueeze(-1)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.SiLU(), torch.nn.Linear(32, 8))
    comparison = ModelComparison(3, net, show_progress_bars=False).append_simulations(index, x)
    comparison.train(max_num_epochs=12, seed=0)
    posterior, x = comparison.build_posterior(), torch.randn(1000, 8) + 2
    exact = torch.distributions.Normal(means.unsqueeze(-1), 1.0).log_prob(x.unsqueeze(1)).sum(-1).double()
    lost = posterior.log_probs(x)[:, [0, 2]].amax(-1) < math.log(1e-3)
    assert float(lost.double().mean()) > 0.5
    assert float(exact.log_softmax(-1)[lost][:, [0, 2]].max()) < math.log(1e-2)
    with pytest.warns(RuntimeWarning, match=f"for {int(lost.sum())} of 1000 data sets"):
        found = posterior.log_bayes_factor(x, 2, 0)
    size = exact[:, 2] - exact[:, 0]
    recovery = evidence_recovery(found, size, largest_log_prob=posterior.log_probs(x)[:, [0, 2]].amax(-1))
    assert recovery.losing[0] == int(lost.sum()) and recovery.losing[1] > 1
