"""KnobTuner: which configs of one template to measure next for one workload."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvmx.errors import MeasureError, UsageError
from tvmx.ir._config import Config, Space
from tvmx.ir._workload import Conv2dWorkload, DenseWorkload
from tvmx.targets import Target
from tvmx.tune._features import knob_features
from tvmx.tune._imitation import Imitation
from tvmx.tune._ranker import Ranker
from tvmx.tune._sampler import diverse, neighbours, spread, unit_points

Indices = npt.NDArray[np.int64]

_POOL = 32  # configs of the whole space that each one to be described is picked from


@dataclass(frozen=True)
class TunerParameters:
    """How a tuner spends its effort.

    ``first`` configs are described before the first proposals, then ``described`` times as many
    as are proposed. The share ``epsilon`` of the proposals is exploration: of the ``promising``
    share of what is described, as far as possible from what was measured. Of two configs that
    differ in one knob only, the second is thought slower by ``alike`` (0.1: 10 %), so that a
    batch is no row of near copies. ``batch`` is the number of observations that
    :meth:`KnobTuner.finished` counts as one batch, ``improvement`` what counts as one (0.01: 1 %).
    """

    first: int = 96
    described: int = 5
    epsilon: float = 0.25
    promising: float = 0.25
    alike: float = 0.1
    batch: int = 8
    improvement: float = 0.01

    def __post_init__(self) -> None:
        if min(self.first, self.batch, self.described) < 1:
            raise UsageError(f"tuner counts must be at least 1: {self}")
        shares = (self.epsilon, self.promising, self.alike, self.improvement)
        if min(shares) < 0 or max(shares) > 1 or self.improvement == 1:
            raise UsageError(f"tuner shares must lie between 0 and 1: {self}")


class KnobTuner:
    """Proposes configs of ``space`` and learns from what is observed.

    The default config comes first. Then, for each batch: :meth:`shortlist` names configs whose
    kernels are worth a description (:meth:`describe`), and :meth:`propose` picks those that the
    ``ranker``, shared by all tuners, expects to be fastest. A shortlist holds neighbours of the
    fastest configs (of the default, to begin with), what a model of the knobs alone, taught by
    the ranker, likes best in the whole space, and an even spread: describing takes a template and
    some milliseconds, that model nothing. Kernels of equal description are proposed once, and
    no config twice. What was never described is proposed by spread.

    Proposals follow from the seed, the descriptions, the ranker's rows and the observations
    alone: replaying a journal's into fresh tuners continues where the first ones stopped.
    """

    def __init__(
        self,
        space: Space,
        workload: Conv2dWorkload | DenseWorkload,
        template_name: str,
        target: Target,
        seed: int = 0,
        parameters: TunerParameters | None = None,
        ranker: Ranker | None = None,
    ) -> None:
        self.space = space
        self.workload = workload
        self.template_name = template_name
        self.target = target
        self.parameters = parameters or TunerParameters()
        self.ranker = ranker or Ranker(seed)
        self._seed = [seed, zlib.crc32(f"{template_name} {workload.digest}".encode())]
        self._points = space.points()
        self._number = {config: i for i, config in enumerate(self._points)}
        self._units = unit_points(space)
        self._knobs: npt.NDArray[np.float32] | None = None
        self._described: dict[int, Mapping[str, float] | None] = {}
        self._proposed: set[int] = set()
        self._observed: dict[int, float | None] = {}
        self._bests: list[float] = []
        self._shortlists = 0

    @property
    def measured(self) -> int:
        """Observations so far, failures included."""
        return len(self._bests)

    @property
    def exhausted(self) -> bool:
        """Every config of the space has been proposed or observed."""
        return len(self._proposed) == len(self._points)

    def shortlist(self, n: int) -> list[Config]:
        """Configs to describe before the next ``n`` are proposed."""
        rng = self._rng(1)
        free = self._free(self._described)
        if not len(free):
            return []
        if not self._shortlists:
            count, first = self.parameters.first, [self._number[self.space.default]]
            chosen = [i for i in first if i in free] + self._near(first, free, count // 3)
        else:
            count = self.parameters.described * n
            chosen = self._near(self._fastest(2), free, count // 3)
            chosen += self._liked(np.setdiff1d(free, chosen), count // 2, rng)
        self._shortlists += 1
        rest = np.setdiff1d(free, chosen)
        taken = np.array(sorted({*self._described, *chosen}), np.int64)
        chosen += spread(self._units, taken, rest, max(0, count - len(chosen)), rng)
        return [self._points[i] for i in chosen]

    def describe(self, config: Config, features: Mapping[str, float] | None) -> None:
        """Tell the features of a config's kernel; None where its template failed.

        Raises IllegalConfigError for a config outside the space.
        """
        self.space.check(config, self.template_name)
        self._described[self._number[config]] = features

    def propose(self, n: int) -> list[Config]:
        """Up to ``n`` configs never proposed or observed; fewer when the space is exhausted."""
        if n < 0:
            raise UsageError(f"cannot propose {n} configs")
        rng = self._rng(0)
        chosen: list[int] = []
        default = self._number[self.space.default]
        if n and default not in self._proposed:
            chosen.append(default)
            self._proposed.add(default)
        chosen += self._choose(n - len(chosen), rng)
        self._proposed.update(chosen)
        return [self._points[i] for i in chosen]

    def observe(self, config: Config, latency_us: float | None) -> None:
        """Record a latency in us, or None for a config that failed; the ranker learns it.

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
        features = self._described.get(index)
        if features is not None:
            self.ranker.learn(self.workload.digest, features, latency_us)
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

    def _rng(self, purpose: int) -> np.random.Generator:
        return np.random.default_rng([*self._seed, self.measured, self._shortlists, purpose])

    def _free(self, without: Mapping[int, object]) -> Indices:
        """Points that are neither proposed nor in ``without``."""
        free = (i for i in range(len(self._points)) if i not in self._proposed)
        return np.array([i for i in free if i not in without], np.int64)

    def _fastest(self, count: int) -> list[int]:
        known = [(us, i) for i, us in self._observed.items() if us is not None]
        return [i for _, i in sorted(known)[:count]]

    def _near(self, points: list[int], free: Indices, count: int) -> list[int]:
        """Up to ``count`` free points one knob away from ``points``, nearest first."""
        allowed = set(free.tolist())
        found = [i for point in points for i in neighbours(self._units, point) if i in allowed]
        return list(dict.fromkeys(found))[:count]

    def _liked(self, free: Indices, count: int, rng: np.random.Generator) -> list[int]:
        """The best of ``free`` by a model of the knobs that imitates the ranker."""
        known = [i for i, features in self._described.items() if features is not None]
        if len(known) < 2 or not len(free) or not count:
            return []
        if self._knobs is None:
            _, self._knobs = knob_features(self.space, self._points, self.workload, self.target)
        model = Imitation(int(rng.integers(2**31)))
        model.fit(self._knobs[known], self._scores(known))
        # Shuffled first: configs in the same leaves tie, and ties must not favour low indices.
        pool = rng.permutation(free)
        liked = model.predict(self._knobs[pool]).astype(np.float64)
        best = np.argsort(liked, kind="stable")[: _POOL * count]
        chosen = diverse(liked[best], self._units[pool[best]], count, self.parameters.alike)
        return [int(pool[best[i]]) for i in chosen]

    def _scores(self, indices: list[int]) -> npt.NDArray[np.float64]:
        """The ranker's scores of described configs."""
        rows = [features for i in indices if (features := self._described[i]) is not None]
        return self.ranker.rank(self.workload.digest, rows)

    def _choose(self, count: int, rng: np.random.Generator) -> list[int]:
        free = self._free({})
        count = min(count, len(free))
        if count <= 0:
            return []
        chosen = self._ranked(count, rng)
        if len(chosen) < count:
            taken = np.array(sorted({*self._proposed, *chosen}), np.int64)
            # Those whose template failed come last.
            sound = [i for i in free if i not in chosen and self._described.get(i, {}) is not None]
            rest = np.array(sound, np.int64)
            chosen += spread(self._units, taken, rest, count - len(chosen), rng)
        if len(chosen) < count:
            left = np.setdiff1d(free, chosen)
            chosen += [int(i) for i in rng.permutation(left)[: count - len(chosen)]]
        return chosen

    def _ranked(self, count: int, rng: np.random.Generator) -> list[int]:
        """Described configs: the ranker's best, no near copies, and by chance a few others."""
        seen = {_kernel(self._described.get(i)) for i in self._proposed}
        kernels: dict[tuple[float, ...], int] = {}
        for i, features in self._described.items():
            if features is not None and i not in self._proposed:
                kernel = _kernel(features)
                if kernel not in seen:
                    kernels.setdefault(kernel, i)
        fresh = list(kernels.values())
        if not fresh:
            return []
        scores = self._scores(fresh)
        exploring = int(rng.binomial(count, self.parameters.epsilon))
        best = diverse(scores, self._units[fresh], count - exploring, self.parameters.alike)
        ranked = [fresh[i] for i in best]
        others = [fresh[i] for i in np.argsort(scores, kind="stable") if i not in best]
        most = max(exploring, math.ceil(self.parameters.promising * len(others)))
        taken = np.array(sorted({*self._observed, *ranked}), np.int64)
        rest = np.array(others[:most], np.int64)
        return ranked + spread(self._units, taken, rest, exploring, rng)


def _kernel(features: Mapping[str, float] | None) -> tuple[float, ...]:
    """Equal for kernels of equal description."""
    return tuple(features.values()) if features else ()
