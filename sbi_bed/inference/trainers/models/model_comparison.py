r"""Bayesian model comparison by a classifier of simulations: which model made x?

With simulations (m, x), m among J models and x ~ p(x | M_m), a net is trained so that its outputs are log p(x | M_j) up to a
constant that the models share (`sbi_bed.objectives.evidence_losses` has the mathematics; Elsemüller et al. 2023, arXiv
2301.11873, for hierarchical models). How often each model was simulated is corrected for exactly, and the prior over models
enters when probabilities are asked for: a user may simulate a rare model as often as a common one.

Training runs on sbi's own loop, with batches, learning rate and checkpoints given to it from here (`_compat.py`).
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ....neural_nets.classifiers import EvidenceClassifier
from ....objectives.evidence_losses import CrossEntropyLoss, LPopLoss
from ....simulators.models.model_family import as_log_prior, as_model_index
from ....utils.checks import as_finite_tensor, check_count
from ....utils.seeding import seeded
from ....utils.tracking import NoTracker
from ....utils.warn_user import warn_user
from ...posteriors.model_posterior import ModelPosterior
from ..epoch_checkpoint import EpochCheckpoint
from ..epoch_settings import EpochSettings
from ..old_checkpoint import check_checkpoint_arguments
from ..shared_split import split_rows
from .classifier_run import ClassifierRun

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["ModelComparison"]

_LOSSES = {"cross-entropy": CrossEntropyLoss, "l-pop": LPopLoss}


class ModelComparison:
    """Trains a net to tell models apart by their simulations.

    Args:
        num_models: Number J of models.
        embedding_net: x (B, *event) → summary (B, S), such as `HierarchicalEmbedding`; trained along, in place.
        model_prior: Prior weights of the models, (J,), positive; equal if None. Models need not be simulated that often.
        device: Where to train.
        tracker: An sbi `Tracker` for losses; nothing is written if None.
        show_progress_bars: Whether to show progress with the validation loss.
        loss: "cross-entropy"; or "l-pop", the exponential loss of evidence networks, which weighs errors where one model is
            all but excluded more.
        hidden_dim: Width of the head.
        num_layers: Hidden layers of the head.
        alpha: Power of the head's transform, see `sbi_bed.neural_nets.classifiers`; None for none.

    Attributes:
        classifier: The net, once training has begun.
        validation_losses: Mean validation loss after each epoch.
        held_out_losses: Loss of each held-out simulation, (N,), once trained.

    Raises:
        TypeError: If `embedding_net` is no module.
        ValueError: If there are fewer than two models, the prior is none, or the loss unknown.

    Example:
        >>> model_index = torch.arange(200) % 2
        >>> x = torch.randn(200, 4, 6, 1) + model_index.view(-1, 1, 1, 1)
        >>> from sbi_bed.neural_nets import HierarchicalEmbedding
        >>> trainer = ModelComparison(2, HierarchicalEmbedding(input_dim=1), show_progress_bars=False)
        >>> x = torch.cat([x, torch.ones_like(x)], -1)  # nothing is missing
        >>> net = trainer.append_simulations(model_index, x).train(max_num_epochs=2, seed=0)
        >>> trainer.build_posterior().probs(x[:3]).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        num_models: int,
        embedding_net: nn.Module,
        model_prior: Any = None,
        device: str | torch.device = "cpu",
        tracker: Tracker | None = None,
        show_progress_bars: bool = True,
        *,
        loss: Literal["cross-entropy", "l-pop"] = "cross-entropy",
        hidden_dim: int = 64,
        num_layers: int = 2,
        alpha: float | None = None,
    ):
        self.num_models = check_count(num_models, "num_models", 2)
        if not isinstance(embedding_net, nn.Module):
            raise TypeError(f"embedding_net must be a torch module, got {embedding_net!r}.")
        if loss not in _LOSSES:
            raise ValueError(f"loss must be {' or '.join(map(repr, _LOSSES))}, got {loss!r}.")
        self.embedding_net, self.model_prior = embedding_net, as_log_prior(model_prior, self.num_models).exp()
        self.device, self.loss = torch.device(device), loss
        self._head: dict[str, Any] = {"hidden_dim": hidden_dim, "num_layers": num_layers, "alpha": alpha}
        self._tracker, self._show_progress_bars = tracker, show_progress_bars
        self._simulations: list[tuple[Tensor, Tensor]] = []
        self._event_shape: tuple[int, ...] | None = None
        self.classifier: EvidenceClassifier | None = None
        self._trained = False
        self.validation_losses: list[float] = []
        self.held_out_losses: Tensor | None = None

    @classmethod
    def transfer(cls, posterior: ModelPosterior, **settings: Any) -> ModelComparison:
        """A trainer that starts from the net of a trained posterior, for data sets of other sizes or a changed simulator.

        Its `train` has a tenth of the usual learning rate by default: pre-train on many small data sets, which are cheap,
        then go on with few large ones (arXiv 2301.11873).

        Args:
            posterior: What was trained; its net is copied.
            **settings: `device`, `tracker`, `show_progress_bars`, `loss` and `model_prior`, as for the class.

        Example:
            >>> from sbi_bed.neural_nets import HierarchicalEmbedding
            >>> def simulate(num_groups):
            ...     model_index = torch.arange(400) % 2
            ...     x = torch.randn(400, num_groups, 5, 1) + 3 * model_index.view(-1, 1, 1, 1)
            ...     return model_index, torch.cat([x, torch.ones_like(x)], -1)
            >>> small = ModelComparison(2, HierarchicalEmbedding(1), show_progress_bars=False)
            >>> net = small.append_simulations(*simulate(2)).train(50, max_num_epochs=4, seed=0)
            >>> large = ModelComparison.transfer(small.build_posterior(), show_progress_bars=False)
            >>> net = large.append_simulations(*simulate(6)).train(50, max_num_epochs=1, seed=0)
            >>> model_index, x = simulate(6)
            >>> bool((large.build_posterior().probs(x).argmax(-1) == model_index).float().mean() > 0.95)
            True
        """
        classifier = copy.deepcopy(posterior.classifier)
        settings = {"model_prior": posterior.model_prior, **settings}
        trainer = cls(posterior.num_models, classifier.embedding_net, **settings)
        trainer.classifier, trainer._trained = classifier, True
        return trainer

    def append_simulations(self, model_index: Tensor, x: Tensor) -> ModelComparison:
        """Add simulations; returns the trainer itself.

        Args:
            model_index: Which model each is from, (N,), whole numbers from 0 to J − 1.
            x: Data sets, (N, *event), of one shape in all calls: pad them with `pack_groups(..., sizes=)`.

        Raises:
            ValueError: If lengths or shapes differ, x is not finite, or an index is of no model.
        """
        x, index = as_finite_tensor(x, "x").detach(), torch.as_tensor(model_index).detach()
        if index.ndim != 1 or x.ndim < 2 or len(index) != len(x):
            raise ValueError(
                f"model_index (N,) and x (N, ...) must have one length, got {tuple(index.shape)} and {tuple(x.shape)}."
            )
        index = as_model_index(index, len(x), self.num_models)
        if self._event_shape not in (None, tuple(x.shape[1:])):
            raise ValueError(
                f"simulations must have one shape, got {tuple(x.shape[1:])} after {self._event_shape}: pad them alike."
            )
        self._event_shape = tuple(x.shape[1:])
        self._simulations.append((index, x))
        return self

    def train(
        self,
        training_batch_size: int = 256,
        learning_rate: float | None = None,
        validation_fraction: float = 0.05,
        stop_after_epochs: int = 20,
        max_num_epochs: int = 30,
        clip_max_norm: float | None = 5.0,
        seed: int | None = None,
        *,
        split_seed: int | None = None,
        final_learning_rate: float = 0.01,
        weight_decay: float = 0.1,
        max_restarts: int = 2,
        max_seconds: float | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = 1,
        resume: bool = False,
    ) -> EvidenceClassifier:
        """Train on all simulations so far; returns the net.

        It has its last weights, or those of its lowest validation loss where they are better by more than chance.

        A net that was trained before goes on from its weights. A new one that is still at chance after a quarter of the
        training, or at its end, is started again from other weights, with a warning that says so.

        Args:
            training_batch_size: Simulations in a step of Adam.
            learning_rate: First learning rate, falling to `final_learning_rate` times that along a cosine. If None 2e-3 for
                a new net and 2e-4 for one that was trained before.
            validation_fraction: Share of the simulations that is held out.
            stop_after_epochs: Stop when so many epochs have not lowered the validation loss.
            max_num_epochs: Passes through the simulations, at most.
            clip_max_norm: Largest norm of gradients; None for no limit.
            seed: Seed of the whole training; the global generator if None.
            split_seed: Seed of which simulations are held out, for trainings that share them; drawn like all else if None.
            final_learning_rate: Share of the learning rate that is left at the end.
            weight_decay: Of AdamW. With none, Bayes factors far out, of which there are few simulations, grow without bound.
            max_restarts: How often to start again from chance, at most.
            max_seconds: Stop after so many seconds, but for the last look at what is held out; the learning rate falls in
                this time.
            checkpoint: File that holds the training's state, written every `checkpoint_every` epochs.
            checkpoint_every: Epochs between checkpoints.
            resume: Go on from `checkpoint` where it exists; the result is that of an uninterrupted training.

        Raises:
            ValueError: If an argument is out of range, there are too few simulations or none of some model, the checkpoint
                is of another training, or the loss becomes NaN.
        """
        if learning_rate is None:
            learning_rate = 2e-4 if self._trained else 2e-3
        settings = EpochSettings.of(locals())
        check_checkpoint_arguments(checkpoint, checkpoint_every, resume)
        model_index, x = self._data()
        loss = _LOSSES[self.loss](self._frequencies(model_index)).to(self.device)
        if self._tracker is not None:
            self._tracker.log_params(settings.as_plain_data())
        file = EpochCheckpoint(checkpoint, checkpoint_every, {**settings.as_plain_data(), **self._description()})
        state = file.read({"rows", "attempt", "fresh"}) if resume else None
        with seeded(settings.seed, self.device):
            kept = None if state is None else state["rows"]
            rows, split = split_rows(len(x), settings.validation_fraction, split_seed, kept)
            fresh = not self._trained if state is None else state["fresh"]
            net = self._build(x[split[0][:2000]])
            begin = time.perf_counter()
            for attempt in range(0 if state is None else state["attempt"], settings.max_restarts + 1):
                may_restart = fresh and attempt < settings.max_restarts
                position = {"rows": rows, "attempt": attempt, "fresh": fresh}
                run = ClassifierRun(net, loss, settings, (model_index, x), split, self.device, begin, may_restart)
                run.train(file, position, state, self._tracker or NoTracker(), self._show_progress_bars)
                state, self.validation_losses = None, list(run.loop.validation_losses)
                if not (run.at_chance() and self._restart(net, may_restart and run.used < 1)):
                    break
        self._trained, self.held_out_losses = True, run.held_out_losses()
        return net.eval()

    def build_posterior(self) -> ModelPosterior:
        """The posterior over models, with a copy of the net as it is now.

        Raises:
            ValueError: If nothing was trained.
        """
        if self.classifier is None or self._event_shape is None:
            raise ValueError("there is no net yet: call train() first.")
        return ModelPosterior(copy.deepcopy(self.classifier), self.model_prior, self._event_shape)

    # ---- pieces of a training

    def _data(self) -> tuple[Tensor, Tensor]:
        if not self._simulations:
            raise ValueError("there are no simulations: call append_simulations(model_index, x) first.")
        if len(self._simulations) > 1:
            self._simulations = [tuple(torch.cat(parts) for parts in zip(*self._simulations, strict=True))]  # pyright: ignore
        return self._simulations[0]

    def _frequencies(self, model_index: Tensor) -> Tensor:
        counts = torch.bincount(model_index, minlength=self.num_models)
        if not bool((counts > 0).all()):
            raise ValueError(
                f"there is no simulation of model {int((counts == 0).nonzero()[0])}: simulate every model."
            )
        return counts.double() / counts.sum()

    def _build(self, x: Tensor) -> EvidenceClassifier:
        """The net, built and scaled with these simulations if it is new."""
        if self.classifier is None:
            self.embedding_net.to(self.device)
            if hasattr(self.embedding_net, "fit_scale"):
                self.embedding_net.fit_scale(x.to(self.device))  # pyright: ignore[reportCallIssue]
            self.embedding_net.eval()
            with torch.no_grad():
                summary = self.embedding_net(x[:2].to(self.device, torch.get_default_dtype()))
            if summary.ndim != 2:
                raise ValueError(f"embedding_net must give summaries (B, S), got shape {tuple(summary.shape)}.")
            net = EvidenceClassifier(self.embedding_net, self.num_models, summary.shape[-1], **self._head)
            self.classifier = net.to(self.device)
        return self.classifier.to(self.device)

    def _restart(self, net: EvidenceClassifier, may_restart: bool) -> bool:
        """Warn of a net at chance; give it other weights if it may be trained again, and say whether."""
        what = "the net tells the models no better apart than chance"
        if may_restart:
            warn_user(f"{what}: it is started again from other weights.", RuntimeWarning)
            net.reset()
            return True
        warn_user(
            f"{what}: such data may not tell them apart; or try a lower learning rate, more simulations or another "
            "embedding net.",
            RuntimeWarning,
        )
        return False

    def _description(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "num_models": self.num_models,
            "embedding_net": type(self.embedding_net).__name__,
            "num_simulations": len(self._simulations[0][1]),
            "event_shape": list(self._event_shape or ()),
        }
