"""Regression statistics of stimuli and responses: by numpy's fit, invariant, and right under padding."""

import numpy as np
import pytest
import torch

from sbi_bed.neural_nets import ResponseEmbedding
from sbi_bed.simulators import BayesianActor, HyperbolicDiscounting, OptimalActor, QuadraticCost
from sbi_bed.utils import pack_history


@pytest.fixture(scope="module")
def simulator():
    return BayesianActor(OptimalActor(QuadraticCost()))


@pytest.fixture(scope="module")
def embedding(simulator):
    torch.manual_seed(0)
    return ResponseEmbedding(simulator).eval()


def observe(simulator, num_people, num_trials):
    torch.manual_seed(1)
    stimuli = simulator.design_space.sample((num_people, num_trials))
    return pack_history(stimuli, simulator(simulator.prior.sample((num_people, 1)), stimuli))


def test_statistics_are_those_of_a_regression(simulator, embedding):
    x = observe(simulator, 3, 40)
    found = embedding.statistics(x)
    for row, history in zip(found, x.double().log().numpy(), strict=True):
        slope, level = np.polyfit(history[:, 0], history[:, 1], 1)
        rest = np.var(history[:, 1] - slope * history[:, 0] - level)
        np.testing.assert_allclose(row[[0, 2, 3]], [history[:, 0].mean(), slope, level], atol=1e-3)
        assert float(row[6].exp()) == pytest.approx(rest, rel=0.02, abs=2e-6)


def test_order_padding_and_batch_change_nothing(simulator, embedding):
    x = observe(simulator, 4, 20)
    whole = embedding(x)
    torch.testing.assert_close(embedding(x[:, torch.randperm(20)]), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedding(torch.nn.functional.pad(x, (0, 0, 0, 9))), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedding(x[2:3]), whole[2:3], rtol=1e-4, atol=1e-4)
    assert torch.isfinite(embedding(torch.zeros(2, 20, 3))).all()  # no trials at all


def test_errors(simulator, embedding):
    with pytest.raises(TypeError, match="built for a BayesianActor"):
        ResponseEmbedding(HyperbolicDiscounting())
    with pytest.raises(ValueError, match=r"histories must have shape \(..., trials, 3\)"):
        embedding(torch.zeros(2, 5, 4))
