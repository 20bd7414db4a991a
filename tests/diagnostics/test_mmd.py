"""The test of equal distributions: sbi's statistic, a null that is exact, and power."""

import math

import pytest
import torch
from scipy.stats import kstest

from sbi_bed.diagnostics import mmd_test
from sbi_bed.diagnostics.mmd import mmd_squared


def test_the_statistic_is_that_of_sbi():
    from sbi.utils.metrics import unbiased_mmd_squared

    torch.manual_seed(0)
    a, b = torch.randn(20, 3).double(), torch.randn(30, 3).double() + 0.3
    found = mmd_test(a, b, bandwidth=1.3, seed=0)
    assert found.mmd_squared == pytest.approx(float(unbiased_mmd_squared(a, b, scale=1.3)), rel=1e-9)
    assert float(mmd_squared(a, b, 1.3)) == pytest.approx(found.mmd_squared, rel=1e-9)
    pooled = torch.cat([a, b])
    median = torch.pdist(pooled).median()
    assert mmd_test(a, b).bandwidth == pytest.approx(float(median))


@pytest.mark.parametrize("num", [2, 15])
def test_p_values_are_uniform_where_distributions_are_equal(num):
    torch.manual_seed(1)
    samples = [(torch.randn(num, 2).exp(), torch.randn(40, 2).exp()) for _ in range(300)]
    p_values = [mmd_test(a, b, num_permutations=99).p_value for a, b in samples]
    assert kstest(p_values, "uniform").pvalue > 1e-3  # 300 independent ones
    mean = torch.tensor([mmd_test(a, b, bandwidth=1.0, num_permutations=20).mmd_squared for a, b in samples])
    assert abs(mean.mean()) < 4 * mean.std() / math.sqrt(300)  # unbiased


def test_differences_of_place_and_of_spread_are_seen():
    torch.manual_seed(2)
    reference = torch.randn(200, 3)
    for sample in (torch.randn(30, 3) + 1, 3 * torch.randn(30, 3), 0.1 * torch.randn(30, 3)):
        assert mmd_test(sample, reference, seed=0).p_value == pytest.approx(1 / 1001)


def test_the_same_seed_gives_the_same_answer_and_leaves_the_generator_alone():
    a, b = torch.randn(5, 2), torch.randn(20, 2)
    before = torch.get_rng_state()
    assert mmd_test(a, b, seed=3) == mmd_test(a, b, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_identical_points_are_no_difference():
    assert mmd_test(torch.ones(4, 2), torch.ones(6, 2)).p_value == 1


def test_errors():
    sample, reference = torch.randn(5, 2), torch.randn(10, 2)
    for a, b in ((sample[:1], reference), (sample, reference[:, :1]), (sample[0], reference)):
        with pytest.raises(ValueError, match="at least 2 rows each and the same columns"):
            mmd_test(a, b)
    with pytest.raises(ValueError, match="bandwidth must be positive"):
        mmd_test(sample, reference, bandwidth=0.0)
    with pytest.raises(ValueError, match="reference must be finite, got nan"):
        mmd_test(sample, reference * math.nan)
    with pytest.raises(ValueError, match="num_permutations must be at least 20"):
        mmd_test(sample, reference, num_permutations=5)
