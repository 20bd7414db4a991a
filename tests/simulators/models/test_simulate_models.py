"""Simulating competing models: shares as in the prior, padding, seeds."""
# ruff: noqa: NPY002 - the global generator of numpy, which simulators of users draw from

import math
import random

import numpy as np
import pytest
import torch

from sbi_bed.simulators import NestedNormal, simulate_models


def constant(value, shape):
    """A model whose data are one value, so that each row shows which model made it."""
    return lambda num: torch.cat([torch.full((num, *shape, 1), value), torch.ones(num, *shape, 1)], -1)


def test_each_data_set_comes_from_its_model_and_is_padded():
    models = [constant(1.0, (2, 5)), constant(2.0, (4, 3)), constant(3.0, (1, 1))]
    model_index, x = simulate_models(models, 700, batch_size=200, seed=0)
    assert x.shape == (700, 4, 5, 2) and x.dtype == torch.float32
    for j, (groups, observations) in enumerate([(2, 5), (4, 3), (1, 1)]):
        rows = x[model_index == j]
        assert (rows[:, :groups, :observations, 0] == j + 1).all()
        assert rows[..., 1].sum() == len(rows) * groups * observations == rows[..., 0].sum() / (j + 1)


def test_models_are_drawn_from_their_prior():
    models = [constant(float(j), (1, 1)) for j in range(3)]
    model_index, _ = simulate_models(models, 20_000, model_prior=[5.0, 3.0, 2.0], seed=1)
    for share, expected in zip(torch.bincount(model_index) / 20_000, (0.5, 0.3, 0.2), strict=True):
        assert abs(float(share) - expected) < 4 * math.sqrt(expected * (1 - expected) / 20_000)


def test_simulators_that_draw_from_numpy_repeat():
    """numpy's and Python's global generators are seeded for each batch, in any process, and restored."""

    def model(num):
        values = np.random.normal(size=(num, 2, 3, 1)) + random.random()
        return torch.cat([torch.from_numpy(values).float(), torch.ones(num, 2, 3, 1)], -1)

    before = np.random.get_state()[1].tolist()
    _, first = simulate_models([model, model], 50, batch_size=20, seed=3)
    assert np.random.get_state()[1].tolist() == before
    assert torch.equal(first, simulate_models([model, model], 50, batch_size=20, seed=3)[1])
    assert torch.equal(first, simulate_models([model, model], 50, batch_size=20, seed=3, num_workers=2)[1])
    assert not torch.equal(first, simulate_models([model, model], 50, batch_size=20, seed=4)[1])
    assert len(first[..., 0].unique()) == 300


def test_the_same_seed_gives_the_same_data_in_any_process():
    models = NestedNormal(3, 4)
    before = torch.get_rng_state()
    first = simulate_models(models, 50, batch_size=20, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    again = simulate_models(models.models, 50, batch_size=20, seed=3, num_workers=2)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], simulate_models(models, 50, batch_size=20, seed=4)[1])


def test_errors_say_what_is_wrong():
    good = constant(0.0, (2, 2))
    with pytest.raises(ValueError, match="got none"):
        simulate_models([], 10)
    with pytest.raises(TypeError, match=r"models\[1\] must be a callable"):
        simulate_models([good, 3], 10)  # pyright: ignore
    with pytest.raises(ValueError, match="2 positive weights"):
        simulate_models([good, good], 10, model_prior=[1.0, 0.0])
    with pytest.raises(ValueError, match="same levels and features"):
        simulate_models([good, constant(0.0, (2,))], 10, seed=0)
    with pytest.raises(ValueError, match="for num = 10 it returned"):
        simulate_models([lambda num: torch.zeros(3, 2, 2)], 10, seed=0)
    with pytest.raises(ValueError, match=r"data of models\[0\] must be finite"):
        simulate_models([lambda num: good(num) / 0], 10, seed=0)
