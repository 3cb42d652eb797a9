"""A network with some of its layers int8: what that does, and how many samples can be afforded."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from tvmx.accuracy import (
    Effect,
    Judge,
    Samples,
    layer_effects,
    plan_effects,
)
from tvmx.explore._compress import Compression
from tvmx.explore._study import affordable
from tvmx.ir import Implementation
from tvmx.passes import Simulator


class Subsets:
    """Any choice among the layers ``int8`` (layer index -> implementation) being int8.

    Where the compression corrects biases, each subset gets corrections of its own.
    """

    def __init__(self, compression: Compression, int8: Mapping[int, Implementation]) -> None:
        self._compression, self._int8 = compression, int8
        self._specs = {spec.name: spec for spec in compression.context.model.inputs}
        self._last: Judge | None = None

    def alone(
        self, samples: Samples, on_layer: Callable[[int], None] = lambda index: None
    ) -> dict[int, Effect]:
        """Effects of each layer alone; biases uncorrected, which makes the figure the layer's."""
        simulator = self._compression.simulator
        if simulator.corrections:
            simulator = Simulator(simulator.network, simulator.host)
        return layer_effects(self._judge(simulator, samples), self._int8, on_layer)

    def effect(self, layers: Collection[int], samples: Samples) -> Effect:
        """Of these layers being int8 together, simulated exactly."""
        judge = self._judge(self.compression(layers).simulator, samples)
        (found,) = plan_effects(judge, [self._choices(layers)])
        return found

    def compression(self, layers: Collection[int]) -> Compression:
        """The compression with biases corrected for these layers."""
        return self._compression.correcting(self._choices(layers))

    def affordable(self, samples: Samples, runs: float, seconds: float) -> Samples:
        """As many as ``runs`` runs of the int8 network take ``seconds`` on, but no fewer than 16.

        They are evenly spread.
        """
        first = self._compression.context.model.inputs[0].shape
        return affordable(samples, first[0] if first else 1, self._run_s, runs, seconds)

    def _run_s(self, samples: Samples) -> float:
        """Seconds of all int8 layers, from the float network's values."""
        judge = self._judge(self._compression.simulator, samples)
        judge.simulate([])
        before = time.monotonic()
        judge.simulate([self._int8])
        return time.monotonic() - before

    def _choices(self, layers: Collection[int]) -> dict[int, Implementation]:
        return {index: self._int8[index] for index in layers}

    def _judge(self, simulator: Simulator, samples: Samples) -> Judge:
        """The last one again where it would be the same: it keeps the float network's values."""
        last, whole = self._last, self._compression
        if last is None or last.simulator is not simulator or last.samples is not samples:
            last = Judge(simulator, samples, self._specs, whole.metric, whole.params)
            self._last = last
        return last
