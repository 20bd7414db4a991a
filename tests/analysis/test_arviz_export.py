"""Export to ArviZ: the numbers that went in, and diagnoses of sensitivity that are those of exact posteriors."""

import builtins

import numpy as np
import pytest
import torch
from sbi.inference import MCMCPosterior
from sbi.utils import BoxUniform, MultipleIndependent
from torch.distributions import Exponential, Independent, MultivariateNormal, Normal

from sbi_bed.analysis import to_arviz
from sbi_bed.inference import DeepEnsemblePosterior, likelihood_posterior
from sbi_bed.simulators import HyperbolicDiscounting
from sbi_bed.utils import pack_history


class Exact:
    """theta ~ N(0, s_0²), x ~ N(theta, s²), three parameters; density of the posterior plus a constant."""

    def __init__(self, prior_sd, sd, constant=0.0):
        self.prior, self.sd, self.constant = (
            Independent(Normal(torch.zeros(3), prior_sd * torch.ones(3)), 1),
            sd,
            constant,
        )
        self.prior_sd = prior_sd

    def _posterior(self, x):
        precision = self.prior_sd**-2 + self.sd**-2
        return Independent(Normal(x.reshape(3) / self.sd**2 / precision, precision**-0.5 * torch.ones(3)), 1)

    def sample(self, sample_shape, x=None):
        return self._posterior(x).sample(sample_shape)

    def log_prob(self, theta, x=None):
        return self._posterior(x).log_prob(theta) + self.constant


def flat(group, name):
    return torch.as_tensor(group[name].values).flatten()


def test_it_is_an_optional_extra(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "arviz":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'to_arviz needs ArviZ: install it with pip install "sbi_bed\[arviz\]"'):
        to_arviz(Exact(1.0, 1.0), torch.zeros(3))


def test_log_likelihood_is_exact_up_to_a_constant():
    pytest.importorskip("arviz")
    x = torch.tensor([1.0, 0.0, -1.0])
    names = ["slope", "offset", "noise"]
    data = to_arviz(Exact(2.0, 0.5, constant=3.0), x, 400, parameter_names=names, seed=0)
    assert dict(data.posterior.sizes) == {"chain": 4, "draw": 100} and list(data.posterior.data_vars) == names
    theta = torch.stack([flat(data.posterior, name) for name in names], -1)
    exact = Normal(theta, 0.5).log_prob(x).sum(-1)
    difference = flat(data.log_likelihood, "x") - exact
    assert difference.std() < 1e-5 * exact.abs().max()
    log_prior = sum(flat(data.log_prior, name) for name in names)
    torch.testing.assert_close(log_prior, Normal(0.0, 2.0).log_prob(theta).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        flat(data.log_prior, "slope"), Normal(0.0, 2.0).log_prob(theta[:, 0]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        flat(data.sample_stats, "lp"), log_prior + flat(data.log_likelihood, "x"), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(data.observed_data["x"].values, x.numpy())
    again = to_arviz(Exact(2.0, 0.5), x, 400, parameter_names=names, seed=0)
    np.testing.assert_array_equal(again.posterior["slope"].values, data.posterior["slope"].values)


def test_a_likelihood_posterior_has_its_exact_likelihood():
    pytest.importorskip("arviz")
    simulator = HyperbolicDiscounting()
    theta = simulator.prior.sample((1,))
    designs = torch.stack([simulator.design_space.sample((1,)) for _ in range(4)], 1)
    outcomes = simulator(theta.unsqueeze(1), designs)
    history = pack_history(designs, outcomes)[0]
    posterior = likelihood_posterior(simulator, history, sample_with="importance")
    data = to_arviz(posterior, num_samples=40, seed=0)
    draws = torch.stack([flat(data.posterior, name) for name in data.posterior.data_vars], -1)
    expected = sum(simulator.log_likelihood(draws, d, o) for d, o in zip(designs[0], outcomes[0], strict=True))
    torch.testing.assert_close(flat(data.log_likelihood, "x"), expected.double(), rtol=1e-4, atol=1e-4)


def test_chains_stay_chains():
    pytest.importorskip("arviz")
    prior = BoxUniform(-5 * torch.ones(1), 5 * torch.ones(1))

    class Chains(MCMCPosterior):
        """Each chain stays at a place of its own."""

        def __init__(self):
            self.num_chains, self.prior = 2, prior

        default_x = torch.ones(1)

        def sample(self, sample_shape, x=None, show_progress_bars=True):
            return torch.arange(2.0).repeat_interleave(sample_shape[0] // 2).unsqueeze(-1)

        def potential(self, theta, x=None):
            return -0.5 * theta.square().squeeze(-1)

    data = to_arviz(Chains(), num_samples=10)
    assert data.posterior["theta_0"].values.tolist() == [[0.0] * 5, [1.0] * 5]
    with pytest.raises(ValueError, match="num_samples must be a multiple of the 2 chains, got 11"):
        to_arviz(Chains(), num_samples=11)


def test_priors_that_are_products_come_apart_and_others_stay_together():
    pytest.importorskip("arviz")
    joint = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    product = MultipleIndependent([Normal(torch.zeros(1), torch.ones(1)), Exponential(torch.ones(1))])

    class Member:
        def __init__(self, prior):
            self.prior = prior

        def sample(self, sample_shape, x=None):
            return torch.rand(*sample_shape, 2)

        def log_prob(self, theta, x=None):
            return -theta.sum(-1)

    data = to_arviz(DeepEnsemblePosterior([Member(product), Member(product)]), num_samples=40)
    theta = torch.stack([flat(data.posterior, f"theta_{j}") for j in range(2)], -1)
    assert list(data.log_prior.data_vars) == ["theta_0", "theta_1"]
    torch.testing.assert_close(flat(data.log_prior, "theta_1"), -theta[:, 1])
    together = to_arviz(Member(joint), num_samples=40)
    theta = torch.stack([flat(together.posterior, f"theta_{j}") for j in range(2)], -1).float()
    torch.testing.assert_close(flat(together.log_prior, "joint").float(), joint.log_prob(theta))


def test_arviz_tells_a_strong_prior_from_a_weak_one():
    arviz = pytest.importorskip("arviz")
    strong = arviz.psens(to_arviz(Exact(0.3, 1.0), torch.zeros(3), 4000, seed=0))
    weak = arviz.psens(to_arviz(Exact(10.0, 0.3), torch.zeros(3), 4000, seed=0))
    assert float(strong["theta_0"]) > 0.05 and float(weak["theta_0"]) < 0.01


@pytest.mark.parametrize(
    ("prior_sd", "sd", "x", "diagnosis"),
    [(0.3, 1.0, 0.1, "strong prior"), (1.0, 1.0, 4.0, "conflict"), (10.0, 0.3, 1.0, "✓")],
)
def test_psense_summary_reads_it(prior_sd, sd, x, diagnosis):
    pytest.importorskip("arviz")
    pytest.importorskip("arviz_base")
    psense_summary = pytest.importorskip("arviz_stats").psense_summary
    table = psense_summary(to_arviz(Exact(prior_sd, sd), x * torch.ones(3), 4000, seed=0))
    assert table["diagnosis"].str.contains(diagnosis).all()


def test_errors():
    pytest.importorskip("arviz")
    with pytest.raises(ValueError, match="parameter_names must be 3 names"):
        to_arviz(Exact(1.0, 1.0), torch.zeros(3), 8, parameter_names=["a"])
    with pytest.raises(TypeError, match="needs a posterior with a prior and a density, got Normal"):
        to_arviz(Normal(0.0, 1.0))
