"""Scoring whole plans on evaluation data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tvmx.accuracy import DEFAULT_METRIC, Metric, Samples, Score, spread
from tvmx.explore._reference import Reference
from tvmx.measure import NetworkJob, Runner

if TYPE_CHECKING:
    from tvmx.ir import Model

_FEWEST = 64


class Scorer:
    """Scores candidates against labels, or against the float reference's decisions.

    The model's first output decides, by ``metric``. ``reference`` is the float score the drop is
    told from. Raises DataError where the metric cannot score the float outputs.
    """

    def __init__(
        self, model: Model, samples: Samples, run_reference: Reference,
        metric: Metric = DEFAULT_METRIC,
    ) -> None:  # fmt: skip
        self._specs = {spec.name: spec for spec in model.inputs}
        self._samples, self._metric = samples, metric
        outputs = [(run_reference(feed.arrays)[0], feed.count) for feed in self._feeds()]
        self._float = np.concatenate([out[:count] for out, count in outputs])
        self.reference = self._score(self._float)

    @property
    def samples(self) -> int:
        """On how many candidates are scored."""
        return len(self._samples)

    def __call__(self, runner: Runner, job: NetworkJob) -> Score:
        """Run a candidate over all samples on the device and score it.

        Raises MeasureError when the device or the candidate fails on the way, DataError where
        the metric cannot score its outputs.
        """
        feeds = list(self._feeds())
        outputs = runner.run(job, [feed.arrays for feed in feeds])
        parts = [out[0][: feed.count] for out, feed in zip(outputs, feeds, strict=True)]
        return self._score(np.concatenate(parts))

    def _feeds(self) -> Any:
        return self._samples.feeds(self._specs)

    def _score(self, outputs: Any) -> Score:
        return self._metric.score(outputs, labels=self._samples.labels, reference=self._float)


def affordable(samples: Samples, calls: int, per_sample_s: float, seconds: float) -> Samples:
    """As many samples, evenly spread, as ``calls`` runs of each take ``seconds`` for.

    At least 64, however short the time.
    """
    wanted = int(seconds / max(1e-9, calls * per_sample_s))
    return samples if wanted >= len(samples) else spread(samples, max(_FEWEST, wanted))
