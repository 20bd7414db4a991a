"""Causal self-attention that can be run on a whole sequence or one token at a time, with the same result."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CausalBlock"]


class CausalBlock(nn.Module):
    """Pre-norm transformer block with a cache of earlier keys and values.

    Args:
        hidden_dim: Size of a token.
        num_heads: Number of attention heads; divides `hidden_dim`.
    """

    def __init__(self, hidden_dim: int, num_heads: int):
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"hidden_dim ({hidden_dim}) must be a multiple of num_heads ({num_heads}).")
        self.num_heads = num_heads
        self.norm_in, self.norm_out = nn.LayerNorm(hidden_dim), nn.LayerNorm(hidden_dim)
        self.to_qkv, self.from_heads = nn.Linear(hidden_dim, 3 * hidden_dim), nn.Linear(hidden_dim, hidden_dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_dim, 4 * hidden_dim), nn.GELU(), nn.Linear(4 * hidden_dim, hidden_dim)
        )

    def forward(
        self, tokens: Tensor, cache: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend from new tokens (..., n, hidden_dim) to themselves, causally, and to the m cached ones.

        Returns:
            Tokens (..., n, hidden_dim) and the cache of m + n keys and values (..., heads, m + n, hidden_dim / heads).
        """
        query, key, value = self._project(tokens)
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=-2), torch.cat([cache[1], value], dim=-2)
        num_new, num_all = query.shape[-2], key.shape[-2]
        if num_new == 1:  # products and sums: faster than fused attention here, and `vmap` takes them
            weight = ((query * key).sum(-1) * query.shape[-1] ** -0.5).softmax(-1)
            mixed = (weight.unsqueeze(-1) * value).sum(-2, keepdim=True)
        else:
            visible = torch.ones(num_new, num_all, dtype=torch.bool, device=tokens.device).tril(num_all - num_new)
            mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        tokens = tokens + self.from_heads(mixed.transpose(-2, -3).flatten(-2))
        return tokens + self.feed_forward(self.norm_out(tokens)), (key, value)

    def ask(self, tokens: Tensor, cache: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
        """Attend from each of q tokens to itself and to those of m cached ones that it may see, side by side.

        For one token that sees all, this is what `forward` gives.

        Args:
            tokens: Shape (..., q, hidden_dim).
            cache: Keys and values (..., heads, m, hidden_dim / heads).
            visible: Which cached tokens each may see, (q, m), boolean.
        """
        query, key, value = self._project(tokens)
        scale = query.shape[-1] ** -0.5
        scores = (query @ cache[0].mT * scale).masked_fill(~visible, -torch.inf)
        weight = torch.cat([scores, (query * key).sum(-1, keepdim=True) * scale], -1).softmax(-1)
        mixed = weight[..., :-1] @ cache[1] + weight[..., -1:] * value
        tokens = tokens + self.from_heads(mixed.transpose(-2, -3).flatten(-2))
        return tokens + self.feed_forward(self.norm_out(tokens))

    def _project(self, tokens: Tensor) -> list[Tensor]:
        """Queries, keys and values, (..., heads, n, hidden_dim / heads)."""
        parts = self.to_qkv(self.norm_in(tokens)).chunk(3, dim=-1)
        return [part.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3) for part in parts]
