"""The stochastic epidemic: its limits, one path for all counts of a run, and the path's slope as gradient."""

import math

import numpy as np
import pytest
import torch
from models import gaussian_prior
from scipy.integrate import solve_ivp
from torch.distributions import MultivariateNormal

from sbi_bed.policies import RandomPolicy
from sbi_bed.simulators import PolicySimulator, StochasticEpidemic, rollout

SIMULATOR = StochasticEpidemic()
EVERY_PATH = {"min_mean_infected": 0.0}


def rates(beta, gamma, count):
    return torch.tensor([beta, gamma]).log().expand(count, 2)


def test_a_large_population_follows_the_differential_equation():
    population, infected, beta, gamma = 10**7, 10**5, 0.5, 0.1
    simulator = StochasticEpidemic(dt=0.05, population=population, initially_infected=infected)
    mean = simulator.start(rates(beta, gamma, 20)).double().mean(0)

    def slope(_, state):
        susceptible, infectious = state
        new = beta * susceptible * infectious / population
        return [-new, new - gamma * infectious]

    start, times = [population - infected, infected], np.linspace(0, 100, 2001)
    exact = torch.as_tensor(solve_ivp(slope, (0, 100), start, t_eval=times, rtol=1e-8).y[1])
    assert float((mean - exact).abs().max()) < 0.01 * float(exact.max())


def test_recoveries_scatter_as_they_should():
    """Without infections dI = −γI dt − √(γI) dW: mean I_0 e^(−γt), variance I_0 e^(−γt) (1 − e^(−γt))."""
    simulator = StochasticEpidemic(initially_infected=400, dt=0.05, **EVERY_PATH)
    infected = simulator.start(rates(1e-9, 0.1, 10_000))[:, 200].double()  # day 10
    left = math.exp(-1.0)
    assert float(infected.mean()) == pytest.approx(400 * left, rel=0.01)
    assert float(infected.var()) == pytest.approx(400 * left * (1 - left), rel=0.06)


def test_infections_scatter_as_they_should():
    """Among many, without recovery, dI = βI dt + √(βI) dW: mean I_0 e^(βt), variance I_0 e^(βt) (e^(βt) − 1)."""
    simulator = StochasticEpidemic(population=10**7, initially_infected=1000, dt=0.05)
    infected = simulator.start(rates(0.2, 1e-9, 10_000))[:, 200].double()
    grown = math.exp(2.0)
    assert float(infected.mean()) == pytest.approx(1000 * grown, rel=0.02)
    assert float(infected.var()) == pytest.approx(1000 * grown * (grown - 1), rel=0.08)


def test_counts_stay_between_nobody_and_everybody_and_extinction_lasts():
    path = StochasticEpidemic(population=20, **EVERY_PATH).start(SIMULATOR.prior.sample((2000,)) + 0.5)
    assert path.min() >= 0 and path.max() <= 20
    ended = (path == 0).float()
    assert (ended.diff(dim=-1) >= 0).all() and 0.1 < ended[:, -1].mean() < 1


def test_outbreaks_take_off_as_asked():
    """Redrawn paths have the law of a path given that it takes off: p(mean I | mean I ≥ 1), for one theta."""
    theta = rates(0.3, 0.12, 20_000)
    every = StochasticEpidemic(**EVERY_PATH).start(theta).mean(-1)
    taken = SIMULATOR.start(theta).mean(-1)
    fails = float((every < 1).float().mean())
    assert 0.1 < fails < 0.5
    assert float((taken < 1).float().mean()) == pytest.approx(fails**11, abs=1e-3)
    expected = every[every >= 1]
    stderr = float(expected.std()) * math.sqrt(1 / len(taken) + 1 / len(expected))
    assert abs(float(taken[taken >= 1].mean() - expected.mean())) < 4 * stderr
    dying = StochasticEpidemic().start(rates(0.01, 1.0, 50))
    assert (dying.mean(-1) < 1).all() and torch.isfinite(dying).all()


def test_all_counts_of_a_run_are_taken_on_one_path():
    theta = SIMULATOR.prior.sample((300,))
    path = SIMULATOR.start(theta)
    times, counts = rollout(SIMULATOR, RandomPolicy(SIMULATOR), theta, 5, state=path)
    on_path = [
        np.interp(t, np.linspace(0, 100, 401), p) for t, p in zip(times[..., 0].numpy(), path.numpy(), strict=True)
    ]
    torch.testing.assert_close(counts[..., 0].double(), torch.as_tensor(np.array(on_path)), rtol=1e-3, atol=2e-2)


def test_single_counts_of_one_theta_come_from_paths_of_their_own():
    theta = SIMULATOR.prior.sample()
    counts = SIMULATOR(theta, torch.full((50, 1), 15.0))
    assert counts.unique().numel() > 40


def test_the_gradient_of_a_count_is_the_slope_of_its_path():
    theta = SIMULATOR.prior.sample((200,))
    path = SIMULATOR.start(theta).double()
    design = 0.25 * (torch.randint(400, (200, 1)).double() + 0.1 + 0.8 * torch.rand(200, 1).double())
    step = 1e-4

    def count(time):
        return SIMULATOR.step(theta, time, path)[0]

    slope = (count(design + step) - count(design - step)) / (2 * step)
    design.requires_grad_()
    (gradient,) = torch.autograd.grad(count(design).sum(), design)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-6)
    assert float((gradient != 0).double().mean()) > 0.7


def test_grid_points_are_met_and_ends_included():
    theta = SIMULATOR.prior.sample((4,))
    path = SIMULATOR.start(theta)
    for index in (0, 1, 200, 400):
        count, after = SIMULATOR.step(theta, torch.tensor([0.25 * index]), path)
        assert torch.equal(count[:, 0], path[:, index]) and after is path


def test_as_an_sbi_simulator_and_under_another_prior():
    prior = MultivariateNormal(torch.tensor([0.8, 0.2]).log(), 0.01 * torch.eye(2))
    simulator = StochasticEpidemic(prior).with_prior(prior)
    x = PolicySimulator(simulator, RandomPolicy(simulator), horizon=4)(prior.sample((2, 3)))
    times, counts = x[..., 0], x[..., 1]
    assert x.shape == (2, 3, 4, 3) and (times.diff() > 0).all() and counts.min() >= 0 and counts.max() <= 500


def test_nets_read_counts_in_logs():
    count = torch.tensor([[0.0], [9.0], [500.0]], requires_grad=True)
    read = SIMULATOR.standardize_outcome(count)
    torch.testing.assert_close(read.detach(), count.detach().log1p())
    assert torch.isfinite(torch.autograd.grad(read.sum(), count)[0]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_of_theta_and_default(dtype):
    torch.set_default_dtype(dtype)
    theta = SIMULATOR.prior.sample((3,)).double()
    assert SIMULATOR.start(theta).dtype == torch.float32
    assert SIMULATOR(theta, torch.full((3, 1), 7.0).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": gaussian_prior(3)}, "must be over 2 values, got 3"),
        ({"dt": 0.3}, "dt must divide 100 days, got 0.3"),
        ({"dt": -1.0}, "dt must divide 100 days"),
        ({"dt": 300.0}, "dt must divide 100 days"),
        ({"population": 1}, "2 initially infected are more than the population, 1"),
        ({"min_mean_infected": -1.0}, "min_mean_infected must be finite and not negative"),
        ({"min_mean_infected": float("nan")}, "min_mean_infected must be finite"),
    ],
)
def test_what_is_no_epidemic_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StochasticEpidemic(**arguments)
