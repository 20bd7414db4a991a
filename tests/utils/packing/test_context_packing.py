"""Data and contexts in one flat x, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sbi_bed.utils import pack_context, unpack_context


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_unpacking_gives_back_what_was_packed(event_shape, num, width):
    x, context = torch.randn(num, *event_shape), torch.randn(num, width)
    found_x, found_context = unpack_context(pack_context(x, context), event_shape)
    assert torch.equal(found_x, x) and torch.equal(found_context, context)
    shared = pack_context(x, context[0])
    assert torch.equal(unpack_context(shared, event_shape)[1], context[:1].expand(num, -1))


@pytest.mark.parametrize(
    ("x", "context", "match"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), "same length"),
        (torch.zeros(3), torch.zeros(3, 2), "same length"),
        (torch.tensor([[0.0, torch.nan]]), torch.zeros(2), r"x must be finite.*\(0, 1\)"),
        (torch.zeros(1, 2), torch.tensor([torch.inf]), "context must be finite"),
    ],
)
def test_what_is_refused(x, context, match):
    with pytest.raises(ValueError, match=match):
        pack_context(x, context)


def test_too_few_values():
    with pytest.raises(ValueError, match="at least 6 values"):
        unpack_context(torch.zeros(2, 5), (2, 3))
