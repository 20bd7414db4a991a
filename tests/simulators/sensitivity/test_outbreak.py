"""Reported cases of an outbreak: against the equations one by one, the noise's moments, and scaled priors."""

import math

import pytest
import torch
from scipy import stats

from sbi_bed.simulators import CovidOutbreak, PowerScaledPrior


def by_hand(transmission, recovery, delay, infected, num_days, population):
    susceptible, new = population - infected, [infected]
    while len(new) < num_days + round(delay):
        cases = transmission * susceptible * infected / population
        susceptible, infected = susceptible - cases, infected + cases - recovery * infected
        new.append(cases)
    return new[round(delay) :][:num_days]


@pytest.mark.parametrize("population", [83e6, 500.0])
def test_expected_counts_follow_the_equations(population):
    outbreak = CovidOutbreak(10, population)
    theta = torch.tensor([[0.4, 0.125, 8.3, 20.0, 5.0], [0.2, 0.5, 2.6, 100.0, 1.0]], dtype=torch.float64)
    found = outbreak.expected_counts(theta)
    for row, (rate, recovery, delay, infected, _) in zip(found, theta.tolist(), strict=True):
        expected = by_hand(rate, recovery, delay, infected, 10, population)
        torch.testing.assert_close(row, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert torch.equal(outbreak.expected_counts(theta[1]), found[1])  # whatever the delays in the batch


def test_noise_is_negative_binomial():
    outbreak, theta = CovidOutbreak(3), torch.tensor([0.4, 0.125, 8.0, 20.0, 5.0])
    mean = outbreak.expected_counts(theta)
    counts = outbreak.counts(theta.expand(40_000, 5))
    stderr = (mean + mean.square() / 5).sqrt() / math.sqrt(len(counts))
    assert bool(((counts.mean(0) - mean).abs() < 4.5 * stderr).all())
    torch.testing.assert_close(counts.var(0), mean + mean.square() / 5, rtol=0.06, atol=0)
    values = counts[:, 2].long()
    law = stats.nbinom(5, 5 / (5 + float(mean[2])))
    assert float((values == 0).double().mean()) == pytest.approx(
        law.pmf(0), abs=4.5 * (law.pmf(0) / 40_000) ** 0.5 + 1e-4
    )
    assert float((values <= int(mean[2])).double().mean()) == pytest.approx(law.cdf(int(mean[2])), abs=0.012)


def test_the_prior_and_its_powers():
    outbreak = CovidOutbreak()
    theta = outbreak.prior.sample((20_000,)).double()
    laws = [
        stats.lognorm(0.5, scale=0.4),
        stats.lognorm(0.2, scale=1 / 8),
        stats.lognorm(0.2, scale=8),
        stats.gamma(2, scale=20),
        stats.expon(scale=5),
    ]
    assert min(stats.kstest(column, law.cdf).pvalue for column, law in zip(theta.T, laws, strict=True)) > 1e-3
    scaled = PowerScaledPrior(outbreak.prior)
    assert scaled.num_gammas == 5
    x = outbreak(scaled.condition(torch.full((500, 5), 0.5)).sample())
    assert x.shape == (500, 14) and bool(torch.isfinite(x).all()) and bool((x >= 0).all())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: CovidOutbreak(population=0.0), "population"),
        (lambda: CovidOutbreak()(torch.ones(3, 4)), "5 values"),
        (lambda: CovidOutbreak()(torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])), r"positive, got 0.0 at index \(3,\)"),
    ],
)
def test_what_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
