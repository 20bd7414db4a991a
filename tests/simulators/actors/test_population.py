"""People of a population: the law they are drawn from, sizes, order, and that a net recovers it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn

from sbi_bed.neural_nets import HistoryEmbedding, PopulationEmbedding, ResponseEmbedding
from sbi_bed.simulators import BayesianActor, HyperbolicDiscounting, OptimalActor, Population, QuadraticCost
from sbi_bed.utils import NoTracker
from sbi_bed.utils.quasi_random import quasi_random_draws


@pytest.fixture(scope="module")
def simulator():
    return BayesianActor(OptimalActor(QuadraticCost()))


@pytest.fixture(scope="module")
def population(simulator):
    return Population(simulator, num_persons=(3, 8), num_trials=(10, 20))


def test_people_follow_the_population(population, simulator):
    torch.manual_seed(0)
    phi = population.prior.sample((2,))
    theta = population.people(phi, 20_000)
    assert simulator.prior.support.check(theta).all()
    free = population.transform(theta.flatten(0, 1)).unflatten(0, (2, -1)).double()
    mean, log_sd = phi.double().chunk(2, -1)
    assert ((free.mean(1) - mean) / log_sd.exp()).abs().max() < 4 / 20_000**0.5
    assert (free.std(1).log() - log_sd).abs().max() < 4 / 40_000**0.5


def test_hyper_prior_has_the_width_of_the_prior(population, simulator):
    free = population.transform(quasi_random_draws(simulator.prior, 4096))
    law = population.prior.base_dist
    torch.testing.assert_close(law.loc[:3], free.mean(0))
    torch.testing.assert_close(law.scale[:3], free.std(0))
    torch.testing.assert_close(law.loc[3:].exp(), 0.4 * free.std(0))


def test_sizes_seed_and_mask(population):
    phi, x = population.sample(50, seed=0)
    assert phi.shape == (50, 6) and x.shape == (50, *population.x_shape) == (50, 8, 20, 3)
    people, trials = (x[..., -1].amax(-1) > 0).sum(-1), x[..., -1].sum(-1)
    assert (people.min(), people.max()) == (3, 8)
    assert (trials[trials > 0].min(), trials.max()) == (10, 20)
    assert (x[x[..., -1] == 0] == 0).all() and torch.isfinite(x).all()
    for again, first in zip(population.sample(50, seed=0), (phi, x), strict=True):
        assert torch.equal(again, first)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(0, 3)), st.tuples(st.integers(1, 5), st.integers(0, 4)), st.integers(0, 9)
)
def test_any_sizes_are_packed_behind_their_mask(simulator, persons, trials, seed):
    """Between the least and the most people and trials, real ones first, the mask 0 or 1, and nothing behind it."""
    (least, most), (short, long) = ((low, low + more) for low, more in (persons, trials))
    population = Population(simulator, num_persons=(least, most), num_trials=(short, long))
    _, x = population.sample(6, seed=seed)
    mask = x[..., -1]
    assert x.shape == (6, most, long, 3) and ((mask == 0) | (mask == 1)).all() and (x[mask == 0] == 0).all()
    assert (mask.diff(dim=-1) <= 0).all() and (mask.amax(-1).diff(dim=-1) <= 0).all()
    people, numbers = mask.amax(-1).sum(-1), mask.sum(-1)
    assert ((people >= least) & (people <= most)).all() and ((numbers == 0) | (numbers >= short)).all()
    assert (x[..., 1][mask == 1] > 0).all()


def test_summary_is_in_the_units_of_theta(population):
    phi = population.prior.sample((4,))
    summary = population.summary_of(phi)
    assert summary["median"].shape == (4, 3)
    assert (summary["low"] < summary["median"]).all() and (summary["median"] < summary["high"]).all()
    back = population.transform(summary["median"])
    torch.testing.assert_close(back, phi[:, :3], rtol=1e-3, atol=1e-3)


def test_order_and_padding_change_nothing(population, simulator):
    _, x = population.sample(6, seed=1)
    torch.manual_seed(0)
    net = PopulationEmbedding(ResponseEmbedding(simulator), 16).fit_scale(x).eval()
    expected = net(x)
    shuffled = x[:, torch.randperm(8)][:, :, torch.randperm(20)]
    torch.testing.assert_close(net(shuffled), expected, rtol=1e-4, atol=1e-4)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 5, 0, 2))
    torch.testing.assert_close(net(padded), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net(x[2:3]), expected[2:3], rtol=1e-4, atol=1e-4)
    x[0, 0, 0, 1] *= 3
    assert (net(x)[0] - expected[0]).abs().max() > 1e-3


def test_any_experiment_has_a_population():
    simulator = HyperbolicDiscounting()
    population = Population(simulator, num_persons=4, num_trials=6)
    assert population.names == ("mean of theta_1", "mean of theta_2", "log sd of theta_1", "log sd of theta_2")
    _, x = population.sample(3, seed=0)
    assert PopulationEmbedding(HistoryEmbedding(simulator, 8, 8), 8)(x).shape == (3, 32)


def test_recovers_populations_better_than_the_prior(simulator):
    population = Population(simulator, num_persons=12, num_trials=30)
    phi, x = population.sample(1200, seed=0)
    torch.manual_seed(0)
    net = PopulationEmbedding(ResponseEmbedding(simulator, 2, 4), 10, hidden_dim=32).fit_scale(x[:200])
    build = posterior_nn("mdn", embedding_net=net, z_score_x="none", num_components=1)
    inference = NPE(population.prior, density_estimator=build, show_progress_bars=False, tracker=NoTracker())
    inference.append_simulations(phi, x).train(learning_rate=5e-3, training_batch_size=50, max_num_epochs=8)
    phi, x = population.sample(100, seed=1)
    with torch.no_grad():
        gain = inference._neural_net.log_prob(phi.unsqueeze(0), x)[0] - population.prior.log_prob(phi)
    assert gain.mean() - 3 * gain.std() / 10 > 1.0  # nats; a net that ignores x has at most 0


def test_refusals(population):
    with pytest.raises(TypeError, match="DesignSimulator of one person"):
        Population(QuadraticCost())
    with pytest.raises(ValueError, match="num_persons"):
        Population(population.simulator, num_persons=0)
    with pytest.raises(ValueError, match=r"phi must have shape \(num, 6\)"):
        population(torch.zeros(6))
    with pytest.raises(ValueError, match="populations must have shape"):
        PopulationEmbedding(torch.nn.Identity(), 3)(torch.zeros(4, 5, 3))
