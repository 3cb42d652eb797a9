"""What studies without a device share: samples that can be afforded, checks, what is written."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel

from tvmx.accuracy import Dataset, Metric, Samples, spread
from tvmx.errors import DataError
from tvmx.ir import Plan
from tvmx.store import make_folder, write_atomic

if TYPE_CHECKING:
    from tvmx.explore._request import Progress
    from tvmx.ir import Model

REPORT, PLAN = "report.json", "plan.json"

VISIBLE_S = 60.0
"""For what choices are made on, where the samples are not given."""
HELD_OUT_S = 20.0
_FEWEST = 16
_PROBE_S = 0.5


def affordable(
    samples: Samples, batch: int, run_s: Callable[[Samples], float], runs: float, seconds: float
) -> Samples:
    """As many as ``runs`` runs take ``seconds`` on, evenly spread, but no fewer than 16.

    ``run_s`` tells the seconds of one run on some samples.
    """
    probe = spread(samples, batch)
    run_s(probe)  # compiles
    taken = run_s(probe)
    while taken < _PROBE_S and len(probe) < len(samples):  # many at once take less each
        probe = spread(samples, 4 * len(probe))
        taken = run_s(probe)
    wanted = seconds * len(probe) / max(1e-9, taken * runs)
    return spread(samples, max(_FEWEST, int(wanted)))


def check_classes(model: Model, data: Dataset, metric: Metric) -> None:
    """Outputs that the default metric cannot score are told before minutes of work.

    Raises DataError.
    """
    shape = model.outputs[0].shape
    if len(shape) < 2:
        return
    zeros = np.zeros((1, *shape[1:]), np.float32)
    for half in (data.visible, data.held_out):
        highest = None if half.labels is None else half.labels.max(keepdims=True)
        try:
            metric.score(zeros, labels=highest, reference=zeros)
        except DataError as err:
            own = "score it by a metric of your own: --metric MODULE:FUNCTION"
            hint = own if half.labels is None else err.hint
            raise DataError(err.message, hint=hint) from err


def counted(progress: Progress, total: int) -> Callable[[int], None]:
    """Each call is one more of ``total`` steps of the stage."""
    done = itertools.count(1)
    return lambda _: progress.update(
        next(done), total, best_us=None, baseline_us=None, seconds_left=None
    )


def write_study(out: Path, plan: Plan, report: BaseModel) -> None:
    """Plan and report, the plan first: a report names a plan that is there."""
    make_folder(out)
    write_atomic(out / PLAN, plan.model_dump_json(indent=1) + "\n")
    write_atomic(out / REPORT, report.model_dump_json(indent=1) + "\n")
