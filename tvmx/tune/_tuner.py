"""KnobTuner: which configs of one template to measure next for one workload."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmx.errors import MeasureError, UsageError
from tvmx.ir._config import Config, Space
from tvmx.ir._workload import Conv2dWorkload, DenseWorkload
from tvmx.targets import Target
from tvmx.tune._features import config_features
from tvmx.tune._model import CostModel
from tvmx.tune._sampler import spread, unit_points


@dataclass(frozen=True)
class TunerParameters:
    """``warmup`` observations come from the space-filling sample before the model ranks.

    ``epsilon`` is the share of each ranked batch spent on exploration, ``batch`` the number
    of observations that :meth:`KnobTuner.finished` counts as one batch, ``improvement`` what
    counts as one (0.01: 1 %), ``ranked`` the most points the model ranks at once.
    """

    warmup: int = 12
    epsilon: float = 0.1
    batch: int = 8
    improvement: float = 0.01
    ranked: int = 8192

    def __post_init__(self) -> None:
        if self.warmup < 1 or self.batch < 1 or self.ranked < 1:
            raise UsageError(f"tuner counts must be at least 1: {self}")
        if not 0 <= self.epsilon <= 1 or not 0 <= self.improvement < 1:
            raise UsageError(f"tuner shares must lie between 0 and 1: {self}")


class KnobTuner:
    """Proposes configs of ``space`` and learns from what is observed.

    The first batch starts with the default config, then fills the space evenly; after
    ``warmup`` observations XGBoost ranks what is left. No config is proposed twice. Proposals
    follow from the seed, the observations in their order and what is still pending alone:
    replaying a journal's observations into a fresh tuner continues where the first stopped.
    """

    def __init__(
        self,
        space: Space,
        workload: Conv2dWorkload | DenseWorkload,
        template_name: str,
        target: Target,
        seed: int = 0,
        parameters: TunerParameters | None = None,
    ) -> None:
        self.space = space
        self.workload = workload
        self.template_name = template_name
        self.target = target
        self.parameters = parameters or TunerParameters()
        self._seed = [seed, zlib.crc32(f"{template_name} {workload.digest}".encode())]
        self._points = space.points()
        self._number = {config: i for i, config in enumerate(self._points)}
        self._units = unit_points(space)
        self._features: npt.NDArray[np.float32] | None = None
        self._proposed: set[int] = set()
        self._observed: dict[int, float | None] = {}
        self._bests: list[float] = []

    @property
    def measured(self) -> int:
        """Observations so far, failures included."""
        return len(self._bests)

    @property
    def exhausted(self) -> bool:
        """Every config of the space has been proposed or observed."""
        return len(self._proposed) == len(self._points)

    def propose(self, n: int) -> list[Config]:
        """Up to ``n`` configs never proposed or observed; fewer when the space is exhausted."""
        if n < 0:
            raise UsageError(f"cannot propose {n} configs")
        rng = np.random.default_rng([*self._seed, self.measured])
        chosen: list[int] = []
        default = self._number[self.space.default]
        if n and default not in self._proposed:
            chosen.append(default)
            self._proposed.add(default)
        chosen += self._choose(n - len(chosen), rng)
        self._proposed.update(chosen)
        return [self._points[i] for i in chosen]

    def observe(self, config: Config, latency_us: float | None) -> None:
        """Record a latency in us, or None for a config that failed.

        A config observed again replaces what was known of it: a re-timing is nearer the
        truth. Raises IllegalConfigError for a config outside the space and MeasureError for
        a latency that is not positive and finite.
        """
        self.space.check(config, self.template_name)
        if latency_us is not None and not (math.isfinite(latency_us) and latency_us > 0):
            raise MeasureError(
                f"latency of {config!r} of template {self.template_name!r} is {latency_us} us"
            )
        index = self._number[config]
        self._proposed.add(index)
        self._observed[index] = latency_us
        known = self.best()
        self._bests.append(known[1] if known else math.inf)

    def best(self) -> tuple[Config, float] | None:
        """The fastest config and its latency in us; None before the first success."""
        known = [(us, i) for i, us in self._observed.items() if us is not None]
        if not known:
            return None
        us, index = min(known, key=lambda pair: pair[0])
        return self._points[index], us

    def history(self) -> tuple[float, ...]:
        """Best latency in us after each observation; inf before the first success."""
        return tuple(self._bests)

    def finished(self, patience: int) -> bool:
        """Nothing is left, or ``patience`` batches brought no improvement worth the name."""
        if len(self._observed) == len(self._points):
            return True
        window = patience * self.parameters.batch
        if self.measured <= window:
            return False
        before, now = self._bests[-1 - window], self._bests[-1]
        return now == before or now > before * (1 - self.parameters.improvement)

    def _choose(self, count: int, rng: np.random.Generator) -> list[int]:
        free = np.array([i for i in range(len(self._points)) if i not in self._proposed], np.int64)
        count = min(count, len(free))
        if count <= 0:
            return []
        known = [us for us in self._observed.values() if us is not None]
        if len(self._observed) < self.parameters.warmup or len(known) < 2:
            return self._spread(free, count, rng)
        exploring = int(rng.binomial(count, self.parameters.epsilon))
        ranked = self._ranked(free, count - exploring, rng)
        rest = np.setdiff1d(free, np.array(ranked, np.int64))
        return ranked + [int(i) for i in rng.permutation(rest)[:exploring]]

    def _spread(
        self, free: npt.NDArray[np.int64], count: int, rng: np.random.Generator
    ) -> list[int]:
        taken = np.array(sorted(self._proposed), np.int64)
        chosen = spread(self._units, taken, free, count, rng)
        if len(chosen) < count:
            rest = np.setdiff1d(free, np.array(chosen, np.int64))
            chosen += [int(i) for i in rng.permutation(rest)[: count - len(chosen)]]
        return chosen

    def _ranked(
        self, free: npt.NDArray[np.int64], count: int, rng: np.random.Generator
    ) -> list[int]:
        features = self._feature_matrix()
        rows = np.array(list(self._observed), np.int64)
        model = CostModel(int(rng.integers(2**31)))
        model.fit(features[rows], self._scores())
        # Shuffled first: configs in the same leaves tie, and ties must not favour low indices.
        pool = rng.permutation(free)[: self.parameters.ranked]
        order = np.argsort(model.predict(features[pool]), kind="stable")
        return [int(i) for i in pool[order[:count]]]

    def _scores(self) -> npt.NDArray[np.float64]:
        """Log latencies; a failure counts as twice the slowest success."""
        known = [us for us in self._observed.values() if us is not None]
        bad = math.log(2 * max(known))
        return np.array([bad if us is None else math.log(us) for us in self._observed.values()])

    def _feature_matrix(self) -> npt.NDArray[np.float32]:
        if self._features is None:
            table = config_features(self.space, self._points, self.workload, self.target)
            self._features = table.varying()
        return self._features
