"""Predictions of outcomes by the user's own regressor (scikit-learn's interface), from past units only."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....utils.checks import check_count

__all__ = ["PastNuisance"]

_FEWEST = 10  # units of an arm that a regressor is fitted to; before, its mean serves, or the other arm's


class PastNuisance:
    """One copy of a regressor for each arm, fitted to that arm's past units whenever a prediction is wanted.

    The regressor is fitted only to units whose outcomes are recorded. Its prediction for a unit is fixed when the unit is
    assigned. So a bad regressor costs precision, never validity.

    Args:
        regressor: Object with `fit(X, y)` and `predict(X)` on numpy arrays (n, d), (n,); copied, never changed.
        refit_every: Refit an arm's copy, from scratch, whenever its outcomes reach a multiple of this number.
        num_arms: Number K of arms.

    Raises:
        TypeError: If the regressor is anything else, e.g. numbers computed elsewhere.

    Example:
        >>> from sklearn.linear_model import LinearRegression
        >>> nuisance = PastNuisance(LinearRegression())
        >>> for i in range(20):
        ...     nuisance.observe(torch.tensor([float(i)]), 1, 2.0 * i)
        >>> nuisance.predict(torch.tensor([[30.0]])).round(decimals=4)  # arm 0 without outcomes: the mean of arm 1
        tensor([[19., 60.]], dtype=torch.float64)
    """

    def __init__(self, regressor: Any, refit_every: int = 1, num_arms: int = 2):
        if isinstance(regressor, type) or not all(callable(getattr(regressor, m, None)) for m in ("fit", "predict")):
            raise TypeError(
                "nuisance must be an object with fit(X, y) and predict(X), which the experiment fits to past units itself: "
                f"predictions made elsewhere might have seen the outcome. Got {type(regressor).__name__}."
            )
        self.refit_every = check_count(refit_every, "refit_every")
        self._regressor, self._num_arms = copy.deepcopy(regressor), num_arms
        self.forget()

    def forget(self) -> None:
        """Drop all units."""
        num_arms = self._num_arms
        self._models: list[Any] = [None] * num_arms
        self._covariates: list[list[np.ndarray]] = [[] for _ in range(num_arms)]
        self._outcomes: list[list[float]] = [[] for _ in range(num_arms)]
        self._fitted = [0] * num_arms

    def observe(self, covariates: Tensor, arm: int, outcome: float) -> None:
        """Take up a unit whose outcome is known: covariates (d,)."""
        self._covariates[arm].append(covariates.numpy())
        self._outcomes[arm].append(outcome)

    def predict(self, covariates: Tensor) -> Tensor:
        """Predicted outcomes (n, K), float64, of each arm for covariates (n, d).

        Raises:
            ValueError: If the regressor fails, or predicts something that is not a finite number for each unit.
        """
        each = [self._predict_arm(arm, covariates.numpy()) for arm in range(len(self._models))]
        return torch.from_numpy(np.stack(each, -1))

    def _predict_arm(self, arm: int, covariates: np.ndarray) -> np.ndarray:
        known = len(self._outcomes[arm])
        used = known - known % self.refit_every  # depends on what is known alone, so that a loaded experiment agrees
        if used < _FEWEST:
            seen = self._outcomes[arm] or list(chain(*self._outcomes)) or [0.0]
            return np.full(len(covariates), float(np.mean(seen)))
        try:
            if self._fitted[arm] != used:
                self._models[arm] = copy.deepcopy(self._regressor)
                self._models[arm].fit(np.stack(self._covariates[arm][:used]), np.array(self._outcomes[arm][:used]))
                self._fitted[arm] = used
            predicted = np.asarray(self._models[arm].predict(covariates), dtype=float)
        except Exception as err:
            raise ValueError(f"the nuisance failed for arm {arm} after {used} of its units: {err}") from err
        if predicted.shape != (len(covariates),) or not np.isfinite(predicted).all():
            raise ValueError(
                f"the nuisance must predict {len(covariates)} finite numbers for arm {arm}, got {predicted!r}."
            )
        return predicted
