"""What the tests of any input share: inputs, what counts as a refusal, and what counts as a word of warning."""

import datetime
import decimal
import math
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, Normal, constraints

from sbi_bed.simulators import DesignSimulator

DTYPES = [torch.float32, torch.float64]
SEEDS = st.integers(0, 2**32 - 1)
NUMBERS = st.floats(-100, 100, width=32)
NOT_NUMBERS = ["seven", None, 1j, object(), datetime.date(2026, 1, 1), {"a": 1.0}, {1.0}, np.datetime64("2026-01-01")]
NOT_FINITE = [math.nan, math.inf, -math.inf, np.float32("nan")]
CONTAINERS = ["list", "tuple", "tensor", "float64", "float32", "big-endian", "read-only", "objects", "pandas"]


def refused(function, *names):
    """`function()` raises one ValueError or TypeError that says one of `names`."""
    with listening(*names), pytest.raises((ValueError, TypeError)) as caught:
        note(f"not refused: {function()}")
    assert any(name in str(caught.value) for name in names), f"{caught.value} names none of {names}"


@contextmanager
def listening(*names):
    """Collects the texts of warnings. Each must come from the package, point at this test, and say one of `names`.

    Everything that a check does not listen to is a failure (`run_cases`).
    """
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        texts += [str(each.message) for each in caught]
    for each in caught:
        text = f"{each.category.__name__}: {each.message} ({each.filename}, line {each.lineno})"
        assert Path(each.filename).is_relative_to(Path(__file__).parent), f"not the package's own, or not here: {text}"
        assert any(name in str(each.message) for name in names), f"names none of {names}: {text}"


def in_container(values, container):
    """The same numbers as another library, or another precision, has them."""
    if container == "pandas":
        pandas = pytest.importorskip("pandas")
        return pandas.Series(values, index=range(7, 7 + len(values)))

    def read_only(v):
        array = np.array(v, dtype=np.float64)
        array.flags.writeable = False
        return array

    makers = {
        "list": list,
        "tuple": tuple,
        "tensor": torch.tensor,
        "float64": lambda v: np.array(v, dtype=np.float64),
        "float32": lambda v: np.array(v, dtype=np.float32),
        "big-endian": lambda v: np.array(v, dtype=">f8"),
        "read-only": read_only,
        "objects": lambda v: np.array([decimal.Decimal(each) for each in v], dtype=object),
    }
    return makers[container](values)


def line(dim, dtype, noise_sd=0.5, designs=None):
    """y ~ N(θ · ξ, σ²), θ ~ N(0, I), for ξ in a box, or among some designs."""

    def log_likelihood(theta, design, outcome):
        return Normal((theta * design).sum(-1), noise_sd).log_prob(outcome.squeeze(-1))

    def simulate(theta, design):
        mean = (theta * design).sum(-1, keepdim=True)
        return mean + noise_sd * torch.randn_like(mean)

    prior = MultivariateNormal(torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype))
    box = constraints.interval(-torch.ones(dim, dtype=dtype), torch.ones(dim, dtype=dtype))
    return DesignSimulator(prior, simulate, box if designs is None else designs, log_likelihood, reparameterized=True)


def exact_line(designs, outcomes, noise_sd=0.5):
    """Mean, covariance and log evidence, float64."""
    designs, outcomes = designs.double(), outcomes.double().squeeze(-1)
    covariance = torch.linalg.inv(torch.eye(designs.shape[-1]).double() + designs.T @ designs / noise_sd**2)
    mean = covariance @ designs.T @ outcomes / noise_sd**2
    total = designs @ designs.T + noise_sd**2 * torch.eye(len(designs)).double()
    if not len(designs):
        return mean, covariance, 0.0
    together = MultivariateNormal(torch.zeros(len(designs)).double(), total)
    return mean, covariance, float(together.log_prob(outcomes))


def run_cases(check, cases, num):
    """Run a check on `num` cases; on failure hypothesis prints the smallest case it found."""

    @settings(
        max_examples=num,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def each(case):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check(case)
        assert not caught, f"a warning that the check does not know: {caught[0]}"

    each()


def few_and_many(checks):
    """Two tests of checks {check: (cases, number in the default tests, number in the slow ones)}."""
    parametrized = pytest.mark.parametrize("check", checks, ids=lambda check: check.__name__.removeprefix("check_"))

    @parametrized
    def test_a_few_cases(check):
        run_cases(check, checks[check][0], checks[check][1])

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    @parametrized
    def test_many_cases(check):
        run_cases(check, checks[check][0], checks[check][2])

    return test_a_few_cases, test_many_cases
