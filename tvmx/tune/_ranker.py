"""Ranker: one cost model for all workloads, on features of the kernels' loop nests (XGBoost)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]

_ROUNDS = 60
_PARAMETERS: dict[str, Any] = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_bin": 64,
    "max_depth": 5,
    "eta": 0.15,
    "min_child_weight": 2,
    "colsample_bytree": 0.6,
    "subsample": 0.7,
    "nthread": 1,  # a few hundred rows: threads cost more than they bring, and disturb measuring
    "verbosity": 0,
}
_OWN_WEIGHT = 4.0
"""What a row of the workload that is ranked counts, beside one of another workload."""
_MEMBERS = 3
_OPTIMISM = 2.0
"""Standard deviations, between members of the ensemble, by which a candidate is thought better."""
_LEAST_ROWS = 8
_MOST_OTHERS = 1024
"""Rows of other workloads that a model is trained on, the latest: more take longer than a build."""
_FAILURE = math.log(2.0)
_PRIOR = "cycles"


@dataclass(frozen=True)
class _Row:
    group: str
    features: Mapping[str, float]
    log_us: float | None


class Ranker:
    """Predicts how candidates of one workload compare, from what all workloads taught.

    A row is a measured kernel: the features of its loop nest (``tvmx.build.nest_features``), its
    workload as ``group``, its latency or failure. What is learned is the log latency less that
    of the analytical model (the feature ``cycles``), less the group's own level: how much
    slower than another of the same workload a kernel is, which is what carries over to layers of
    other sizes. Without any row candidates rank by the analytical model. A failure counts as
    twice the slowest success of its workload.

    Deterministic for equal rows in equal order and an equal seed. The idea of one model over
    loop-nest features for all workloads: T. Chen et al., "Learning to optimize tensor programs",
    NeurIPS 2018, section 3; gradient-boosted trees: T. Chen and C. Guestrin, "XGBoost", KDD 2016.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._rows: list[_Row] = []
        self._fitted: tuple[tuple[str, int], list[str], list[Any]] = (("", 0), [], [])

    def __len__(self) -> int:
        return len(self._rows)

    def learn(self, group: str, features: Mapping[str, float], latency_us: float | None) -> None:
        """Add a measured kernel; ``latency_us`` is None where it failed."""
        known = None if latency_us is None else math.log(latency_us)
        self._rows.append(_Row(group, features, known))

    def rank(self, group: str, candidates: Sequence[Mapping[str, float]]) -> Scores:
        """Scores (candidates,) of kernels of workload ``group``: lower is expected to be faster.

        Differences of scores are differences of log latency.
        """
        prior = np.array([_prior(features) for features in candidates])
        if not len(prior):
            return prior
        names, boosters = self._model(group)
        if not boosters:
            return prior
        matrix = _matrix(candidates, names)
        learned = np.array([booster.inplace_predict(matrix) for booster in boosters], np.float64)
        scores: Scores = prior + learned.mean(axis=0) - _OPTIMISM * learned.std(axis=0)
        return scores

    def _model(self, group: str) -> tuple[list[str], list[Any]]:
        """Names of the features, and the trees for a workload; None while there is too little."""
        if self._fitted[0] != (group, len(self._rows)):
            self._fitted = ((group, len(self._rows)), *self._fit(group))
        return self._fitted[1:]

    def _fit(self, group: str) -> tuple[list[str], list[Any]]:
        others = [row for row in self._rows if row.group != group][-_MOST_OTHERS:]
        rows = others + [row for row in self._rows if row.group == group]
        labels = _labels(rows)
        used = [i for i, label in enumerate(labels) if label is not None]
        if len(used) < _LEAST_ROWS:
            return [], []
        import xgboost

        names = sorted(rows[used[-1]].features)
        data = xgboost.DMatrix(
            _matrix([rows[i].features for i in used], names),
            label=[labels[i] for i in used],
            weight=[_OWN_WEIGHT if rows[i].group == group else 1.0 for i in used],
            nthread=1,
        )
        seeds = range(self._seed * _MEMBERS, (self._seed + 1) * _MEMBERS)
        parameters = {**_PARAMETERS, "base_score": 0.0}
        return names, [xgboost.train({**parameters, "seed": s}, data, _ROUNDS) for s in seeds]


def _prior(features: Mapping[str, float]) -> float:
    """Log of the modelled cycles."""
    return features.get(_PRIOR, 0.0) * math.log(2.0)


def _labels(rows: Sequence[_Row]) -> list[float | None]:
    """Log latency over the model's, less the group's median; None where a group never worked."""
    over: dict[str, list[float]] = {}
    worst: dict[str, float] = {}
    for row in rows:
        if row.log_us is not None:
            over.setdefault(row.group, []).append(row.log_us - _prior(row.features))
            worst[row.group] = max(row.log_us, worst.get(row.group, row.log_us))
    level = {group: float(np.median(values)) for group, values in over.items()}
    labels: list[float | None] = []
    for row in rows:
        if row.group not in level:
            labels.append(None)
            continue
        us = worst[row.group] + _FAILURE if row.log_us is None else row.log_us
        labels.append(us - _prior(row.features) - level[row.group])
    return labels


def _matrix(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> npt.NDArray[np.float32]:
    return np.array([[row.get(name, 0.0) for name in names] for row in rows], np.float32)
