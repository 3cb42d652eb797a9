"""Run this bundle: needs apache-tvm (its runtime is enough) and numpy, nothing else.

    python run.py                       the golden input, its output checked
    python run.py --input x.npz --output y.npz --threads 4 --repeat 50

x.npz holds one array per input, under the input's name. Exit code 0: fine; 1: the output is
wrong, or the bundle cannot run here; 2: the command line makes no sense.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class RunError(Exception):
    """What is wrong, for the user."""


def main() -> int:
    """Parse the command line and run; returns the exit code."""
    args = parse_arguments()
    try:
        return run(args)
    except (RunError, OSError, ValueError) as err:
        sys.stderr.write(f"error: {err}\n")
        return 1


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run this tvmx bundle.")
    parser.add_argument("--input", type=Path, help="npz with one array per input; default: golden")
    parser.add_argument("--output", type=Path, help="npz to write: output_0, output_1 ...")
    parser.add_argument("--repeat", type=positive, default=10, help="timed runs (default 10)")
    parser.add_argument("--threads", type=positive, default=1, help="threads (default 1)")
    return parser.parse_args()


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def run(args: argparse.Namespace) -> int:
    """Load, run, check, time; returns the exit code."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    check_machine(manifest)
    inputs, expected = read_inputs(args.input, manifest)
    execute = load(args.threads)
    outputs = execute(inputs)
    if args.output is not None:
        write_outputs(args.output, outputs)
    times = []
    for _ in range(args.repeat):
        start = time.perf_counter()
        execute(inputs, fetch=False)
        times.append((time.perf_counter() - start) * 1e3)
    print_line(
        f"{manifest['model']} on {manifest['target']}: median {statistics.median(times):.3f} ms,"
        f" min {min(times):.3f}, max {max(times):.3f} over {len(times)} runs,"
        f" {args.threads} thread(s)"
    )
    if expected is None:
        return 0
    return report(outputs, expected, manifest)


def check_machine(manifest: dict[str, Any]) -> None:
    """Refuse a library for another architecture, which would not load."""
    machine = platform.machine().lower()
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    arch = manifest["triple"].split("-", 1)[0]
    if arch != here:
        raise RunError(f"this bundle is for {arch} ({manifest['target']}), this machine is {here}")


def read_inputs(path: Path | None, manifest: dict[str, Any]) -> tuple[list[Any], list[Any] | None]:
    """The inputs in order, and the right outputs where they are known."""
    import numpy as np

    source, prefix = (path, "") if path is not None else (HERE / "golden.npz", "input_")
    with np.load(source, allow_pickle=False) as data:
        inputs = []
        for spec in manifest["inputs"]:
            name = prefix + spec["name"]
            if name not in data:
                raise RunError(f"{source} has no array {name!r} (it has {', '.join(data.files)})")
            array = np.ascontiguousarray(data[name])
            if list(array.shape) != spec["shape"] or array.dtype.name != spec["dtype"]:
                raise RunError(
                    f"{name!r} in {source} is {array.dtype.name}{list(array.shape)}, expected"
                    f" {spec['dtype']}{spec['shape']}"
                )
            inputs.append(array)
        expected = None
        if path is None:
            expected = [data[f"output_{i}"] for i in range(len(manifest["outputs"]))]
    return inputs, expected


def load(threads: int) -> Any:
    """A function that takes the inputs and returns the outputs as arrays."""
    # The compiler is not needed: load TVM's runtime library alone.
    os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
    os.environ["TVM_NUM_THREADS"] = str(threads)
    try:
        import tvm
        from tvm.runtime.vm import VirtualMachine
    except ImportError as err:
        raise RunError(f"TVM's runtime is missing ({err}): pip install apache-tvm") from err

    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    device = tvm.cpu(0)
    try:
        library = tvm.runtime.load_module(str(HERE / "model.so"))
        main_function = VirtualMachine(library, device)["main"]
    except Exception as err:
        raise RunError(f"model.so does not load: {err}") from err
    cache: dict[int, Any] = {}

    def execute(arrays: list[Any], fetch: bool = True) -> list[Any] | None:
        if id(arrays) not in cache:
            cache[id(arrays)] = [tvm.runtime.tensor(array, device) for array in arrays]
        result = main_function(*cache[id(arrays)])
        return [tensor.numpy() for tensor in flatten(result)] if fetch else None

    return execute


def flatten(value: Any) -> list[Any]:
    """The tensors of a possibly nested tuple, in order."""
    if hasattr(value, "numpy"):
        return [value]
    return [tensor for item in value for tensor in flatten(item)]


def write_outputs(path: Path, outputs: list[Any]) -> None:
    """Write the outputs as output_0, output_1 ... ."""
    import numpy as np

    with path.open("wb") as stream:
        np.savez(stream, **{f"output_{i}": array for i, array in enumerate(outputs)})


def report(outputs: list[Any], expected: list[Any], manifest: dict[str, Any]) -> int:
    """Compare with the golden outputs, relative to the range of each; returns the exit code."""
    import numpy as np

    if len(outputs) != len(expected):
        raise RunError(f"the library gave {len(outputs)} outputs, expected {len(expected)}")
    wrong = 0
    for spec, actual, right in zip(manifest["outputs"], outputs, expected, strict=True):
        if actual.shape != right.shape:
            raise RunError(f"output {spec['name']!r}: {actual.shape}, expected {right.shape}")
        wide = right.astype(np.float64)
        span, size = float(wide.max() - wide.min()), float(np.abs(wide).max())
        span = max(span, size / 1000) if span else size or 1.0
        error = float(np.abs(actual.astype(np.float64) - wide).max()) / span
        good = error <= manifest["rtol"]
        wrong += not good
        print_line(
            f"output {spec['name']!r}: error {error:.2e} of the range, allowed"
            f" {manifest['rtol']:.0e}: {'right' if good else 'WRONG'}"
        )
    return 1 if wrong else 0


def print_line(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
