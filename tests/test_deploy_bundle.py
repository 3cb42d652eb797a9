"""Bundles: written whole, verified, run without tvmx; foreign folders and damage refused."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmx.build import build_network, host_arch
from tvmx.deploy import (
    Bundle,
    Figure,
    Manifest,
    Sizes,
    TensorSpec,
    installed_versions,
    load_bundle,
    write_bundle,
)
from tvmx.errors import BundleError, UnwritableError, UsageError
from tvmx.ir import Plan
from tvmx.targets import Cluster, Target

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
CLUSTER = Cluster(core="any", count=2, clock_mhz=1000, in_order=True, l1d_kib=32, l2_kib=512)
HOST = Target(
    name="host",
    description="",
    triple=f"{host_arch()}-linux-gnu",
    cpu={"x86_64": "x86-64", "aarch64": "cortex-a53"}[host_arch()],
    memory_mib=512,
    clusters=(CLUSTER,),
)
PLAN = Plan(model="feedfacefeedface", target="host", choices=())
N = 32


class Parts:
    """Everything a bundle is made of: y = (x + z) @ w, and x * 2."""

    def __init__(self, folder: Path) -> None:
        from tvmx._tvm import relax

        weight = RNG.standard_normal((N, N), dtype=np.float32)
        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType((1, N), "float32"))
        z = relax.Var("z", relax.TensorType((1, N), "float32"))
        with builder.function("main", [x, z]):
            with builder.dataflow():
                total = builder.emit(relax.op.add(x, z))
                product = builder.emit(relax.op.matmul(total, relax.const(weight)))
                double = builder.emit(relax.op.add(x, x))
                output = builder.emit_output((product, double))
            builder.emit_func_output(output)
        built = build_network(builder.get(), HOST, folder / "library.so")
        self.library = built.path
        names = ("x", "z")
        self.inputs = {n: RNG.standard_normal((1, N), dtype=np.float32) for n in names}
        self.outputs = self.expected(self.inputs, weight)
        self.weight = weight
        spec = {"shape": (1, N), "dtype": "float32"}
        self.manifest = Manifest(
            model="toy",
            model_digest=PLAN.model,
            plan_digest=PLAN.digest,
            target="host",
            triple=HOST.triple,
            cpu=HOST.cpu,
            versions=installed_versions(),
            inputs=tuple(TensorSpec(name=n, **spec) for n in names),
            outputs=tuple(TensorSpec(name=n, **spec) for n in ("y", "twice")),
            sizes=Sizes(
                library_bytes=built.bytes,
                weights_bytes=built.weights_bytes,
                arena_bytes=built.arena_bytes,
                scratch_bytes=built.scratch_bytes,
            ),
            figures=(
                Figure(
                    metric="latency",
                    value=12.5,
                    unit="us",
                    spread=0.5,
                    device="host",
                    threads=1,
                    paired_with="baseline",
                ),
            ),
            measured_on_target=True,
        )

    @staticmethod
    def expected(inputs: dict[str, Any], weight: Any) -> list[Any]:
        return [(inputs["x"] + inputs["z"]) @ weight, inputs["x"] * 2]

    def write(self, out: Path, **changes: Any) -> Bundle:
        values: dict[str, Any] = {
            "library": self.library,
            "manifest": self.manifest,
            "golden_inputs": self.inputs,
            "golden_outputs": self.outputs,
            "plan": PLAN,
        }
        return write_bundle(out, **(values | changes))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("library"))


def run(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bundle's own runner, from another folder, where tvmx cannot be imported."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["TVM_USE_RUNTIME_LIB"] = "1"
    return subprocess.run(
        [sys.executable, "-P", str(bundle / "run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        cwd="/",
    )


def test_round_trip(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    written = parts.write(out)
    loaded = load_bundle(out)
    assert loaded == written
    assert loaded.manifest.model_copy(update={"files": {}}) == parts.manifest
    assert sorted(p.name for p in out.iterdir()) == [
        "golden.npz",
        "manifest.json",
        "model.so",
        "plan.json",
        "run.py",
    ]
    assert set(loaded.manifest.files) == {"golden.npz", "model.so", "plan.json", "run.py"}
    assert loaded.plan == PLAN
    assert loaded.library.read_bytes() == parts.library.read_bytes()
    for name, array in parts.inputs.items():
        np.testing.assert_array_equal(loaded.golden_inputs()[name], array)
    for actual, right in zip(loaded.golden_outputs(), parts.outputs, strict=True):
        np.testing.assert_array_equal(actual, right)
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]
    document = json.loads((out / "manifest.json").read_text())
    assert document["format"] == "tvmx-bundle"
    assert document["schema_version"] == 1
    assert set(document["versions"]) == {"tvmx", "tvm", "tvm_ffi"}


def test_runner_on_the_golden_input(parts: Parts, tmp_path: Path) -> None:
    parts.write(tmp_path / "bundle")
    done = run(tmp_path / "bundle", "--repeat", "3", "--threads", "2")
    assert done.returncode == 0, done.stderr
    assert "median" in done.stdout
    assert "3 runs, 2 thread(s)" in done.stdout
    assert done.stdout.count("right") == 2


def test_runner_on_an_own_input(parts: Parts, tmp_path: Path) -> None:
    bundle = parts.write(tmp_path / "bundle")
    inputs = {n: RNG.standard_normal((1, N), dtype=np.float32) for n in ("x", "z")}
    np.savez(tmp_path / "in.npz", **inputs)
    out = tmp_path / "result"
    done = run(bundle.path, "--input", str(tmp_path / "in.npz"), "--output", str(out))
    assert done.returncode == 0, done.stderr
    with np.load(out) as data:
        for i, right in enumerate(parts.expected(inputs, parts.weight)):
            np.testing.assert_allclose(data[f"output_{i}"], right, rtol=1e-4, atol=1e-4)


def test_runner_sees_a_wrong_output(parts: Parts, tmp_path: Path) -> None:
    wrong = [parts.outputs[0], parts.outputs[1].copy()]
    wrong[1][0, 3] += 0.1 * float(np.ptp(wrong[1]))
    bundle = parts.write(tmp_path / "bundle", golden_outputs=wrong)
    done = run(bundle.path)
    assert done.returncode == 1
    verdicts = {
        line.split("'")[1]: line.rsplit(" ", 1)[1]
        for line in done.stdout.splitlines()
        if line.startswith("output")
    }
    assert verdicts == {"y": "right", "twice": "WRONG"}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((1, N), np.float32)}, "no array 'z'"),
        ({"x": np.zeros((1, 3), np.float32), "z": np.zeros((1, N), np.float32)}, "'x'"),
        ({"x": np.zeros((1, N)), "z": np.zeros((1, N), np.float32)}, "float64"),
    ],
)
def test_runner_refuses_inputs(
    parts: Parts, tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    parts.write(tmp_path / "bundle")
    np.savez(tmp_path / "in.npz", **arrays)
    done = run(tmp_path / "bundle", "--input", str(tmp_path / "in.npz"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_runner_command_line_and_damage(parts: Parts, tmp_path: Path) -> None:
    bundle = parts.write(tmp_path / "bundle").path
    assert run(bundle, "--threads", "0").returncode == 2
    missing = run(bundle, "--input", str(tmp_path / "none.npz"))
    assert missing.returncode == 1
    assert "none.npz" in missing.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    other = manifest | {"triple": "riscv64-linux-gnu"}
    (bundle / "manifest.json").write_text(json.dumps(other))
    assert "this bundle is for riscv64" in run(bundle).stderr
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "model.so").write_bytes(b"no library")
    done = run(bundle)
    assert done.returncode == 1
    assert "model.so does not load" in done.stderr


def test_runner_needs_only_numpy_and_the_runtime() -> None:
    tree = ast.parse((ROOT / "tvmx/deploy/_run_template.py").read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or "").split(".")[0])
    assert modules - set(sys.stdlib_module_names) == {"numpy", "tvm"}


def test_an_earlier_bundle_is_replaced(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    parts.write(out)
    (out / "__pycache__").mkdir()
    changed = parts.manifest.model_copy(update={"notes": ("second",)})
    assert parts.write(out, manifest=changed).manifest.notes == ("second",)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    (tmp_path / "empty").mkdir()
    parts.write(tmp_path / "empty")


def test_files_that_the_plan_names(parts: Parts, tmp_path: Path) -> None:
    out, file = tmp_path / "bundle", "weights/0123456789abcdef.npz"
    bundle = parts.write(out, beside_plan={file: b"pruned"})
    assert bundle.manifest.files[file]
    assert (out / file).read_bytes() == b"pruned"
    (out / "weights" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine\.txt"):
        parts.write(out)
    (out / "weights" / "mine.txt").unlink()
    (out / file).write_bytes(b"other")
    with pytest.raises(BundleError, match="was altered"):
        load_bundle(out)
    parts.write(out)
    assert not (out / "weights").exists()


def test_a_damaged_bundle_is_replaced_too(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    parts.write(out)
    (out / "model.so").write_bytes(b"x")
    (out / "run.py").unlink()
    assert parts.write(out).library.stat().st_size > 1000


def test_foreign_content_is_left_alone(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        parts.write(tmp_path / "file")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="not a tvmx bundle") as caught:
        parts.write(folder)
    assert caught.value.hint
    (folder / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(UsageError, match="not a tvmx bundle"):
        parts.write(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "thesis.tex"]
    bundle = parts.write(tmp_path / "bundle").path
    (bundle / "results.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"results\.csv"):
        parts.write(bundle)
    assert (bundle / "results.csv").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "file", "folder"]


def test_unwritable_places(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "bundle", Path("/proc/bundle")):
        with pytest.raises(UnwritableError, match="cannot write"):
            parts.write(out)


@pytest.mark.parametrize("name", ["model.so", "golden.npz", "plan.json", "run.py"])
def test_altered_and_missing_files_are_named(parts: Parts, tmp_path: Path, name: str) -> None:
    out = parts.write(tmp_path / "bundle").path
    content = bytearray((out / name).read_bytes())
    content[len(content) // 2] ^= 1
    (out / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was altered") as caught:
        load_bundle(out)
    assert caught.value.hint
    (out / name).unlink()
    with pytest.raises(BundleError, match=f"{name} cannot be read: No such file"):
        load_bundle(out)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/b/c", "a/../../outside", "a/..", "..", ".hidden", ""]
)
def test_file_names_stay_in_the_bundle(parts: Parts, tmp_path: Path, name: str) -> None:
    out = parts.write(tmp_path / "bundle").path
    (tmp_path / "outside").write_text("x")
    document = json.loads((out / "manifest.json").read_text())
    document["files"][name] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="damaged at files"):
        load_bundle(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema 9"),
        ({"inputs": []}, "damaged at inputs"),
        ({"surprise": 1}, "damaged at surprise"),
        ({"files": {}}, "lists no model.so"),
        ({"rtol": -1}, "damaged at rtol"),
    ],
)
def test_damaged_manifests(
    parts: Parts, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    out = parts.write(tmp_path / "bundle").path
    document = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(document | change))
    with pytest.raises(BundleError, match=message):
        load_bundle(out)
    (out / "manifest.json").write_bytes((out / "plan.json").read_bytes()[:20])
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(out)
    (out / "manifest.json").unlink()
    with pytest.raises(BundleError, match="no bundle"):
        load_bundle(out)


def test_contradictions_are_found_before_writing(parts: Parts, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    one = {"x": parts.inputs["x"]}
    text = tmp_path / "text.so"
    text.write_text("no library")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"golden_inputs": one}, "golden inputs are x"),
        ({"golden_outputs": parts.outputs[:1]}, "1 golden outputs"),
        ({"golden_outputs": [o.astype(np.float64) for o in parts.outputs]}, "float64"),
        ({"golden_inputs": {n: a[:, :5] for n, a in parts.inputs.items()}}, "'x'"),
        ({"plan": PLAN.model_copy(update={"target": "rpi4"})}, "plan"),
        ({"library": text}, "text.so"),
        ({"manifest": parts.manifest.model_copy(update={"triple": "riscv64-linux-gnu"})}, "riscv"),
    ]
    for change, message in cases:
        with pytest.raises(BundleError, match=message):
            parts.write(out, **change)
    assert [p.name for p in tmp_path.iterdir()] == ["text.so"]


def test_no_room_leaves_the_old_bundle(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    before = parts.write(out).manifest

    def full(source: Any, destination: Any) -> None:
        Path(destination).write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UnwritableError, match="No space left") as caught:
        parts.write(out)
    assert caught.value.hint is not None
    assert "free some space" in caught.value.hint
    assert load_bundle(out).manifest == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_importable_without_tvm() -> None:
    code = "import sys, tvmx.deploy, tvmx.build, tvmx.store; sys.exit('tvm' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0
