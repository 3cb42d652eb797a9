"""The onnx package's node tests through tvmx's importer, its default plan and its linker.

::

    python benchmarks/onnx_conformance.py                    # what has no result yet
    python benchmarks/onnx_conformance.py --again 'resize'   # these once more
    python benchmarks/onnx_conformance.py --update-docs

Each test is imported, built and run in a worker that is killed after a minute. Results are kept in
``onnx_conformance.json`` as they come, so that a run can be interrupted. See ``docs/onnx.md``.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from pebble import ProcessExpired, ProcessPool

# Run as a file, Python's path holds benchmarks/ and not the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._onnx_cases import FLOAT_OPERATORS, Case, node_cases
from benchmarks._onnx_results import (
    PAGE,
    RECORD,
    Conformance,
    page_section,
    share,
    with_section,
)
from benchmarks._onnx_run import run_case, start_worker

_SECONDS = 60.0
_SAVED_EVERY = 25


def main(
    out: Annotated[Path, typer.Option(help="Results, as JSON.")] = RECORD,
    again: Annotated[str, typer.Option(help="Pattern of test names to run once more.")] = "",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    update_docs: Annotated[bool, typer.Option(help="Write the tables of docs/onnx.md.")] = False,
) -> None:
    """Run the tests that have no result in OUT, then print rates and failures."""
    versions = {name: version(name) for name in ("onnx", "apache-tvm")}
    results = Conformance.load(out) or Conformance(versions=versions)
    results.versions = versions
    known = results.known()
    every = list(node_cases())
    results.forget_but({case.name for case in every})
    cases = [
        case for case in every
        if case.name not in known or (again and re.search(again, case.name))
    ]  # fmt: skip
    try:
        run(cases, results, out, workers)
    finally:
        results.save(out)
    if update_docs:
        PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), page_section(results)))
    report(results)


def run(cases: list[Case], results: Conformance, out: Path, workers: int) -> None:
    """Run these and keep their results, in OUT too from time to time."""
    for case in cases:
        if case.apart:
            results.note(case.operator, case.name, "", case.apart)
    todo = [case for case in cases if not case.apart]
    context = multiprocessing.get_context("spawn")
    with ProcessPool(workers, initializer=start_worker, context=context) as pool:
        futures = [pool.schedule(run_case, args=[case], timeout=_SECONDS) for case in todo]
        try:
            for count, (case, future) in enumerate(zip(todo, futures, strict=True), 1):
                try:
                    reason = future.result()
                except TimeoutError:
                    reason = f"hangs: more than {_SECONDS:.0f} s"
                except ProcessExpired as err:
                    reason = f"crashes: {err}"
                results.note(case.operator, case.name, reason, "")
                if count % _SAVED_EVERY == 0:
                    results.save(out)
                    print(f"  {count} of {len(todo)}", file=sys.stderr, flush=True)
        except BaseException:
            pool.stop()
            raise


def report(results: Conformance) -> None:
    """Rates by operator and every failure with its reason."""
    for name, result in sorted(results.operators.items()):
        if result.counted:
            mark = "" if name in FLOAT_OPERATORS else "  (not aimed at)"
            print(f"{name}: {len(result.passed)}/{result.counted}{mark}")
        for test, reason in result.failed.items():
            print(f"    {test}: {reason}")
    aimed = [r for n, r in results.operators.items() if n in FLOAT_OPERATORS]
    print("float operators of inference networks: {} of {}".format(*share(aimed)))


if __name__ == "__main__":
    typer.run(main)
