"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="The network: .onnx, .pt2 from torch.export, or Relay (.relay.json, .relay.txt).",
    ),
]
Params = Annotated[
    Path | None,
    typer.Option(
        "--params",
        metavar="FILE",
        help="Weights of a Relay model, as relay.save_param_dict wrote them.",
    ),
]
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="An exported bundle (a folder).")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=DIMS",
        help="Shape of a dynamic input, such as data=1,3,224,224. Repeatable.",
    ),
]
Target = Annotated[
    str, typer.Option("--target", metavar="NAME", help="Target board, see `tvmx targets`.")
]
Tracker = Annotated[
    str | None,
    typer.Option(
        "--tracker",
        metavar="HOST:PORT",
        help="RPC tracker of the device. Without it: a tracker and a server of their own on "
        "this machine, for as long as the command runs.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="K", help="Device key at the tracker, see `tvmx devices`."),
]
Schedules = Annotated[
    list[Path] | None,
    typer.Option(
        "--schedules",
        metavar="DIR",
        help="A folder with own schedule templates. Its Python files are executed. Repeatable.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", help="Threads the network runs with. Default: 1."),
]
Cores = Annotated[
    str | None,
    typer.Option(
        "--cores",
        metavar="CLUSTER[:N]",
        help="Cores of the device to run on: big or little, and how many threads, such as "
        "little:2. Default: big.",
    ),
]
Deadline = Annotated[
    list[str] | None,
    typer.Option(
        "--deadline",
        metavar="PHASE=SECONDS",
        help="Longest a phase of a job may take: queue, connect, upload, load or run. "
        "Default for run: from the baseline's time. Repeatable.",
    ),
]
Wait = Annotated[
    str,
    typer.Option(
        "--wait", metavar="TIME", help="How long to wait when no device is left, such as 30m."
    ),
]
MaxTemperature = Annotated[
    float | None,
    typer.Option(
        "--max-temperature",
        metavar="CELSIUS",
        help="Let a device cool above this, where its temperature can be read. Default: 80.",
    ),
]
BundleOut = Annotated[
    Path,
    typer.Option(
        "--out", metavar="BUNDLE", help="Folder to write; an earlier bundle there is replaced."
    ),
]
Preprocess = Annotated[
    Path | None,
    typer.Option(
        "--preprocess",
        metavar="FILE.toml",
        help="How a folder's images become samples: size, crop, scale, mean, std, layout, "
        "channels, limit.",
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="Own accuracy metric, function(outputs, labels) -> percent. Default: top-1 with "
        "labels, else agreement with the float model.",
    ),
]
Equalise = Annotated[
    bool,
    typer.Option(
        "--equalise/--no-equalise",
        help="Scale the channels of neighbouring layers to like ranges before calibration.",
    ),
]
BiasCorrection = Annotated[
    bool,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Take what int8 adds to the mean of a layer's channels off its bias.",
    ),
]
MaxAccuracyDrop = Annotated[
    float,
    typer.Option(
        "--max-accuracy-drop",
        metavar="POINTS",
        help="Largest accuracy loss, in percentage points of the metric.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Build kernels and play the agent's episodes on a Ray cluster: HOST:PORT, auto, or "
        "local for one of its own on this machine. Needs the extra `ray`.",
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        metavar="GLOB",
        help="Layers that never become int8, by name or glob such as 'block1*' (quoted); `tvmx "
        "import` lists the names. Repeatable.",
    ),
]


class Pruning(StrEnum):
    """How layers are pruned."""

    MAGNITUDE = "magnitude"
    RECONSTRUCTION = "reconstruction"


PRUNING = (
    "How layers are pruned: the weakest blocks go; or those that the layer's output on the "
    "calibration samples misses least, and the others make up for them, wherever that is better."
)
PruneMethod = Annotated[
    Pruning,
    typer.Option(
        "--prune-method",
        metavar="magnitude|reconstruction",
        help=PRUNING,
    ),
]
