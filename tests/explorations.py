"""Explorations for tests: a tiny real network, and a scripted device and build pool."""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tvmx.build import BuildFailure, BuildResult, KernelBuild
from tvmx.explore import ExploreRequest, ExploreResult, explore
from tvmx.explore._whole import BuiltPlan, build_plan
from tvmx.ir import Conversion, Plan
from tvmx.measure import FakeRunner, Job, NetworkJob
from tvmx.targets import Target
from tvmx.testing.models import graph_model, onnx_reference

INPUT = (1, 8, 12, 12)
CLASSES = 5


def tiny_model(seed: int = 0) -> onnx.ModelProto:
    """Two 3x3 convolutions (8 -> 20 -> 20 channels), global mean, dense: ``image`` to ``logits``.

    20 channels fill no blocks of 8 or 16: blocked layouts cost weights and activations.
    """
    make, rng = helper.make_node, np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [
        make("Conv", ["image", "w1", "b1"], ["a"], name="first", pads=[1] * 4),
        make("Relu", ["a"], ["b"], name="act"),
        make("Conv", ["b", "w2"], ["c"], name="second", pads=[1] * 4),
        make("Relu", ["c"], ["d"]),
        make("GlobalAveragePool", ["d"], ["e"]),
        make("Flatten", ["e"], ["f"]),
        make("Gemm", ["f", "w3"], ["logits"], name="fc", transB=1),
    ]
    weights = {
        "w1": normal(20, 8, 3, 3), "b1": normal(20, 1)[:, 0], "w2": normal(20, 20, 3, 3),
        "w3": normal(CLASSES, 20),
    }  # fmt: skip
    return graph_model(nodes, {"image": INPUT}, {"logits": (1, CLASSES)}, weights)


def save_model(folder: Path, seed: int = 0) -> Path:
    """The tiny model as a file."""
    path = folder / f"tiny{seed}.onnx"
    path.write_bytes(tiny_model(seed).SerializeToString())
    return path


def save_data(folder: Path, model: Path, *, labels: bool, wrong: int = 4) -> Path:
    """24 evaluation samples; every ``wrong``-th label is not what the model answers."""
    rng = np.random.default_rng(7)
    inputs = rng.standard_normal((24, *INPUT[1:])).astype(np.float32)
    arrays: dict[str, Any] = {"calibration": inputs[:4], "inputs": inputs}
    if labels:
        answers = [onnx_reference(model, {"image": x[None]})[0].argmax() for x in inputs]
        arrays["labels"] = np.array(
            [(a + (i % wrong == 0)) % CLASSES for i, a in enumerate(answers)]
        )
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


class FakePool:
    """Builds nothing: each job gives a library of its own; templates in ``refuse`` fail."""

    refuse: frozenset[str] = frozenset()

    def __init__(self, workers: int = 1) -> None:
        self.jobs: list[KernelBuild] = []

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, job: KernelBuild) -> Future[BuildResult]:
        self.jobs.append(job)
        done: Future[BuildResult] = Future()
        text = f"{job.workload} {job.template} {job.config}"
        if job.template in self.refuse:
            done.set_result(BuildResult(error=BuildFailure("build", "refused")))
        else:
            digest = hashlib.sha256(text.encode()).hexdigest()
            done.set_result(BuildResult(library=job.library, digest=digest))
        return done


_built: dict[str, BuiltPlan] = {}


def build_once(name: str, plan: Plan, *rest: Any) -> BuiltPlan:
    """``build_plan`` that compiles equal plans once for all tests of this process."""
    *context, folder = rest
    if plan.digest not in _built:
        kept = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, kept, ignore_errors=True)
        _built[plan.digest] = build_plan("model", plan, *context, kept)
    found = _built[plan.digest]
    path = shutil.copy(found.build.path, folder / f"{name}.so")
    build = dataclasses.replace(found.build, path=path)
    return dataclasses.replace(found, name=name, plan=plan, build=build)


def unbuilt_conversion(conversion: Conversion, target: Target, folder: Path) -> Path:
    """Where the library would be, as the scripted device never loads it."""
    return folder / f"{conversion.source}_{conversion.destination}.so".replace("/", "-")


def noise(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return zlib.crc32(text.encode()) % 1000 / 1000


Script = Callable[[Job], Any]


def kernels(us: Callable[[str], float], **networks: Any) -> Script:
    """Kernels take ``us(label)`` and up to half more by config; networks what is told by name."""

    def script(job: Job) -> Any:
        if isinstance(job, NetworkJob):
            return networks.get(job.label, 100.0)
        return us(job.label) * (1 + noise(job.label) / 2)

    return script


def flat(label: str) -> float:
    """Every kernel takes 10 us, every conversion 1 us."""
    return 1.0 if label.startswith("NCHW") else 10.0


@contextmanager
def scripted(
    script: Script | None = None,
    network: Callable[[NetworkJob, Mapping[str, Any]], tuple[Any, ...]] | None = None,
    refuse: frozenset[str] = frozenset(),
    noise: float = 0.0,
) -> Iterator[FakeRunner]:
    """Explorations inside measure on a scripted device; nothing but whole networks is built."""
    runner = FakeRunner(script or kernels(flat), network=network, noise=noise)
    runner.close = lambda: None  # type: ignore[method-assign]

    @contextmanager
    def open_runner(*_: object, **__: object) -> Iterator[FakeRunner]:
        yield runner

    pool = type("Pool", (FakePool,), {"refuse": refuse})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tvmx.explore._explore.open_runner", open_runner)
        patch.setattr("tvmx.explore._explore.BuildPool", pool)
        patch.setattr("tvmx.explore._explore.RayPool", lambda cluster: pool())
        patch.setattr("tvmx.explore._explore.build_probe", lambda *_: None)
        patch.setattr("tvmx.explore._explore.build_plan", build_once)
        patch.setattr("tvmx.explore._transitions.build_conversion", unbuilt_conversion)
        yield runner


def explored(model: Path, out: Path, **changes: Any) -> ExploreResult:
    """Explore for the host with few trials."""
    settings: dict[str, Any] = {"target": "host", "trials": 12} | changes
    return explore(ExploreRequest(model=model, out=out, **settings))
