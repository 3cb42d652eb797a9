"""``tvmx run``: one inference of a bundle on a device, its output checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmx.cli import _units as units
from tvmx.cli._check import check_file, check_file_writable, check_folder
from tvmx.cli._device import check_device, check_runs_here, parse_device, parse_manners
from tvmx.cli._errors import guarded
from tvmx.cli._options import Bundle, Deadline, Json, Key, Tracker
from tvmx.cli._output import Output, Screen
from tvmx.cli._progress import open_progress
from tvmx.errors import MeasureError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tvmx.deploy import Bundle as OpenBundle
    from tvmx.measure import Measurement, NetworkJob

    Array = npt.NDArray[np.generic]

EPILOG = """Examples:
  tvmx run bundle
  tvmx run bundle --input image.npz --output scores.npz
  tvmx run bundle --tracker 127.0.0.1:9190 --key rpi4"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("run", epilog=EPILOG)(run_bundle)


@guarded
def run_bundle(
    bundle: Bundle,
    tracker: Tracker = None,
    key: Key = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE.npz",
            help="One array per input, under its name. Default: the golden input, whose output "
            "is compared with the golden output.",
        ),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE.npz", help="Write output_0, output_1 ... there."),
    ] = None,
    deadline: Deadline = None,
    as_json: Json = False,
) -> None:
    """Run a bundle over RPC: on a board, or on this machine.

    A wrong output is an error, exit code 1.
    """
    check_folder(bundle, "bundle", hint="bundles are written by `tvmx export` and `tvmx build`")
    if input_file is not None:
        check_file(input_file, "input file")
    if output_file is not None:
        check_file_writable(output_file)
    address = parse_device(tracker, key)
    manners = parse_manners(deadline=deadline, wait="30s")
    from tvmx.deploy import load_bundle

    opened = load_bundle(bundle)
    check_runs_here(opened, address)
    job = _job(opened, input_file)
    check_device(address)
    from tvmx.measure import open_runner

    output = Output(as_json)
    with (
        open_progress(output) as progress,
        open_runner(address, manners, arch=opened.manifest.arch, observer=progress) as runner,
    ):
        (measured,) = runner.measure([job])
        require_ok(measured, job.name)
        (outputs,) = runner.run(job, [job.inputs])
    if output_file is not None:
        _write(output_file, outputs)
    data = _describe(opened, job, measured, outputs, output_file)
    output.emit(data, lambda screen: _render(screen, data))


def require_ok(measured: Measurement, name: str) -> None:
    """Raise MeasureError for a measurement that failed."""
    if not measured.ok:
        raise MeasureError(f"{name} on {measured.device}: {measured.status}: {measured.message}")


def bundle_job(bundle: OpenBundle) -> NetworkJob:
    """A bundle with its golden input and output."""
    from tvmx.measure import NetworkJob

    return NetworkJob(
        library=bundle.library,
        inputs=bundle.golden_inputs(),
        expected=tuple(bundle.golden_outputs()),
        rtol=bundle.manifest.rtol,
        label=str(bundle.path),
    )


def _job(bundle: OpenBundle, input_file: Path | None) -> NetworkJob:
    if input_file is None:
        return bundle_job(bundle)
    from tvmx.accuracy import load_inputs
    from tvmx.measure import NetworkJob

    inputs = load_inputs(input_file, bundle.manifest.inputs)
    return NetworkJob(library=bundle.library, inputs=inputs, label=str(bundle.path))


def _write(path: Path, outputs: tuple[Array, ...]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {f"output_{i}": array for i, array in enumerate(outputs)}
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def _describe(
    bundle: OpenBundle,
    job: NetworkJob,
    measured: Measurement,
    outputs: tuple[Array, ...],
    output_file: Path | None,
) -> dict[str, Any]:
    return {
        "bundle": str(bundle.path),
        "target": bundle.manifest.target,
        "device": measured.device,
        "identity": measured.identity,
        "threads": measured.threads,
        "simulated": simulated(measured),
        "latency_us": measured.median_us,
        "spread_us": measured.spread_us,
        "checked": job.expected is not None,
        "max_error": measured.max_error,
        "rtol": job.rtol if job.expected is not None else None,
        "output_file": None if output_file is None else str(output_file),
        "outputs": [
            {
                "name": spec.name,
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "min": array.min().item(),
                "max": array.max().item(),
                "argmax": int(array.argmax()),
            }
            for spec, array in zip(bundle.manifest.outputs, outputs, strict=True)
        ],
    }


def simulated(measured: Measurement) -> dict[str, Any] | None:
    """What a simulated board counted; None for a real device."""
    run = measured.simulated
    return None if run is None else {**run.model_dump(), "cycles": run.cycles}


def describe_simulated(data: dict[str, Any]) -> str:
    """One line for people."""
    mega = {name: data[name] / 1e6 for name in ("cycles", "core_cycles", "memory_cycles")}
    return (
        f"{mega['cycles']:.2f} Mcycles ({data['figure']}; core {mega['core_cycles']:.2f}, memory "
        f"{mega['memory_cycles']:.2f}), {data['instructions'] / 1e6:.2f} M instructions, L1 misses "
        f"{data['l1_misses']}, L2 misses {data['l2_misses']}: no board was measured"
    )


def _render(screen: Screen, data: dict[str, Any]) -> None:
    checked = "no: there is no reference for an input of your own"
    if data["checked"]:
        checked = f"yes: error {data['max_error']:.2g} of the range, allowed {data['rtol']:g}"
    screen.fields(
        {
            "bundle": f"{data['bundle']} ({data['target']})",
            "device": f"{data['device']}: {data['identity']}",
            "latency": f"{units.duration(data['latency_us'])} "
            f"± {units.duration(data['spread_us'])}, threads {data['threads']}",
            "simulated": data["simulated"] and describe_simulated(data["simulated"]),
            "output checked": checked,
            "written": data["output_file"],
        }
    )
    screen.table(
        ("output", "type", "min", "max", "index of max"),
        (
            (
                row["name"],
                f"{row['dtype']} {units.shape(row['shape'])}",
                f"{row['min']:.4g}",
                f"{row['max']:.4g}",
                row["argmax"],
            )
            for row in data["outputs"]
        ),
        right=("min", "max", "index of max"),
    )
