"""How an exploration prunes: by magnitude, or reconstructed on the calibration samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from tvmx.accuracy import PrunedLayer, Samples, prunable, prune_layers
from tvmx.errors import StoreError
from tvmx.explore._budget import now
from tvmx.explore._prune_own import layer_steps
from tvmx.ir import BlockSparsity, Implementation
from tvmx.passes import Simulator, with_pruned
from tvmx.store import write_atomic
from tvmx.targets import load_target

if TYPE_CHECKING:
    from tvmx.explore._context import Context
    from tvmx.passes import Network

Pruned = Mapping[int, Mapping[str, PrunedLayer]]
RECONSTRUCTED = "reconstructed.json"


class Reconstruction(BaseModel):
    """Which layers were reconstructed within their time; those ``left`` prune by magnitude.

    It is kept in the run: accuracies that a run knows are those of these weights, so that a run
    that is continued reconstructs the same layers, however long that takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    done: tuple[str, ...]
    left: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> Reconstruction | None:
        """What an earlier part of the run did, if there is one. Raises StoreError."""
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as err:
            raise StoreError(
                f"{path} is damaged", hint="explore again with --fresh, or into another folder"
            ) from err


def reconstructed(
    context: Context, samples: Samples, options: Mapping[int, Sequence[Implementation]],
    folder: Path, seconds: float | None, on_step: Callable[[int, int], None],
) -> tuple[Context, list[str]]:  # fmt: skip
    """The context whose network prunes as is best for each layer, and what to tell.

    Reconstruction is taken where it errs less than magnitude on samples it was not fitted to. It
    ends after about ``seconds`` (None: when all is done), with the layers that are done; which
    ones is written to ``folder``. ``on_step`` is told how many of how many layers are.
    """
    names = {layer.index: layer.name for layer in context.covered}
    steps = layer_steps(context.network)
    wanted = {
        index: sparsities for index, legal in options.items()
        if (sparsities := _sparsities(legal)) and prunable(steps[index])
    }  # fmt: skip
    if not wanted:
        return context, []
    path = folder / RECONSTRUCTED
    earlier = Reconstruction.load(path)
    if earlier is not None:
        wanted = {index: s for index, s in wanted.items() if names[index] in earlier.done}
    end = math.inf if earlier is not None or seconds is None else now() + seconds
    specs = {spec.name: spec for spec in context.model.inputs}
    simulator = Simulator(context.network, load_target("host"))
    count = iter(range(1, len(wanted) + 1))
    found = prune_layers(
        simulator, samples, specs, wanted,
        on_layer=lambda index: on_step(next(count), len(wanted)), stop=lambda: now() >= end,
    )  # fmt: skip
    if earlier is None:
        earlier = Reconstruction(
            done=tuple(names[index] for index in found),
            left=tuple(names[index] for index in wanted if index not in found),
        )
        write_atomic(path, earlier.model_dump_json(indent=1) + "\n")
    network = network_with(context.network, found)
    return replace(context, network=network), _told(found, earlier)


def _told(found: Pruned, how: Reconstruction) -> list[str]:
    methods = [made.method for levels in found.values() for made in levels.values()]
    better = methods.count("reconstruction")
    told = f"{better} of {len(methods)} pruned variants of {len(found)} layers reconstructed on "
    notes = [f"{told}calibration samples, the others are by magnitude"]
    if how.left:
        notes.append(
            f"{len(how.left)} more layers are pruned by magnitude: the budget has no time to "
            "reconstruct them"
        )
    return notes


def network_with(network: Network, pruned: Pruned) -> Network:
    """The network with the layers that were reconstructed; magnitude needs no constants."""
    return with_pruned(
        network,
        {
            index: {
                sparsity: made.constants for sparsity, made in levels.items()
                if made.method == "reconstruction"
            }
            for index, levels in pruned.items()
        },
    )  # fmt: skip


def _sparsities(legal: Sequence[Implementation]) -> list[BlockSparsity]:
    """Of the implementations that change a layer by pruning it."""
    texts = dict.fromkeys(how.sparsity for how in legal if not how.exact)
    return [s for text in texts if (s := BlockSparsity.parse(text)) is not None]
