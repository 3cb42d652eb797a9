"""Whole networks: the library computes what NumPy does, and the reported sizes are right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmx.build import build_network, host_arch, read_elf
from tvmx.errors import BuildError, LinkerError
from tvmx.targets import Cluster, Target

CLUSTER = Cluster(core="any", count=4, clock_mhz=1000, in_order=True, l1d_kib=32, l2_kib=512)
RNG = np.random.default_rng(0)


def target(arch: str) -> Target:
    cpu = {"x86_64": "x86-64", "aarch64": "cortex-a53"}[arch]
    return Target(
        name=f"test-{arch}",
        description="",
        triple=f"{arch}-linux-gnu",
        cpu=cpu,
        memory_mib=512,
        clusters=(CLUSTER,),
    )


HOST = target(host_arch())


def network(weights: list[np.ndarray[Any, Any]], bias: np.ndarray[Any, Any]) -> Any:
    """relu(x @ w + bias) for every weight, legalised and fused; outputs last and first layer."""
    from tvmx._tvm import relax, tvm

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, weights[0].shape[0]), "float32"))
    shared = relax.const(bias)
    with builder.function("main", [x]):
        with builder.dataflow():
            layers = [x]
            for weight in weights:
                product = builder.emit(relax.op.matmul(layers[-1], relax.const(weight)))
                total = builder.emit(relax.op.add(product, shared))
                layers.append(builder.emit(relax.op.nn.relu(total)))
            output = builder.emit_output((layers[-1], layers[1]))
        builder.emit_func_output(output)
    passes = relax.transform
    return tvm.transform.Sequential(
        [
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            passes.FuseOps(),
            passes.FuseTIR(),
        ]
    )(builder.get())


def reference(
    x: np.ndarray[Any, Any], weights: list[np.ndarray[Any, Any]], bias: np.ndarray[Any, Any]
) -> list[np.ndarray[Any, Any]]:
    layers = [x]
    for weight in weights:
        layers.append(np.maximum(layers[-1] @ weight + bias, 0))
    return [layers[-1], layers[1]]


def parameters(n: int, layers: int) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    weights = [
        RNG.standard_normal((n, n), dtype=np.float32) / np.float32(n**0.5) for _ in range(layers)
    ]
    return weights, RNG.standard_normal(n, dtype=np.float32)


def load_main(path: Path) -> Any:
    from tvmx._tvm import relax, tvm

    return relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())["main"]


# 16: every constant stays in TVM's pool; 33: odd sizes, weights in the section, bias not;
# 300: both in the section.
@pytest.mark.parametrize("n", [16, 33, 300])
def test_computes_and_counts(tmp_path: Path, n: int) -> None:
    from tvmx._tvm import tvm

    weights, bias = parameters(n, 3)
    built = build_network(network(weights, bias), HOST, tmp_path / "below" / "net.so")
    x = RNG.standard_normal((1, n), dtype=np.float32)
    main = load_main(built.path)
    for _ in range(3):
        outputs = [t.numpy() for t in main(tvm.runtime.tensor(x))]
        for actual, right in zip(outputs, reference(x, weights, bias), strict=True):
            np.testing.assert_allclose(actual, right, rtol=1e-4, atol=1e-5)
    assert built.weights_bytes == 4 * (3 * n * n + n)
    assert built.bytes == built.path.stat().st_size > built.weights_bytes
    # Two outputs and one layer between them; planning may not take less than three tensors.
    assert 3 * 4 * n <= built.arena_bytes <= 4 * (4 * n + 64)
    assert {name.split(".")[0] for name in read_elf(built.path).needed} <= {"libc", "libm"}
    assert [p.name for p in built.path.parent.iterdir()] == ["net.so"]


def test_equal_constants_are_stored_once(tmp_path: Path) -> None:
    from tvmx._tvm import relax, tvm

    weight = relax.const(RNG.standard_normal((64, 64), dtype=np.float32))
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            first = builder.emit(relax.op.matmul(x, weight))
            output = builder.emit_output(relax.op.matmul(first, weight))
        builder.emit_func_output(output)
    built = build_network(builder.get(), HOST, tmp_path / "net.so")
    assert built.weights_bytes == 64 * 64 * 4
    assert built.bytes < 2 * 64 * 64 * 4 + 20_000
    data = RNG.standard_normal((1, 64), dtype=np.float32)
    matrix = weight.value.numpy()
    actual = load_main(built.path)(tvm.runtime.tensor(data)).numpy()
    np.testing.assert_allclose(actual, data @ matrix @ matrix, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["int8", "float16", "float64", "int32"])
def test_constants_of_every_type(tmp_path: Path, dtype: str) -> None:
    from tvmx._tvm import relax, tvm

    constant = RNG.integers(-100, 100, (7, 5, 64)).astype(dtype)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((7, 5, 64), dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(relax.op.maximum(x, relax.const(constant, dtype)))
        builder.emit_func_output(output)
    built = build_network(builder.get(), HOST, tmp_path / "net.so")
    data = RNG.integers(-100, 100, (7, 5, 64)).astype(dtype)
    actual = load_main(built.path)(tvm.runtime.tensor(data)).numpy()
    np.testing.assert_array_equal(actual, np.maximum(data, constant))
    assert built.weights_bytes == constant.nbytes


def test_scratch_is_what_a_kernel_allocates(tmp_path: Path) -> None:
    from tvmx._tvm import relax, s_tir, te, tvm

    x = te.placeholder((64, 1024), name="x")
    twice = te.compute((64, 1024), lambda i, j: x[i, j] * 2, name="twice")
    back = te.compute((64, 1024), lambda i, j: twice[i, 1023 - j] + 1, name="back")
    func = te.create_prim_func([x, back])

    def build(parallel_rows: bool) -> int:
        schedule = s_tir.Schedule(func)
        if parallel_rows:
            row = schedule.get_loops(schedule.get_sblock("back"))[0]
            schedule.compute_at(schedule.get_sblock("twice"), row)
            schedule.parallel(row)
        builder = relax.BlockBuilder()
        var = relax.Var("x", relax.TensorType((64, 1024), "float32"))
        kernel = builder.add_func(schedule.mod["main"].without_attr("global_symbol"), "kernel")
        with builder.function("main", [var]):
            with builder.dataflow():
                output = builder.emit_output(
                    relax.call_tir(kernel, [var], relax.TensorType((64, 1024), "float32"))
                )
            builder.emit_func_output(output)
        built = build_network(builder.get(), HOST, tmp_path / "net.so")
        data = RNG.standard_normal((64, 1024), dtype=np.float32)
        actual = load_main(built.path)(tvm.runtime.tensor(data)).numpy()
        np.testing.assert_array_equal(actual, data[:, ::-1] * 2 + 1)
        assert built.arena_bytes == 64 * 1024 * 4
        assert built.weights_bytes == 0
        return built.scratch_bytes

    assert build(parallel_rows=False) == 64 * 1024 * 4
    assert build(parallel_rows=True) == 4 * 1024 * 4  # a row for each of the target's four cores


@pytest.mark.cross
def test_cross_compiled(tmp_path: Path) -> None:
    other = "aarch64" if host_arch() == "x86_64" else "x86_64"
    weights, bias = parameters(64, 2)
    built = build_network(network(weights, bias), target(other), tmp_path / "net.so")
    facts = read_elf(built.path)
    assert facts.machine == other
    assert {name.split(".")[0] for name in facts.needed} <= {"libc", "libm"}
    # The weights are in the file as they are.
    assert weights[1].tobytes() in built.path.read_bytes()


LOAD = """
import os, sys
os.environ["TVM_USE_RUNTIME_LIB"] = "1"
import numpy as np, psutil, tvm
from tvm.runtime.vm import VirtualMachine
memory = psutil.Process()
before = memory.memory_info().rss
main = VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())["main"]
loaded = memory.memory_info().rss - before
main(tvm.runtime.tensor(np.ones((1, 2048), np.float32)))
print(loaded, memory.memory_info().rss - before)
"""


def test_loading_copies_no_weights(tmp_path: Path) -> None:
    """In the runtime alone; TVM's own constant pool takes four times the weights here."""
    weights, bias = parameters(2048, 3)
    built = build_network(network(weights, bias), HOST, tmp_path / "net.so")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(built.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ},
    )
    loaded, after_run = (int(word) for word in done.stdout.split())
    assert loaded < 0.1 * built.weights_bytes
    assert after_run < 1.2 * built.weights_bytes


def test_what_tvm_refuses_names_the_target(tmp_path: Path) -> None:
    from tvmx._tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 1, 8, 8, 16), "float32"))
    weight = relax.const(np.ones((1, 1, 3, 3, 16, 16), np.float32))
    layouts = {"data_layout": "NCHW16c", "kernel_layout": "OIHW16i16o"}
    with builder.function("main", [x]):
        with builder.dataflow():
            # TVM has no kernel for blocked layouts: an operator nobody lowered.
            output = builder.emit_output(relax.op.nn.conv2d(x, weight, **layouts))
        builder.emit_func_output(output)
    with pytest.raises(BuildError, match=HOST.name):
        build_network(builder.get(), HOST, tmp_path / "net.so")
    assert not (tmp_path / "net.so").exists()


def test_link_errors_stay_link_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMX_LINKER", "/no/such/linker")
    weights, bias = parameters(16, 1)
    with pytest.raises(LinkerError, match="TVMX_LINKER"):
        build_network(network(weights, bias), HOST, tmp_path / "net.so")
    assert list(tmp_path.iterdir()) == []
