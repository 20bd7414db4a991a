r"""Train the same net several times, from different weights, side by side, and leave out what got stuck.

About one training of a flow in twenty ends far behind the others, and posteriors of such a net can be too wide and yet
calibrated, so that ranks (SBC) show nothing. The loss of held-out simulations does. All members hold out the same ones, so
that with mean losses L_1 ≤ … ≤ L_M, and their lower median L_h, member m counts as stuck where

    L_m − L_h > max(δ, 4 (L_h − L_1)),

by more than three standard errors of the paired differences: δ nats behind half of the members at least, and far further
than these are apart. It is seen as long as fewer than half are stuck. A stuck member is trained again, from other weights;
if that ends no better it is left out. Each of this is warned of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...utils.checks import check_count
from ...utils.parallel import run_seeded
from ...utils.seeding import seeded
from ...utils.warn_user import warn_user, without_sbi_notes
from ..posteriors.deep_ensemble import DeepEnsemblePosterior
from .held_out import held_out_losses, train_on_split

__all__ = ["stuck_members", "train_ensemble"]

_TIMES_APART = 4.0
_STANDARD_ERRORS = 3.0


def train_ensemble(
    build_trainer: Callable[..., Any],
    num_members: int,
    seed: int | None = None,
    num_workers: int = 1,
    *,
    train_settings: dict[str, Any] | None = None,
    stuck_by: float = 0.3,
    show_progress_bars: bool = True,
) -> DeepEnsemblePosterior:
    """Build, train and gather `num_members` posteriors.

    Each member is built and trained on one thread, under a seed of its own, in whichever process: the same seed gives the
    same ensemble for any `num_workers`. All hold out the same simulations, if they were given the same ones.

    Args:
        build_trainer: (number of the member), or () → a trainer that holds its simulations and has yet to be trained: it
            has `train` and `build_posterior`, as sbi's and those of this package have. Build the net inside, so that each
            member has weights of its own. What it returns may also be a posterior, for trainings of another form.
        num_members: Number of members.
        seed: Seed of the whole ensemble; the global generator if None.
        num_workers: Processes, −1 for one a core; an active `joblib.parallel_config` can spread them over machines.
        train_settings: Keywords for each `train`.
        stuck_by: δ, see above, in units of the loss (nats, for sbi's NPE): a member so far behind is trained again once, and
            then left out. Members that do not tell the losses of the held-out simulations are not judged.
        show_progress_bars: Whether to show progress, counted as members are handed out.

    Returns:
        The ensemble; its members lack nothing that they would have alone. Its `held_out_losses` are theirs.

    Raises:
        TypeError: If `build_trainer` returns neither a trainer nor a posterior.
        ValueError: If `num_members` is below 1, `stuck_by` is not positive, or no training gives a finite loss.

    Warns:
        RuntimeWarning: For each member that is trained again, and for each that is left out.

    Example:
        >>> from sbi_bed.inference import ModelComparison
        >>> index = torch.arange(100) % 2
        >>> x = torch.randn(100, 3) + 2 * index.unsqueeze(-1)
        >>> def build():
        ...     return ModelComparison(2, torch.nn.Linear(3, 4), show_progress_bars=False).append_simulations(index, x)
        >>> settings = {"train_settings": {"max_num_epochs": 5}, "show_progress_bars": False}
        >>> ensemble = train_ensemble(build, num_members=2, seed=0, **settings)
        >>> ensemble.probs(x[:5]).shape
        torch.Size([5, 2])
    """
    check_count(num_members, "num_members")
    if not stuck_by > 0:
        raise ValueError(f"stuck_by must be positive, got {stuck_by}.")
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    with seeded(seed):
        split_seed, second_seed = torch.randint(2**31, (2,)).tolist()
    positional = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    takes_number = any(p.kind in positional for p in inspect.signature(build_trainer).parameters.values())

    def train(number: int) -> tuple[Any, Tensor | None]:
        with without_sbi_notes():
            trainer = build_trainer(number) if takes_number else build_trainer()
        if hasattr(trainer, "train") and hasattr(trainer, "build_posterior"):
            net = train_on_split(trainer, split_seed, train_settings or {})
            return trainer.build_posterior(), held_out_losses(trainer, net)
        if hasattr(trainer, "sample"):
            return trainer, None
        raise TypeError(f"build_trainer must return a trainer with train() and build_posterior(), got {trainer!r}.")

    settings = {"description": "training members", "show_progress_bars": show_progress_bars}
    members = dict(enumerate(run_seeded(train, range(num_members), seed, num_workers, **settings)))
    stuck = _stuck(members, stuck_by)
    if stuck:
        warn_user(f"{_describe(members, stuck)}: training again from other weights.", RuntimeWarning)
        members.update(zip(stuck, run_seeded(train, stuck, second_seed, num_workers, **settings), strict=True))
        dropped = [number for number in stuck if number in _stuck(members, stuck_by)]
        if dropped:
            warn_user(f"{_describe(members, dropped)}, trained twice: left out of the ensemble.", RuntimeWarning)
            members = {number: member for number, member in members.items() if number not in dropped}
            if not members:
                raise ValueError("no member could be trained: the held-out losses of all are NaN or infinite.")
    posteriors, losses = zip(*members.values(), strict=True)
    comparable = _comparable(losses)
    return DeepEnsemblePosterior(posteriors, held_out_losses=torch.stack(losses) if comparable else None)


def stuck_members(losses: Tensor, stuck_by: float) -> list[int]:
    """Numbers of the members that are stuck, see above.

    Args:
        losses: Loss of each member for each held-out simulation, (M, N); NaN and infinity count as stuck.
        stuck_by: δ.

    Example:
        >>> losses = torch.tensor([0.60, 0.62, 1.80, 0.61]).unsqueeze(-1) + 0.1 * torch.randn(1, 50)
        >>> stuck_members(losses, 0.3)
        [2]
    """
    means = losses.double().mean(-1).nan_to_num(torch.inf, torch.inf)
    half = int(means.median(0).indices)
    if not bool(means[half].isfinite()):
        return (~means.isfinite()).nonzero().flatten().tolist()
    allowed = max(stuck_by, _TIMES_APART * float(means[half] - means.min()))
    gaps = losses.double() - losses[half].double()
    stderr = gaps.std(-1, unbiased=False) / losses.shape[-1] ** 0.5
    behind = means - means[half]
    stuck = (behind > allowed) & ~(behind <= _STANDARD_ERRORS * stderr)
    return stuck.nonzero().flatten().tolist()


def _comparable(losses: Any) -> bool:
    """Whether there are losses, of the same simulations as far as can be told."""
    return all(each is not None for each in losses) and len({len(each) for each in losses}) == 1


def _stuck(members: dict[int, tuple[Any, Tensor | None]], stuck_by: float) -> list[int]:
    losses = [losses for _, losses in members.values()]
    return stuck_members(torch.stack(losses), stuck_by) if _comparable(losses) else []  # pyright: ignore


def _describe(members: dict[int, tuple[Any, Tensor | None]], stuck: list[int]) -> str:
    means = {number: float(losses.mean()) for number, (_, losses) in members.items() if losses is not None}
    which = ", ".join(f"{number} ({means[number]:.3f})" for number in stuck)
    middle = float(torch.tensor([mean for number, mean in means.items() if number not in stuck]).median())
    return f"member{'s' * (len(stuck) > 1)} {which} got stuck: held-out loss against {middle:.3f} of the others"
