"""What every part of an exploration shares: the model cut into layers, templates, target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvmx.errors import BuildError
from tvmx.explore._evaluate import Task
from tvmx.explore._prune_own import layer_steps, with_own
from tvmx.explore._skip import skipped_layers
from tvmx.targets import Target, load_target
from tvmx.templates import Registry

if TYPE_CHECKING:
    from tvmx.ir import Implementation, Layer, Model
    from tvmx.passes import Network


def load_registry(schedules: Sequence[Path]) -> Registry:
    """Built-in templates, entry points, and the folders or files named by the user."""
    registry = Registry.with_builtin()
    for path in schedules:
        if path.is_dir():
            registry.add_folder(path)
        else:
            registry.add_file(path)
    return registry


@dataclass(frozen=True)
class Context:
    """A model on a target with its templates.

    ``exact``: layers are computed as the model states them, because there is no data to calibrate
    int8 with and to measure accuracy on. ``skipped`` are the names of layers that the user wants
    not to become int8.
    """

    model: Model
    network: Network
    registry: Registry
    target: Target
    exact: bool = True
    skipped: frozenset[str] = frozenset()

    @classmethod
    def open(
        cls, model: Path, shapes: dict[str, tuple[int, ...]], target: str,
        schedules: Sequence[Path], *, exact: bool = True, params: Path | None = None,
        skip: Sequence[str] = (),
    ) -> Context:  # fmt: skip
        """Load everything; raises ModelError, UnknownTargetError, TemplateLoadError.

        ``skip`` are globs on layer names; UsageError for one that matches none. Targets and
        templates come first: mistakes there are cheap to find.
        """
        from tvmx.frontends import load_model

        loaded = load_target(target)
        registry = load_registry(schedules)
        imported = load_model(model, shapes, params)
        from tvmx.passes import extract_layers

        network = extract_layers(imported)
        skipped = skipped_layers([layer.name for layer in network.graph.layers], skip)
        return cls(imported, network, registry, loaded, exact, skipped)

    @property
    def target_key(self) -> str:
        """Name and digest of the target, for journal keys.

        What no kernel depends on is left out: the host's clock is read anew each time, and
        jitters.
        """
        kept = self.target.model_dump(
            mode="json", exclude={"description", "sources", "memory_mib", "simulation"}
        )
        for cluster in kept["clusters"]:
            del cluster["clock_mhz"]
        text = json.dumps(kept, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.target.name}:{digest}"

    @property
    def covered(self) -> list[Layer]:
        """Layers that some template supports; raises BuildError when there are none."""
        layers = [
            layer
            for layer in self.network.graph.layers
            if self.registry.default(layer.workload, self.target) is not None
        ]
        if not layers:
            raise BuildError(
                f"{self.model.path}: no layer is covered by a schedule template "
                f"({len(self.network.graph.layers)} layers)",
                hint="`tvmx import` shows the layers, `tvmx schedules` the templates",
            )
        return layers

    def tasks(self, options: Mapping[int, Sequence[Implementation]]) -> list[Task]:
        """Every distinct (workload, implementation) among ``options``, the baseline's first."""
        tasks: dict[tuple[str, str], Task] = {}
        for layer in self.covered:
            for implementation in options[layer.index]:
                key = (layer.workload.digest, implementation.model_dump_json())
                entry = self.registry.get(implementation.template)
                tasks.setdefault(key, Task(layer.workload, entry, implementation))
        return list(tasks.values())

    def options(self) -> dict[int, list[Implementation]]:
        """Layer index -> the implementations it may get, for every covered layer."""
        legal: dict[tuple[str, bool], list[Implementation]] = {}
        in_float = self.network.graph.read_in_float
        keys = {layer.index: (layer.workload.digest, layer.index in in_float)
                for layer in self.covered}  # fmt: skip
        for layer in self.covered:
            key = keys[layer.index]
            if key not in legal:
                every = self.registry.implementations(
                    layer.workload, self.target, exact=self.exact, float_out=key[1]
                )
                legal[key] = [implementation for _, implementation in every]
        found = {
            layer.index: [
                i for i in legal[keys[layer.index]]
                if i.exact or i.precision != "int8" or layer.name not in self.skipped
            ]
            for layer in self.covered
        }  # fmt: skip
        steps = layer_steps(self.network)
        return {
            index: with_own(steps[index], ways, self.registry, self.target)
            for index, ways in found.items()
        }
