r"""From a data set to the evidence of each model, up to a constant that the models share.

A head reads the summary s(x) of an embedding net and gives one number for each model but the first,

    ℓ_0 = 0,    ℓ_j = J_α(f_j(s(x))),    J_α(f) = f + f |f|^{α−1},

which a loss of `sbi_bed.objectives` turns into ℓ_j = log p(x | M_j) − log p(x | M_0). J_α is the leaky parity-odd power
transform of Jeffrey & Wandelt 2024 (arXiv 2305.11241): a net whose f grows linearly outside the data it has seen gives
Bayes factors that grow as those of Gaussian models do. α = 1 leaves f as it is (twice it). There is no softmax here, so
that nothing saturates: a log Bayes factor of 500 is the number 500.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..utils.checks import check_count, check_positive
from .first_weights import draw_weights

__all__ = ["EvidenceClassifier", "parity_odd_power"]


def parity_odd_power(f: Tensor, alpha: float = 2.0) -> Tensor:
    """J_α(f) = f + f |f|^{α−1}, elementwise: increasing, odd, of slope 1 at 0 for α > 1.

    Example:
        >>> parity_odd_power(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-6.,  0., 12.])
    """
    return f + f * f.abs().pow(alpha - 1)


class EvidenceClassifier(nn.Module):
    """x → log evidences (B, J), up to a constant for each x; the first is 0.

    Args:
        embedding_net: x (B, …) → summary (B, S).
        num_models: Number J of models.
        summary_dim: Size S of a summary.
        hidden_dim: Width of the head.
        num_layers: Hidden layers of the head.
        alpha: Power of the transform; None for none.

    Attributes:
        config: Its sizes as plain data, from which files build it again.
        head: Net from a summary to J − 1 log evidences.

    Raises:
        ValueError: If a size is too small.

    Example:
        >>> from sbi_bed.neural_nets import HierarchicalEmbedding
        >>> embedding_net = HierarchicalEmbedding(input_dim=1, output_dim=10)
        >>> EvidenceClassifier(embedding_net, num_models=3, summary_dim=10)(torch.ones(4, 5, 6, 2)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        embedding_net: nn.Module,
        num_models: int,
        summary_dim: int,
        hidden_dim: int = 64,
        num_layers: int = 2,
        alpha: float | None = None,
    ):
        super().__init__()
        self.num_models, width = check_count(num_models, "num_models", 2), check_count(summary_dim, "summary_dim")
        hidden_dim, num_layers = check_count(hidden_dim, "hidden_dim"), check_count(num_layers, "num_layers", 0)
        alpha = None if alpha is None else check_positive(alpha, "alpha")
        self.config = {
            "num_models": self.num_models,
            "summary_dim": width,
            "hidden_dim": hidden_dim,
            "num_layers": num_layers,
            "alpha": alpha,
        }
        self.embedding_net, self.alpha = embedding_net, alpha
        layers: list[nn.Module] = []
        for _ in range(num_layers):
            layers += [nn.Linear(width, hidden_dim), nn.SiLU()]
            width = hidden_dim
        self.head = nn.Sequential(*layers, nn.Linear(width, self.num_models - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Log evidences (B, J) of data sets x (B, …), relative to the first model's."""
        relative = self.head(self.embedding_net(x))
        if self.alpha is not None:
            relative = parity_odd_power(relative, self.alpha)
        return torch.nn.functional.pad(relative, (1, 0))

    def reset(self) -> None:
        """Draw all weights anew, also those of the embedding net."""
        draw_weights(self)
