"""Causal attention gives the same tokens whether they come together or one by one."""

import pytest
import torch
from torch import nn

from sbi_bed.neural_nets.attention import CausalBlock


def build(width=8, num_heads=2):
    return CausalBlock(width, num_heads).double()


def reference(block: CausalBlock, tokens: torch.Tensor) -> torch.Tensor:
    """The same weights in torch's own attention layer with a causal mask."""
    width, n = tokens.shape[-1], tokens.shape[-2]
    attention = nn.MultiheadAttention(width, block.num_heads, batch_first=True, dtype=torch.float64)
    attention.in_proj_weight.data, attention.in_proj_bias.data = block.to_qkv.weight.data, block.to_qkv.bias.data
    attention.out_proj.weight.data, attention.out_proj.bias.data = (
        block.from_heads.weight.data,
        block.from_heads.bias.data,
    )
    x = block.norm_in(tokens)
    mixed, _ = attention(x, x, x, attn_mask=torch.ones(n, n, dtype=torch.bool).triu(1), need_weights=False)
    tokens = tokens + mixed
    return tokens + block.feed_forward(block.norm_out(tokens))


@pytest.mark.parametrize(("width", "num_heads"), [(8, 2), (6, 3), (4, 1)])
def test_it_is_ordinary_causal_attention(width, num_heads):
    block, tokens = build(width, num_heads), torch.randn(3, 5, width).double()
    torch.testing.assert_close(block(tokens)[0], reference(block, tokens), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pieces", [[1, 1, 1, 1, 1], [2, 3], [4, 1], [5]])
def test_pieces_with_a_cache_equal_the_whole(pieces):
    block, tokens = build(), torch.randn(2, 3, 5, 8).double()
    whole, (keys, values) = block(tokens)
    cache, outputs = None, []
    for piece in tokens.split(pieces, dim=-2):
        output, cache = block(piece, cache)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, dim=-2), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cache[0], keys, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cache[1], values, rtol=1e-12, atol=1e-12)
    assert keys.shape == (2, 3, 2, 5, 4)


def test_a_cache_can_be_continued_twice():
    """States of a policy are not changed by an update: two futures of one past do not meet."""
    block, past, futures = build(), torch.randn(1, 2, 8).double(), torch.randn(2, 1, 1, 8).double()
    _, cache = block(past)
    both = [block(future, cache)[0] for future in futures]
    torch.testing.assert_close(both[0], block(futures[0], block(past)[1])[0], rtol=0, atol=0)
    assert not torch.equal(both[0], both[1])


def test_the_future_does_not_reach_the_past():
    block, tokens = build(), torch.randn(1, 5, 8).double()
    changed = tokens.clone()
    changed[:, 3:] += 1.0
    assert torch.equal(block(tokens)[0][:, :3], block(changed)[0][:, :3])
    assert not torch.allclose(block(tokens)[0][:, 3:], block(changed)[0][:, 3:])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"hidden_dim \(7\) must be a multiple of num_heads \(2\)"):
        CausalBlock(7, 2)
