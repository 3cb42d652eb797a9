"""Cost tables by ``tvmx explore``, on this machine or on simulated boards.

All layers may be int8 or sparse, so data is needed. A network of random weights gets seeded noise,
and what a layer loses is how far the outputs are from the float network's; digits is trained, and
gets its test images.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks._folder import SEED, Folder
from benchmarks._models import CALIBRATION, prepare_model
from benchmarks._search_cases import TABLES
from benchmarks._stages import alone
from tvmx.errors import MeasureError
from tvmx.explore import ExploreRequest, ExploreResult, Silent, explore
from tvmx.ir import CostTable
from tvmx.measure import DeviceAddress
from tvmx.simulate import SimulatedBoard
from tvmx.store import Run, make_folder, write_atomic
from tvmx.targets import load_target

BOARDS = {"a53": "rpi3b+", "a72": "rpi4", "a76": "rpi5"}
"""Simulated devices of the tables, by what their file names say."""
HOST = "host"
DEVICES = (HOST, *BOARDS)
DIGITS = "digits"
MINUTES = {
    DIGITS: 1.0, "squeezenet": 2.5, "bvlc_alexnet": 2.5, "mobilenet_v1": 3.0, "mobilenet_v2": 3.5,
    "resnet50": 4.0, "inception_v1": 4.5, "vgg19": 4.0,
}  # fmt: skip
"""Budgets on this machine; all of them together 25 minutes."""
_SAMPLES = 24
_POINTS = {DIGITS: 1.0}
_RANDOM_POINTS = 5.0  # of agreement with the float network: there is no accuracy to lose


@dataclass(frozen=True)
class Exploration:
    """One network explored on one device; ``budget_s`` and ``trials`` as of ``explore``."""

    network: str
    device: str
    out: Path
    budget_s: float | None = None
    trials: int | None = None

    @property
    def folder(self) -> Folder:
        """The network's model, whatever the device."""
        return Folder(self.out / "models" / self.network)

    @property
    def model(self) -> Path:
        """What is explored."""
        return self.folder.onnx if self.network == DIGITS else self.folder.model

    @property
    def data(self) -> Path:
        """Calibration samples, inputs, and labels where there are any."""
        return self.folder.path / f"{self.network}.npz"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out / "runs" / f"{self.network}-{self.device}"

    @property
    def table(self) -> Path:
        """The committed table."""
        return TABLES / f"{self.network}-{self.device}.json"

    def prepare(self) -> None:
        """Write model and data, unless they are there."""
        make_folder(self.folder.path)
        if self.network == DIGITS:
            _write_digits(self.folder.path)
            return
        alone(prepare_model, self.folder)
        if not self.data.is_file():
            rng = np.random.default_rng(SEED + 1)
            shape = (3, 224, 224)
            np.savez(
                self.data,
                calibration=rng.standard_normal((CALIBRATION, *shape), dtype=np.float32),
                inputs=rng.standard_normal((_SAMPLES, *shape), dtype=np.float32),
            )

    def explored(self, say: Callable[[str], None]) -> ExploreResult:
        """Explore, go on where it was stopped, or return what came out; then keep the table."""
        self.prepare()
        found = self.finished() or _explore(self, say)
        table = CostTable.load(self.run / "work" / "cost_table.json")
        write_atomic(self.table, table.model_dump_json() + "\n")
        return found

    def finished(self) -> ExploreResult | None:
        """The result, where the exploration came to its end."""
        content = Run.load(self.run).result() if (self.run / "settings.json").is_file() else None
        return None if content is None else ExploreResult.model_validate(content)


def _explore(wanted: Exploration, say: Callable[[str], None]) -> ExploreResult:
    with ExitStack() as stack:
        address: DeviceAddress | None = None
        target = BOARDS.get(wanted.device, HOST)
        if target != HOST:
            address = stack.enter_context(SimulatedBoard(load_target(target))).address
        request = ExploreRequest(
            model=wanted.model, target=target, out=wanted.run, tracker=address, data=wanted.data,
            budget_s=wanted.budget_s, trials=wanted.trials, seed=SEED,
            max_accuracy_drop=_POINTS.get(wanted.network, _RANDOM_POINTS),
        )  # fmt: skip
        return explore(request, _Stages(say))


class _Stages(Silent):
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def stage(self, name: str) -> None:
        self._say(f"explore: {name}")

    def message(self, text: str) -> None:
        self._say(text)


def _write_digits(folder: Path) -> None:
    """Train the network of ``examples/digits.py``, unless that is done."""
    if (folder / f"{DIGITS}.npz").is_file():
        return
    script = Path(__file__).resolve().parents[1] / "examples" / "digits.py"
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(folder)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise MeasureError(f"{script.name} failed: {done.stderr.strip()[-300:]}")
