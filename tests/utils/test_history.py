"""Packing: what goes in comes out, whatever the lengths, and what is not a history is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sbi_bed.utils import pack_history, unpack_history
from sbi_bed.utils.history import append_trial, check_history, continue_history, empty_history, split_history

DTYPES = {np.float32: torch.float32, np.float64: torch.float64}


def arrays(draw, dtype, shape):
    width = 8 * np.dtype(dtype).itemsize
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=width)
    return torch.from_numpy(draw(hnp.arrays(dtype, shape, elements=numbers)))


@st.composite
def ragged_experiments(draw):
    dtype = draw(st.sampled_from(list(DTYPES)))
    design_dim, outcome_dim = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    designs = [arrays(draw, dtype, (n, design_dim)) for n in lengths]
    outcomes = [arrays(draw, dtype, (n, outcome_dim)) for n in lengths]
    return designs, outcomes, max(lengths) + draw(st.integers(0, 3)), DTYPES[dtype]


@st.composite
def equal_experiments(draw):
    dtype = draw(st.sampled_from(list(DTYPES)))
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    num_trials = draw(st.integers(0, 4))
    design_dim, outcome_dim = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    designs = arrays(draw, dtype, (*batch, num_trials, design_dim))
    outcomes = arrays(draw, dtype, (*batch, num_trials, outcome_dim))
    return designs, outcomes, num_trials + draw(st.integers(0, 3))


@settings(max_examples=100, deadline=None)
@given(ragged_experiments())
def test_ragged_lists_come_back_exactly(experiments):
    designs, outcomes, horizon, dtype = experiments
    history = pack_history(designs, outcomes, horizon)
    assert history.shape == (len(designs), horizon, designs[0].shape[-1] + outcomes[0].shape[-1] + 1)
    assert history.dtype == dtype
    assert history[..., -1].sum(-1).tolist() == [len(d) for d in designs]
    for row, trials in zip(history, designs, strict=True):
        assert (row[len(trials) :] == 0).all()
    back_designs, back_outcomes = unpack_history(history, designs[0].shape[-1])
    assert len(back_designs) == len(designs)
    for packed, given_ in zip((*back_designs, *back_outcomes), (*designs, *outcomes), strict=True):
        assert packed.dtype == given_.dtype
        assert torch.equal(packed, given_)


@settings(max_examples=100, deadline=None)
@given(equal_experiments())
def test_tensors_come_back_exactly(experiments):
    designs, outcomes, horizon = experiments
    history = pack_history(designs, outcomes, horizon)
    assert history.shape[-2] == horizon
    back_designs, back_outcomes = unpack_history(history, designs.shape[-1])
    assert torch.equal(back_designs, designs) and back_designs.dtype == designs.dtype
    assert torch.equal(back_outcomes, outcomes) and back_outcomes.dtype == outcomes.dtype


@settings(max_examples=50, deadline=None)
@given(equal_experiments())
def test_appending_trial_by_trial_is_packing(experiments):
    designs, outcomes, _ = experiments
    history = empty_history(designs.shape[-1], outcomes.shape[-1], designs.shape[:-2]).to(designs)
    for design, outcome in zip(designs.unbind(-2), outcomes.unbind(-2), strict=True):
        history = append_trial(history, design, outcome)
    assert torch.equal(history, pack_history(designs, outcomes))


def test_lists_of_arrays_and_of_lists_are_packed_as_tensors_are():
    designs, outcomes = [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]], [[[0.0]], [[1.0], [0.0]]]
    expected = pack_history([torch.tensor(d) for d in designs], [torch.tensor(o) for o in outcomes])
    assert torch.equal(pack_history(designs, outcomes), expected)
    arrays_ = [np.array(d, dtype=np.float32) for d in designs], [np.array(o, dtype=np.float32) for o in outcomes]
    assert torch.equal(pack_history(*arrays_), expected)
    assert torch.equal(
        pack_history(np.ones((3, 2)), np.zeros((3, 1))), pack_history(torch.ones(3, 2), torch.zeros(3, 1)).double()
    )


def test_padding_defaults_to_the_longest():
    assert pack_history([torch.ones(1, 1), torch.ones(3, 1)], [torch.ones(1, 1), torch.ones(3, 1)]).shape == (2, 3, 3)


def test_split_gives_designs_outcomes_mask():
    designs, outcomes, mask = split_history(torch.arange(8.0).reshape(2, 4), 2)
    assert designs.tolist() == [[0, 1], [4, 5]] and outcomes.tolist() == [[2], [6]] and mask.tolist() == [3, 7]


@pytest.mark.parametrize(
    ("designs", "outcomes", "horizon", "message"),
    [
        (torch.ones(2, 1), torch.ones(3, 1), None, "must agree in all but the last dimension"),
        (torch.ones(2), torch.ones(2), None, "must agree in all but the last dimension"),
        (torch.ones(3, 1), torch.ones(3, 1), 2, "got 3 trials for a horizon of 2"),
        (
            torch.tensor([[0.0], [float("nan")]]),
            torch.ones(2, 1),
            None,
            r"designs must be finite, got nan at index \(1, 0\)",
        ),
        (
            torch.ones(2, 1),
            torch.tensor([[float("inf")], [0.0]]),
            None,
            r"outcomes must be finite, got inf at index \(0, 0\)",
        ),
        ([torch.ones(2, 1)], [], None, "lists of one length, not empty; got 1 and 0"),
        ([], [], None, "lists of one length, not empty"),
        ([torch.ones(2, 1)], [torch.ones(1, 1)], None, "must agree"),
        (torch.ones(2, 1), torch.ones(2, 1), -1, "horizon must be at least 0"),
    ],
)
def test_what_cannot_be_packed_is_refused(designs, outcomes, horizon, message):
    with pytest.raises(ValueError, match=message):
        pack_history(designs, outcomes, horizon)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (torch.ones(2, 4), "must have 3 values in its last dimension"),
        (torch.ones(3), r"must have shape \(..., trials, features\)"),
        (torch.tensor([[0.0, 0.0, 0.5]]), "must be 0 or 1"),
        (torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), "padding last"),
        (torch.tensor([[float("nan"), 0.0, 1.0]]), r"history must be finite, got nan at index \(0, 0\)"),
    ],
)
def test_what_is_not_a_history_is_refused(history, message):
    with pytest.raises(ValueError, match=message):
        check_history(history, 1, 1)


def test_a_history_passes_its_check_unchanged():
    history = pack_history(torch.randn(2, 3, 1), torch.randn(2, 3, 1), horizon=5)
    assert torch.equal(check_history(history, 1, 1), history)
    assert check_history(torch.zeros(0, 3), 1, 1).shape == (0, 3)


def test_trials_go_on_from_a_common_history():
    before = pack_history(torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    designs, outcomes = torch.arange(6.0).reshape(3, 2, 1), torch.ones(3, 2, 1)
    together = continue_history(before, designs, outcomes)
    assert torch.equal(together[:, 0], before.expand(3, -1, -1)[:, 0])
    assert torch.equal(together[:, 1:], pack_history(designs, outcomes))
    assert torch.equal(continue_history(None, designs, outcomes), pack_history(designs, outcomes))
