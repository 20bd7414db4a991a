r"""Losses whose minimum is the log evidence of each model.

A net gives ℓ_j(x), one number for each model. Simulations come from model m with frequency f_m, whatever the prior over
models is, so that of all x the share that is of model m is q_m(x) ∝ f_m p(x | m). With a_j = ℓ_j + log f_j:

- **Cross-entropy**, −log softmax(a)_m, least at a_j = log q_j + const.
- **l-POP exponential** (evidence networks, Jeffrey & Wandelt 2024, arXiv 2305.11241), over pairs of models:

      (J − 1)^{-1} Σ_{j ≠ m} exp(−½ (a_m − a_j)).

  Its expectation, for each pair, is q_m exp(−½ d) + q_j exp(½ d) with d = a_m − a_j, least at d = log q_m/q_j; all pairs
  agree on a_j = log q_j + const. For two models and a head ℓ_1 = J_α(f) it is their loss exp((½ − m) J_α(f)). Errors far
  out, where one model is all but excluded, count exponentially more than in the cross-entropy.

In both the minimum is ℓ_j = log p(x | j) + const: **Bayes factors, whatever the frequencies in training were**, and the
prior over models enters when probabilities are asked for. No simulation needs a weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CrossEntropyLoss", "LPopLoss"]


class CrossEntropyLoss(nn.Module):
    """Cross-entropy of log evidences, given how often each model is among the simulations.

    Args:
        frequencies: Shares f of the models among the simulations, (J,), all positive.

    Attributes:
        log_frequencies: Logs of the frequencies, (J,).

    Example:
        >>> loss = CrossEntropyLoss(torch.tensor([0.5, 0.5]))
        >>> loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
        tensor([0.6931])
    """

    log_frequencies: Tensor

    def __init__(self, frequencies: Tensor):
        super().__init__()
        self.register_buffer("log_frequencies", _checked(frequencies).log())

    def forward(self, log_evidences: Tensor, model_index: Tensor) -> Tensor:
        """Losses (B,) of log evidences (B, J) where x came from the models model_index (B,)."""
        return nn.functional.cross_entropy(log_evidences + self.log_frequencies, model_index, reduction="none")


class LPopLoss(nn.Module):
    """l-POP exponential loss of log evidences, given how often each model is among the simulations.

    Args:
        frequencies: Shares f of the models among the simulations, (J,), all positive.
        largest_exponent: From here on the exponential goes on as a straight line, so that one simulation that a young net
            gets badly wrong does not overflow.

    Attributes:
        log_frequencies: Logs of the frequencies, (J,).

    Example:
        >>> loss = LPopLoss(torch.tensor([0.5, 0.5]))
        >>> loss(torch.tensor([[0.0, 0.0], [0.0, 4.0]]), torch.tensor([1, 0]))
        tensor([1.0000, 7.3891])
    """

    log_frequencies: Tensor

    def __init__(self, frequencies: Tensor, largest_exponent: float = 8.0):
        super().__init__()
        self.register_buffer("log_frequencies", _checked(frequencies).log())
        self.largest_exponent = largest_exponent

    def forward(self, log_evidences: Tensor, model_index: Tensor) -> Tensor:
        """Losses (B,) of log evidences (B, J) where x came from the models model_index (B,)."""
        scores = log_evidences + self.log_frequencies
        exponent = -0.5 * (scores.gather(-1, model_index.unsqueeze(-1)) - scores)
        capped = exponent.clamp_max(self.largest_exponent)
        terms = capped.exp() * (1 + exponent - capped)
        return (terms.sum(-1) - 1) / (scores.shape[-1] - 1)  # the model itself against itself is 1


def _checked(frequencies: Tensor) -> Tensor:
    if not bool((frequencies > 0).all()) or frequencies.ndim != 1:
        raise ValueError(f"frequencies must be positive, one for each model, got {frequencies.tolist()}.")
    return frequencies.to(torch.get_default_dtype())
