"""Pruned weights of a plan, as files beside it: ``weights/<digest>.npz``."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from tvmx.errors import StoreError
from tvmx.explore._prune_own import layer_steps
from tvmx.ir import Plan
from tvmx.numerics import LayerConstants
from tvmx.passes import Network, constants_named, digest_of, with_pruned
from tvmx.store import make_folder, write_atomic

FOLDER = "weights"


def weight_files(plan: Plan, network: Network) -> dict[str, bytes]:
    """The files that ``plan`` names, by path beside it.

    Raises BuildError where ``network`` does not have its weights.
    """
    return {_name(d): _content(c) for d, c in constants_named(network, plan).items()}


def save_weights(folder: Path, plan: Plan, network: Network) -> None:
    """Write what ``plan`` names; ``folder`` is where the plan is.

    Raises UnwritableError, and BuildError as :func:`weight_files` does.
    """
    for digest, constants in constants_named(network, plan).items():
        path = folder / _name(digest)
        if not path.is_file():  # plans of a run share most of them
            make_folder(path.parent)
            write_atomic(path, _content(constants))


def _name(digest: str) -> str:
    return f"{FOLDER}/{digest}.npz"


def _content(constants: LayerConstants) -> bytes:
    stream, weight = io.BytesIO(), constants.weight
    if constants.bias is None:
        np.savez_compressed(stream, weight=weight)
    else:
        np.savez_compressed(stream, weight=weight, bias=constants.bias)
    return stream.getvalue()


def with_weights(folder: Path, plan: Plan, network: Network) -> Network:
    """The network with the pruned weights that ``plan``, which is in ``folder``, names.

    Raises StoreError: a file is missing or damaged, or is not of the layer it is named for.
    """
    layers = {layer.name: layer.index for layer in network.graph.layers}
    steps = layer_steps(network.original or network)
    pruned = {}
    for choice in plan.choices:
        if choice.weights and choice.layer in layers:
            path, index = folder / _name(choice.weights), layers[choice.layer]
            constants = _load(path, choice.weights)
            step = steps[index]
            shapes = [None if a is None else a.shape for a in (step.weight, step.bias)]
            if shapes != [None if a is None else a.shape for a in (constants.weight,
                                                                   constants.bias)]:  # fmt: skip
                raise StoreError(f"{path} is not for layer {choice.layer!r}", hint=_AGAIN)
            pruned[index] = {choice.implementation.sparsity: constants}
    return with_pruned(network, pruned) if pruned else network


_AGAIN = "keep plan.json and the folder `weights` together as they were written"


def _load(path: Path, digest: str) -> LayerConstants:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            constants = LayerConstants(arrays["weight"], arrays.get("bias"))
    except OSError as err:
        raise StoreError(
            f"pruned weights {path} cannot be read: {err.strerror or err}", hint=_AGAIN
        ) from err
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as err:
        raise StoreError(f"pruned weights {path} are damaged", hint=_AGAIN) from err
    if digest_of(constants) != digest:
        raise StoreError(f"pruned weights {path} were altered", hint=_AGAIN)
    return constants
