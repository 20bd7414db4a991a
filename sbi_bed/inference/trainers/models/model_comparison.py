r"""Bayesian model comparison by a classifier of simulations: which model made x?

With simulations (m, x), m among J models and x ~ p(x | M_m), a net is trained so that its outputs are log p(x | M_j) up to a
constant that the models share (`sbi_bed.objectives.evidence_losses` has the mathematics; Elsemüller et al. 2023, arXiv
2301.11873, for hierarchical models). How often each model was simulated is corrected for exactly. The prior over models
enters when probabilities are asked for, so a rare model may be simulated as often as a common one.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ....neural_nets.classifiers import EvidenceClassifier
from ....neural_nets.embedding_nets.context import ContextEmbedding
from ....neural_nets.embedding_nets.hierarchical import HierarchicalEmbedding
from ....neural_nets.first_weights import redraw_first_weights
from ....objectives.evidence_losses import CrossEntropyLoss, LPopLoss
from ....simulators.models.model_family import as_log_prior, as_model_index
from ....utils.checks import as_finite_tensor, check_choice, check_count
from ....utils.packing.contexts import unpack_context
from ....utils.warn_user import warn_user
from ...posteriors.model_posterior import ModelPosterior
from ..by_epochs import EpochSettings, EpochTrainer

if TYPE_CHECKING:
    from sbi.sbi_types import Tracker

__all__ = ["ModelComparison"]

_LOSSES = {"cross-entropy": CrossEntropyLoss, "l-pop": LPopLoss}
_STEPS_BEFORE_JUDGEMENT = 200
_STEPS_OF_AN_EPOCH = 60


class ModelComparison(EpochTrainer):
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
        num_epochs: Epochs of the last training, since its last start.
        varied_sizes: Whether the last training varied the sizes of data sets.

    Raises:
        TypeError: If `embedding_net` is not a torch module.
        ValueError: If there are fewer than two models, `model_prior` is not a prior over them, or the loss is unknown.

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
        super().__init__(device, tracker, show_progress_bars)
        self.num_models = check_count(num_models, "num_models", 2)
        if not isinstance(embedding_net, nn.Module):
            raise TypeError(f"embedding_net must be a torch module, got {embedding_net!r}.")
        self.embedding_net, self.model_prior = embedding_net, as_log_prior(model_prior, self.num_models).exp()
        self.loss = check_choice(loss, "loss", list(_LOSSES))
        self._head: dict[str, Any] = {"hidden_dim": hidden_dim, "num_layers": num_layers, "alpha": alpha}
        self._event_shape: tuple[int, ...] | None = None
        self.classifier: EvidenceClassifier | None = None
        self._is_trained, self._is_new = False, True

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
        trainer.classifier, trainer._is_trained = classifier, True
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
        training_batch_size: int | None = None,
        learning_rate: float | None = None,
        validation_fraction: float = 0.05,
        stop_after_epochs: int | None = None,
        max_num_epochs: int = 30,
        clip_max_norm: float | None = 5.0,
        *,
        seed: int | None = None,
        split_seed: int | None = None,
        weight_decay: float = 0.1,
        max_restarts: int = 2,
        vary_sizes: bool | None = None,
        **settings: Any,
    ) -> EvidenceClassifier:
        """Train on all simulations so far; returns the net.

        The net has its last weights, or those of its lowest validation loss if they are better by more than chance. A
        training ends with its epochs, not before, unless `stop_after_epochs` or `max_seconds` says so.

        A net that was trained before goes on from its weights. A new net that is still at chance after a quarter of the
        training, or at its end, is started again from other weights, with a warning.

        Args:
            training_batch_size: Simulations in a step of Adam. If None a 60th of the simulations, but from 32 to 256: few
                simulations need small batches, or the steps are too few.
            learning_rate: First learning rate, falling to `final_learning_rate` times that along a cosine. If None 4e-3 for
                a new net and 4e-4 for one that was trained before.
            validation_fraction: Share of the simulations that is held out.
            stop_after_epochs: Stop after so many epochs without a lower validation loss; None for all epochs, over which the
                learning rate falls.
            max_num_epochs: Passes through the simulations, at most.
            clip_max_norm: Largest norm of gradients; None for no limit.
            seed: Seed of the whole training, also of the first weights of a net that is new; the global generator if None.
                An embedding net that you wrote yourself keeps the weights it has: seed torch before you build it.
            split_seed: Seed of which simulations are held out, for trainings that share them; drawn like all else if None.
            weight_decay: Of AdamW. Without it Bayes factors far out, where simulations are few, grow without bound.
            max_restarts: How often to start again from chance, at most.
            vary_sizes: Whether data sets are trained on in random sizes, drawn anew for each simulation and epoch: from one
                group and one observation up to the simulated size, with 0 to 60 % missing. If None it is done where a
                `HierarchicalEmbedding` would see data sets of one size only; the progress bar and `varied_sizes` say so. A
                step takes up to a quarter longer. To be good at all sizes it takes some 2,000 steps: 30 epochs of 4,000
                simulations. At other sizes than those of its training a net can be far off, and warns.
            **settings: `final_learning_rate` (0.01), `max_seconds`, `checkpoint`, `checkpoint_every` (1 epoch) and `resume`,
                as for every trainer; see `sbi_bed.inference.StepSettings`.

        Raises:
            TypeError: If a keyword is no setting.
            ValueError: If an argument is out of range, there are too few simulations or none of some model, the checkpoint
                is of another training, or the loss becomes NaN.
        """
        file = settings.get("checkpoint")
        if not (settings.get("resume") and file is not None and Path(file).exists()):
            self._is_new = not self._is_trained
        if learning_rate is None:
            learning_rate = 4e-3 if self._is_new else 4e-4
        if training_batch_size is None:
            share = sum(len(index) for index, _ in self._simulations) // _STEPS_OF_AN_EPOCH
            training_batch_size = min(256, max(32, share))
        settings |= {"training_batch_size": training_batch_size, "validation_fraction": validation_fraction}
        settings |= {"stop_after_epochs": stop_after_epochs, "max_num_epochs": max_num_epochs}
        settings |= {"learning_rate": learning_rate, "clip_max_norm": clip_max_norm, "weight_decay": weight_decay}
        settings |= {"seed": seed, "split_seed": split_seed, "max_restarts": max_restarts, "vary_sizes": vary_sizes}
        self._judged = -1
        net = self._train(EpochSettings.of(settings))
        self._is_trained = True
        return net  # pyright: ignore[reportReturnType]

    def build_posterior(self) -> ModelPosterior:
        """The posterior over models, with a copy of the net as it is now.

        Raises:
            ValueError: If nothing was trained.
        """
        if self.classifier is None or self._event_shape is None:
            raise ValueError("there is no net yet: call train() first.")
        return ModelPosterior(copy.deepcopy(self.classifier), self.model_prior, self._event_shape)

    # ---- what the loop asks

    label = "training classifier"

    def _tensors(self) -> tuple[Tensor, ...]:
        model_index, x = self._simulated()
        counts = torch.bincount(model_index, minlength=self.num_models)
        if not bool((counts > 0).all()):
            raise ValueError(
                f"there is no simulation of model {int((counts == 0).nonzero()[0])}: simulate every model."
            )
        self._loss = _LOSSES[self.loss](counts.double() / counts.sum()).to(self.device)
        return model_index, x

    def _build(self, rows: Tensor) -> EvidenceClassifier:
        if self.classifier is None:
            if self._settings.seed is not None:
                redraw_first_weights(self.embedding_net)
            x = self._simulations[0][1][rows[:2000]]
            self.embedding_net.to(self.device)
            if hasattr(self.embedding_net, "fit_scale"):
                self.embedding_net.fit_scale(x.to(self.device))  # pyright: ignore[reportCallIssue]
            self.embedding_net.eval()
            with torch.no_grad():
                summary = self.embedding_net(x[:2].to(self.device, torch.get_default_dtype()))
            if summary.ndim != 2:
                raise ValueError(f"embedding_net must give summaries (B, S), got shape {tuple(summary.shape)}.")
            self.classifier = EvidenceClassifier(self.embedding_net, self.num_models, summary.shape[-1], **self._head)
        return self.classifier

    def _grouped_data(self) -> tuple[HierarchicalEmbedding, Tensor] | None:
        net, x = self.embedding_net, self._simulations[0][1]
        if isinstance(net, ContextEmbedding):
            net, x = net.embedding_net, unpack_context(x, net.event_shape)[0]
        return (net, x) if isinstance(net, HierarchicalEmbedding) else None

    def _losses(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._loss(self._evidences(batch), batch[0])

    def _evidences(self, batch: tuple[Tensor, ...]) -> Tensor:
        return self._net(batch[1].to(next(self._net.head.parameters())))  # pyright: ignore

    def _description(self) -> dict[str, Any]:
        return {
            "loss": self.loss,
            "num_models": self.num_models,
            "embedding_net": type(self.embedding_net).__name__,
            "event_shape": list(self._event_shape or ()),
        }

    # ---- a net at chance

    @property
    def _may_restart(self) -> bool:
        return self._is_new and self._attempt < self._settings.max_restarts

    def _has_to_stop(self) -> bool:
        """Whether a new net is at chance after a quarter of the training, but after some steps at least."""
        quarter, epoch = math.ceil(self._settings.max_num_epochs / 4), self._loop.epoch
        first = max(quarter, math.ceil(_STEPS_BEFORE_JUDGEMENT / len(self._batches)))
        if not self._may_restart or epoch > first or self._judged == self._attempt:
            return False
        if epoch < first and self._used <= 0.25:
            return False
        self._judged = self._attempt
        never_better = self._loop.validation_losses[-1] <= 1.02 * self._loop.best_validation_loss
        return never_better and self._at_chance()

    @torch.no_grad()
    def _at_chance(self) -> bool:
        """Whether the held-out loss is that of a net without any data: within two standard errors, and within 2 %."""
        blind = [self._loss(m.new_zeros(len(m), self.num_models).float(), m) for m, _ in self._held_out]
        chance, losses = torch.cat(blind).double().cpu(), self._losses_of_held_out()
        return bool(losses.mean() > 0.98 * chance.mean()) and not _is_lower(losses, chance)

    def _start_again(self, net: nn.Module) -> bool:
        if not self._at_chance():
            return False
        what = "the net tells the models no better apart than chance"
        if self._may_restart and self._used < 1:
            warn_user(f"{what}: it is started again from other weights.", RuntimeWarning)
            net.reset()  # pyright: ignore[reportCallIssue]
            return True
        warn_user(
            f"{what}: such data may not tell them apart; or try a lower learning rate, more simulations or another "
            "embedding net.",
            RuntimeWarning,
        )
        return False

    @torch.no_grad()
    def _choose_weights(self, net: nn.Module, last: dict[str, Tensor]) -> None:
        """Take the last weights unless the best ones' held-out losses are lower by more than three standard errors.

        sbi's loop leaves the weights of the epoch with the lowest validation loss. Where the learning rate has fallen to
        nothing the last are better in truth, and the lowest of many noisy numbers may well belong to an early epoch: of 30
        independent ones it is two standard errors too low.

        The standard error is what it is if the last weights are right: the variance of the losses' difference under the
        probabilities q that they give. A net that is far too sure says that it is hardly ever wrong. Its few large losses
        then refute it, while the scatter of these losses among the simulations would excuse it.
        """
        index = torch.cat([m for m, _ in self._held_out])
        (best, _), weights = self._of_each_model(), {k: v.clone() for k, v in net.state_dict().items()}
        net.load_state_dict(last)
        losses, q = self._of_each_model()
        gain = losses - best
        variance = (q * (gain - (q * gain).sum(-1, keepdim=True)).square()).sum()
        if gain.gather(-1, index.cpu().unsqueeze(-1)).sum() > 3 * variance.sqrt():
            net.load_state_dict(weights)

    def _of_each_model(self) -> tuple[Tensor, Tensor]:
        """Of held-out simulations, the loss if each model were the true one, and the models' probabilities, both (N, J)."""

        def judge(batch: tuple[Tensor, ...]) -> Tensor:
            evidences = self._evidences(batch)
            models = torch.arange(self.num_models, device=evidences.device).expand_as(evidences)
            losses = [self._loss(evidences, model) for model in models.unbind(-1)]
            return torch.stack([torch.stack(losses, -1), (evidences + self._loss.log_frequencies).softmax(-1)], 1)

        return self._of_held_out(judge).unbind(1)  # pyright: ignore[reportReturnType]


def _is_lower(first: Tensor, second: Tensor) -> bool:
    """Whether losses (N,) of the same simulations are lower on average, by more than two standard errors."""
    gain = second - first
    return bool(gain.mean() > 2 * gain.std(unbiased=False) / len(gain) ** 0.5)
