"""What a run must know before it may change a layer's numbers: ranges and sensitivities."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from tvmx.accuracy import (
    Dataset,
    Metric,
    Samples,
    calibrate,
    correct_biases,
    joint_drop,
    sensitivities,
    sensitivity_key,
    spread,
)
from tvmx.errors import StoreError
from tvmx.explore._request import ExploreRequest
from tvmx.ir import DENSE, ChannelValues, Implementation, Layer, Plan, TensorSpec
from tvmx.numerics import QuantParams
from tvmx.passes import Simulator, activations_of, equalisation, equalised
from tvmx.store import Run, write_atomic
from tvmx.targets import load_target

if TYPE_CHECKING:
    from tvmx.explore._context import Context

Array = npt.NDArray[Any]

_FILE = "sensitivity.json"
_PROBE = 32  # samples that tell how long simulating takes, and the fewest to judge plans on
_JOINT_S = 4.0
_JOINT_SHARE = 1 / 15  # of what sensitivities may take; whichever is less
_CORRECTED = 32  # calibration samples that the biases of a plan's int8 layers are corrected on
_FEWEST = 8  # samples, however short the time: whole plans are checked on all of them


Corrected = frozenset[tuple[int, str]]
"""The layers whose biases are corrected together: index, and which of its weights are left."""


@dataclass
class Compression:
    """Calibrated ranges and per-layer accuracy drops, measured by simulation on the host.

    Uses the calibration samples and the visible half; the held-out half is never looked at.
    """

    context: Context
    data: Dataset
    metric: Metric
    request: ExploreRequest
    simulator: Simulator
    params: dict[int, QuantParams]
    drops: dict[str, float]
    _judged: Samples | None = None
    _keep: Callable[[int], None] = lambda samples: None
    _judging: int = 0  # samples, where an earlier part of the run has decided it
    _joint_s: float = _JOINT_S
    _corrections: dict[Corrected, dict[int, Array]] = field(default_factory=dict)
    _corrected: Corrected = frozenset()

    @classmethod
    def prepare(
        cls, context: Context, data: Dataset, metric: Metric, request: ExploreRequest,
        options: Mapping[int, Sequence[Implementation]],
    ) -> Compression:  # fmt: skip
        """Equalise, calibrate and correct as asked; sensitivities come with :meth:`measure`."""
        network, host, specs = context.network, load_target("host"), _specs(context)
        if request.equalise:
            network = equalised(network, equalisation(network))
        simulator, corrected = Simulator(network, host), frozenset[tuple[int, str]]()
        params = calibrate(simulator, data.calibration, specs, request.calibration)
        if request.bias_correction:
            int8 = {index: i for index, legal in options.items() for i in legal
                    if i.precision == "int8" and i.sparsity == DENSE and not i.exact}  # fmt: skip
            found = correct_biases(simulator, data.calibration, specs, params, int8)
            simulator, corrected = Simulator(network, host, found), _constants_of(int8)
        return cls(
            context, data, metric, request, simulator, params, {},
            _corrections={corrected: simulator.corrections}, _corrected=corrected,
        )  # fmt: skip

    def correcting(self, chosen: Mapping[int, Implementation]) -> Compression:
        """With biases corrected for the int8 layers among ``chosen``, where that is asked for.

        Corrections that were found behind a layer int8 ruins make up for that, and would ruin the
        network in which the layer is float.
        """
        int8 = {i: c for i, c in chosen.items() if c.precision == "int8" and not c.exact}
        key = _constants_of(int8)
        if not self.request.bias_correction or key == self._corrected:
            return self
        simulator = self.simulator
        if key not in self._corrections:
            self._corrections[key] = correct_biases(
                simulator.with_corrections({}), self.data.calibration, _specs(self.context),
                self.params, int8, most_samples=_CORRECTED,
            )  # fmt: skip
        simulator = simulator.with_corrections(self._corrections[key])
        return replace(self, simulator=simulator, _corrected=key)

    def describe(self) -> list[str]:
        """What was done to the layers before they were judged, for a result's notes."""
        network, corrected = self.simulator.network, self.simulator.corrections
        total = len(network.graph.layers)
        found = []
        if self.request.equalise:
            found.append(f"the channels of {len(network.equalised)} of {total} layers equalised")
        if self.request.bias_correction:
            found.append(f"the biases of {len(corrected)} of {total} layers corrected for int8")
        return found

    def complete(self, plan: Plan) -> Plan:
        """The plan with what its layers' constants depend on: nothing where all are as trained."""
        if plan.exact:
            return plan
        chosen = {c.layer: c.implementation for c in plan.choices}
        kinds = {layer: implementation.precision for layer, implementation in chosen.items()}
        layers = self.simulator.network.graph.layers
        mine = {la.index: chosen[la.name] for la in layers if la.name in chosen}
        corrections = self.correcting(mine).simulator.corrections
        return plan.model_copy(
            update={
                "activations": activations_of(self.params) if "int8" in kinds.values() else (),
                "equalisation": self.simulator.network.equalised,
                "corrections": tuple(
                    ChannelValues.of(layer.name, corrections[layer.index])
                    for layer in layers
                    if layer.index in corrections and kinds.get(layer.name) == "int8"
                ),
            }
        )

    def constants(self) -> dict[str, Any]:
        """What every plan with changed layers shares: activations and equalisation."""
        return {
            "activations": activations_of(self.params),
            "equalisation": self.simulator.network.equalised,
        }

    def measure(
        self, options: Mapping[int, Sequence[Implementation]], run: Run, budget_s: float,
        on_step: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:  # fmt: skip
        """Sensitivity of every layer to every precision and sparsity, cached in the run.

        ``on_step`` is told how many figures of how many are known. Returns the number of
        samples simulated, 0 where the run knew all figures.
        """
        names = {layer.index: layer.name for layer in self.context.covered}
        total = len(
            {sensitivity_key(names[at], i) for at, legal in options.items() for i in legal
             if not i.exact}
        )  # fmt: skip
        path = run.work / _FILE
        kept = _Kept.load(path) if path.is_file() else _Kept()

        def save() -> None:
            write_atomic(path, kept.model_dump_json(indent=1) + "\n")

        def keep(key: str, drop: float) -> None:
            kept.points[key] = drop
            on_step(len(kept.points), total)
            save()

        def judged(samples: int) -> None:
            kept.judged = samples
            save()

        def used(samples: int) -> None:
            kept.samples = samples

        # A resumed table is completed on as many samples as it was begun with.
        most = kept.samples or None
        found = sensitivities(
            self.simulator, self.data.visible, _specs(self.context), self.metric, self.params,
            options, budget_s=budget_s, fewest_samples=most or _FEWEST, most_samples=most,
            known=dict(kept.points), on_result=keep, on_samples=used,
        )  # fmt: skip
        self.drops = found.points
        self._keep, self._judging = judged, kept.judged
        self._joint_s = min(_JOINT_S, _JOINT_SHARE * budget_s)
        return found.samples

    def drop(self, layer: Layer, implementation: Implementation) -> float:
        """Expected loss in points when only this layer takes this implementation."""
        if implementation.exact:
            return 0.0
        return self.drops[sensitivity_key(layer.name, implementation)]

    def allowed(
        self, options: Mapping[int, Sequence[Implementation]], limit: float
    ) -> dict[int, list[Implementation]]:
        """The options without those that alone lose more than ``limit`` points."""
        layers = {layer.index: layer for layer in self.context.covered}
        return {
            index: [i for i in legal if self.drop(layers[index], i) <= limit]
            for index, legal in options.items()
        }

    def joint(self, chosen: Mapping[int, Implementation]) -> float:
        """Drop in points of a whole choice on the visible half, simulated exactly.

        On an even share of it where all of it would take longer than a few seconds; on the same
        one when the run is continued.
        """
        visible = self.data.visible
        if self._judged is None and self._judging:
            self._judged = spread(visible, self._judging)
        if self._judged is None:
            started = time.monotonic()
            probe = spread(visible, _PROBE)
            self._drop(probe, chosen)
            per_sample = (time.monotonic() - started) / len(probe)
            self._judged = spread(visible, max(_PROBE, int(self._joint_s / per_sample)))
            self._keep(len(self._judged))
        return self._drop(self._judged, chosen)

    def _drop(self, samples: Samples, chosen: Mapping[int, Implementation]) -> float:
        simulator, specs = self.correcting(chosen).simulator, _specs(self.context)
        return joint_drop(simulator, samples, specs, self.metric, self.params, chosen)


def _constants_of(int8: Mapping[int, Implementation]) -> Corrected:
    """What the corrections for these layers depend on."""
    return frozenset((index, how.sparsity) for index, how in int8.items())


def _specs(context: Context) -> dict[str, TensorSpec]:
    return {spec.name: spec for spec in context.model.inputs}


class _Kept(BaseModel):
    """Figures so far, on how many samples they were simulated, and on how many whole plans."""

    model_config = ConfigDict(extra="forbid")

    samples: int = Field(default=0, ge=0)
    judged: int = Field(default=0, ge=0)
    points: dict[str, float] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> _Kept:
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as err:
            raise StoreError(
                f"{path} is damaged", hint="delete it, or explore again with --fresh"
            ) from err
