"""A model of the knobs alone that imitates the ranker (XGBoost)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

ROUNDS = 60
_PARAMETERS: dict[str, Any] = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_bin": 32,
    "max_depth": 4,
    "eta": 0.15,
    "min_child_weight": 1,
    "colsample_bytree": 0.7,
    "subsample": 0.9,
    "nthread": 1,  # a few dozen rows: threads cost more than they bring, and disturb measuring
    "verbosity": 0,
}


class Imitation:
    """Predicts the ranker's scores from knobs, for configs that nobody has described.

    Scoring thousands of configs takes it milliseconds. Deterministic for equal data and seed.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._booster: Any = None

    def fit(self, features: npt.NDArray[np.float32], scores: npt.NDArray[np.float64]) -> None:
        """Train on ``features`` (rows, columns) and ``scores`` (rows,), lower is faster."""
        import xgboost

        data = xgboost.DMatrix(features, label=scores, nthread=1)
        parameters = {**_PARAMETERS, "seed": self._seed, "base_score": float(scores.mean())}
        self._booster = xgboost.train(parameters, data, ROUNDS)

    def predict(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Scores (rows,) of ``features`` (rows, columns)."""
        scores: npt.NDArray[np.float32] = self._booster.inplace_predict(features)
        return scores
