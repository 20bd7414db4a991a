r"""A head that proposes places relative to earlier ones: u = Σ_i w_i u_i + exp(s) · v.

The weights w are those of attention from a summary to the earlier places u_i (a pointer network, Vinyals et al. 2015,
arXiv 1506.03134); s and v are linear in the summary. As knowledge grows, good designs come close together. A linear head has
to give their absolute places to many digits; this one gives a small step from a place that is known.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["PointerHead"]


class PointerHead(nn.Module):
    """Summary and earlier places → next place.

    Args:
        hidden_dim: Size of the summary and of tokens.
        place_dim: Number F of coordinates of a place.
        key_dim: Size of a key.

    Example:
        >>> import torch
        >>> head = PointerHead(8, 2)
        >>> tokens, places = torch.randn(5, 3, 8), torch.randn(5, 3, 2)
        >>> head(torch.randn(5, 8), head.to_key(tokens), places).shape
        torch.Size([5, 2])
    """

    def __init__(self, hidden_dim: int, place_dim: int, key_dim: int = 16):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.to_key, self.to_query = nn.Linear(hidden_dim, key_dim), nn.Linear(hidden_dim, key_dim)
        self.step = nn.Linear(hidden_dim, place_dim + 1)

    def forward(self, summary: Tensor, keys: Tensor, places: Tensor) -> Tensor:
        """Next place (..., F).

        Args:
            summary: Shape (..., hidden_dim).
            keys: Those of n earlier places, (..., n, key_dim).
            places: Shape (..., n, F).
        """
        summary = self.norm(summary)
        scores = (keys @ self.to_query(summary).unsqueeze(-1)) * keys.shape[-1] ** -0.5  # (..., n, 1)
        direction, log_size = self.step(summary).tensor_split([-1], dim=-1)
        return (scores.softmax(-2) * places).sum(-2) + log_size.exp() * direction
