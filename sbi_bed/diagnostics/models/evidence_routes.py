"""Compare several routes to the evidence on the same data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...simulators.models.model_family import as_log_prior
from ...utils.text_table import format_table

__all__ = ["EvidenceRoutes", "compare_evidence_routes"]


@dataclass(frozen=True)
class EvidenceRoutes:
    """Log Bayes factors of the same data sets by several routes.

    Attributes:
        log_bayes_factors: Route -> log p(x | M_i) − log p(x | M_0) for i = 1 … J − 1, (B, J − 1), nats.
        log_probs: Route -> log p(M_j | x), (B, J).
        reference: The route that the others are compared with: "exact", or the first.
        spread: Largest difference between two routes' probabilities of a model, for each data set, (B,).
    """

    log_bayes_factors: dict[str, Tensor]
    log_probs: dict[str, Tensor]
    reference: str
    spread: Tensor

    def errors(self, route: str, largest: float = float("inf")) -> Tensor:
        """Differences (N,) of a route's log Bayes factors from the reference's, where that is at most `largest` nats."""
        reference = self.log_bayes_factors[self.reference]
        return (self.log_bayes_factors[route] - reference)[reference.abs() <= largest]

    def __str__(self) -> str:
        others = [route for route in self.log_bayes_factors if route != self.reference]
        rows = []
        for route in others:
            near, to_40 = self.errors(route, 9.0), self.errors(route, 40.0)
            probability = (self.log_probs[route].exp() - self.log_probs[self.reference].exp()).abs()
            rows.append(
                [
                    route,
                    f"{float(near.square().mean().sqrt()):.3f}",
                    f"{float(to_40.square().mean().sqrt()):.3f}",
                    f"{float(probability.mean()):.4f}",
                    f"{float(probability.max()):.3f}",
                ]
            )
        head = [f"against {self.reference}", "log BF RMSE, ≤ 9 nats", "≤ 40 nats", "mean |Δ p|", "largest"]
        return format_table(head, rows)


def compare_evidence_routes(
    routes: Mapping[str, Any], x: Tensor, exact: Tensor | None = None, model_prior: Any = None
) -> EvidenceRoutes:
    """Ask several routes about the same data sets.

    Args:
        routes: Name -> anything with `log_evidences(x)` (B, J): `ModelPosterior` with either loss, `PosteriorEvidence`.
        x: Data sets (B, *event).
        exact: Exact log-evidences (B, J), where there are such.
        model_prior: Positive weights (J,) of the models behind the probabilities; equal ones if None.

    Raises:
        ValueError: If there is nothing to compare, or the routes are over different numbers of models.

    Example:
        >>> class Known:
        ...     def log_evidences(self, x):
        ...         return torch.stack([-(x[:, 0] ** 2), -((x[:, 0] - 1) ** 2)], -1).double()
        >>> x = torch.randn(100, 1)
        >>> routes = compare_evidence_routes({"one": Known(), "other": Known()}, x)
        >>> routes.spread.max().item()
        0.0
    """
    evidences = {} if exact is None else {"exact": torch.as_tensor(exact).double()}
    evidences |= {name: route.log_evidences(x).double() for name, route in routes.items()}
    if len(evidences) < 2:
        raise ValueError("give at least two routes, or one and exact=, to compare.")
    shapes = {name: tuple(value.shape) for name, value in evidences.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"all routes must give log-evidences of one shape (B, J), got {shapes}.")
    log_prior = as_log_prior(model_prior, next(iter(shapes.values()))[-1])
    log_probs = {name: (value + log_prior).log_softmax(-1) for name, value in evidences.items()}
    stacked = torch.stack(list(log_probs.values())).exp()
    return EvidenceRoutes(
        {name: value[:, 1:] - value[:, :1] for name, value in evidences.items()},
        log_probs,
        next(iter(evidences)),
        (stacked.amax(0) - stacked.amin(0)).amax(-1),
    )
