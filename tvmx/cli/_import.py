"""``tvmx import``: what a network is made of."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmx.cli import _units as units
from tvmx.cli._errors import guarded
from tvmx.cli._options import Json, Model, Params, Shapes
from tvmx.cli._output import Output, Screen
from tvmx.cli._parse import parse_shapes
from tvmx.cli._preflight import check_model
from tvmx.errors import UnwritableError, UsageError

if TYPE_CHECKING:
    from tvmx.ir import Layer, TensorSpec
    from tvmx.ir import Model as ImportedModel
    from tvmx.passes import Network

EPILOG = """Examples:
  tvmx import network.onnx
  tvmx import network.onnx --shape data=1,3,224,224 --json
  tvmx import network.pt2
  tvmx import old.relay.json --params old.params --emit relax --output old.relax.py"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("import", epilog=EPILOG)(import_model)


class Emitted(StrEnum):
    """What ``--emit`` writes."""

    RELAX = "relax"


@guarded
def import_model(
    model: Model,
    shape: Shapes = None,
    params: Params = None,
    emit: Annotated[
        Emitted | None,
        typer.Option(
            "--emit",
            metavar="relax",
            help="Also write the network as TVM's Relax text, weights included, to --output.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where --emit writes. Never overwritten."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List a network's layers: source name, operator, shapes, MACs, parameters.

    All unsupported operators are named at once. Nothing is written without --emit.
    """
    shapes = parse_shapes(shape or ())
    _check_output(emit, output)
    check_model(model, shapes, params)
    from tvmx.frontends import load_model
    from tvmx.passes import extract_layers

    loaded = load_model(model, shapes, params)
    data = _describe(loaded, extract_layers(loaded))
    if output is not None:
        _write(loaded, output)
        data["written"] = str(output)
    Output(as_json).emit(data, lambda screen: _render(screen, data))


def _check_output(emit: Emitted | None, output: Path | None) -> None:
    if emit is None and output is not None:
        raise UsageError(f"--output {output} without --emit", hint="add --emit relax")
    if emit is not None and output is None:
        raise UsageError(f"--emit {emit} writes a file", hint="add --output network.relax.py")
    if output is not None and output.exists():
        raise UnwritableError(f"--output {output} exists", hint="name another file, or remove it")
    if output is not None and not output.parent.is_dir():
        raise UnwritableError(f"--output {output}: there is no folder {output.parent}")


def _write(model: ImportedModel, output: Path) -> None:
    try:
        output.write_text(model.mod.script(show_meta=True), encoding="utf-8")
    except OSError as err:
        raise UnwritableError(f"cannot write {output}: {err.strerror}") from err


def _describe(model: ImportedModel, network: Network) -> dict[str, Any]:
    graph = network.graph
    others = Counter(node.op for node in graph.nodes if node.kind != "layer")
    return {
        "model": str(model.path),
        "frontend": model.frontend,
        "digest": model.digest,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.outputs],
        "layers": [_layer(layer) for layer in graph.layers],
        "workloads": len({layer.workload.digest for layer in graph.layers}),
        "macs": graph.macs,
        "macs_elsewhere": graph.macs_elsewhere,
        "parameters": sum(layer.parameters for layer in graph.layers),
        "int8_layers": sum(layer.workload.dtype == "int8" for layer in graph.layers),
        "dynamic_layers": network.dynamic_layers,
        "integer_products_elsewhere": network.integer_products_elsewhere,
        "other_operators": dict(sorted(others.items())),
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _layer(layer: Layer) -> dict[str, Any]:
    work = layer.workload
    return {
        "name": layer.name,
        "op": layer.op,
        "input": list(work.data_shape),
        "weight": list(work.weight_shape),
        "output": list(work.out_shape),
        "epilogue": work.epilogue.describe(),
        "fused": list(layer.fused),
        "macs": work.macs,
        "parameters": layer.parameters,
        "workload": work.digest,
        "summary": work.describe(),
    }


def _render(screen: Screen, data: dict[str, Any]) -> None:
    screen.table(
        ("layer", "op", "input", "weight", "output", "epilogue", "MACs", "parameters"),
        (
            (
                row["name"],
                row["op"],
                units.shape(row["input"]),
                units.shape(row["weight"]),
                units.shape(row["output"]),
                row["epilogue"],
                units.count(row["macs"]),
                units.count(row["parameters"]),
            )
            for row in data["layers"]
        ),
        right=("MACs", "parameters"),
        footer=(
            f"{len(data['layers'])} layers",
            f"{data['workloads']} distinct",
            *[""] * 4,
            units.count(data["macs"]),
            units.count(data["parameters"]),
        ),
    )
    others = ", ".join(f"{count} {op}" for op, count in data["other_operators"].items())
    elsewhere = data["macs_elsewhere"]
    screen.fields(
        {
            "inputs": "; ".join(_text(spec) for spec in data["inputs"]),
            "outputs": "; ".join(_text(spec) for spec in data["outputs"]),
            "other operators": others or "none",
            "int8 layers": _stated(data),
            "MACs outside layers": units.count(elsewhere) if elsewhere else None,
            "digest": data["digest"],
            "written": data.get("written"),
        }
    )


def _stated(data: dict[str, Any]) -> str | None:
    """Of a quantised model: how many layers are integer arithmetic with the model's own scales."""
    count, dynamic = data["int8_layers"], data["dynamic_layers"]
    elsewhere = data["integer_products_elsewhere"]
    if not count and not elsewhere:
        return None
    text = f"{count} of {len(data['layers']) + elsewhere}"
    parts = ["with the model's own scales"] if count > dynamic else []
    parts += [f"{dynamic} with scales found at run time"] if dynamic else []
    parts += [f"{elsewhere} integer products in plain int32, which is slow"] if elsewhere else []
    return ", ".join([text, *parts])


def _text(spec: dict[str, Any]) -> str:
    return f"{spec['name']} {spec['dtype']} {units.shape(spec['shape'])}"
