r"""Do people recognise words by a signal or by thresholds? (arXiv 2301.11873, its models of recognition memory.)

Each person sees old and new words and answers "old" or "new". A model gives each person a rate of hits ("old" to an old
word) and of false alarms ("old" to a new word); answers are independent given these. So the counts of a person's answers,
k_o of n_o old and k_n of n_n new words called old, are sufficient, and the evidence of answers in one order is

    p(x | M) = E_hyper Π_persons ∫ p_hit^{k_o} (1 − p_hit)^{n_o − k_o} p_fa^{k_n} (1 − p_fa)^{n_n − k_n} p(person | hyper).

Models: `SignalDetection` and `MultinomialTree`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model_family import ModelFamily, check_share_missing, check_size, draw_sizes, pack_present
from .multinomial_tree import MultinomialTree
from .signal_detection import SignalDetection

__all__ = ["RecognitionMemory"]


class RecognitionMemory(ModelFamily):
    """Signal detection against two high thresholds; x (persons, words, stimulus + response + mask).

    The stimulus is 1 for an old word and 0 for a new one; the response is 1 for "old" and 0 for "new".

    Args:
        num_persons: Number of persons, or (low, high): then drawn for each data set, padded to `high`.
        num_old: Number of old words.
        num_new: Number of new words.
        missing: Share of answers that are missing, each independently, in [0, 1).
        signal_detection: The first model; with the priors of the source if None.
        multinomial_tree: The second model; with the priors of the source if None.

    Attributes:
        kinds: The two models, `SignalDetection` and `MultinomialTree`.

    Raises:
        ValueError: If a size or a share is out of range.

    Example:
        >>> models = RecognitionMemory(num_persons=(10, 25))
        >>> models.simulate(0, 3, seed=0).shape
        torch.Size([3, 25, 50, 3])
    """

    names = ("signal detection", "two high thresholds")

    def __init__(
        self,
        num_persons: int | tuple[int, int] = 25,
        num_old: int = 25,
        num_new: int = 25,
        missing: float = 0.0,
        signal_detection: SignalDetection | None = None,
        multinomial_tree: MultinomialTree | None = None,
    ):
        self.num_persons = check_size(num_persons, "num_persons")
        self.num_old, self.num_new = check_size(num_old, "num_old")[1], check_size(num_new, "num_new")[1]
        self.missing = check_share_missing(missing)
        self.kinds = (signal_detection or SignalDetection(), multinomial_tree or MultinomialTree())
        self.x_shape = (self.num_persons[1], self.num_old + self.num_new, 3)

    def _simulate(self, model_index: int, num: int) -> Tensor:
        persons, words = self.x_shape[:2]
        hit, false_alarm = self.kinds[model_index].sample_rates(num, persons)
        old = (torch.arange(words) < self.num_old).expand(num, persons, words)
        rate = torch.where(old, hit.unsqueeze(-1), false_alarm.unsqueeze(-1))
        present = torch.arange(persons)[:, None] < draw_sizes(self.num_persons, num)[:, None, None]
        present = present & (torch.rand(num, persons, words) >= self.missing)
        return pack_present(torch.stack([old.to(rate), torch.bernoulli(rate)], -1), present)

    def _log_evidence(self, x: Tensor, model_index: int) -> Tensor:
        return self.kinds[model_index].log_evidence(answer_counts(x))


def answer_counts(x: Tensor) -> Tensor:
    """Counts (B, persons, 4), k_o, n_o, k_n, n_n, of packed answers x (B, persons, words, 3).

    Raises:
        ValueError: If an observed stimulus or response is neither 0 nor 1.
    """
    stimulus, response, mask = x.unbind(-1)
    bad = (mask > 0) & ~(((stimulus == 0) | (stimulus == 1)) & ((response == 0) | (response == 1)))
    if bad.any():
        raise ValueError(
            f"stimuli and responses must be 0 or 1, but not so at index {tuple(bad.nonzero()[0].tolist())}."
        )
    old, new = stimulus * mask, (1 - stimulus) * mask
    return torch.stack([(response * old).sum(-1), old.sum(-1), (response * new).sum(-1), new.sum(-1)], -1).long()
