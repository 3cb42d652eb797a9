"""``tvmx import``: what a network is made of."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import typer

from tvmx.cli import _units as units
from tvmx.cli._errors import guarded
from tvmx.cli._options import Json, Model, Shapes
from tvmx.cli._output import Output, Screen
from tvmx.cli._parse import parse_shapes
from tvmx.cli._preflight import check_model

if TYPE_CHECKING:
    from tvmx.ir import Layer, NetworkGraph, TensorSpec
    from tvmx.ir import Model as ImportedModel

EPILOG = """Examples:
  tvmx import network.onnx
  tvmx import network.onnx --shape data=1,3,224,224 --json
  tvmx import network.pt2"""


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("import", epilog=EPILOG)(import_model)


@guarded
def import_model(model: Model, shape: Shapes = None, as_json: Json = False) -> None:
    """List a network's layers: source name, operator, shapes, MACs, parameters.

    All unsupported operators are named at once. Nothing is written.
    """
    shapes = parse_shapes(shape or ())
    check_model(model, shapes)
    from tvmx.frontends import load_model
    from tvmx.passes import extract_layers

    loaded = load_model(model, shapes)
    data = _describe(loaded, extract_layers(loaded).graph)
    Output(as_json).emit(data, lambda screen: _render(screen, data))


def _describe(model: ImportedModel, graph: NetworkGraph) -> dict[str, Any]:
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
            "MACs outside layers": units.count(elsewhere) if elsewhere else None,
            "digest": data["digest"],
        }
    )


def _text(spec: dict[str, Any]) -> str:
    return f"{spec['name']} {spec['dtype']} {units.shape(spec['shape'])}"
