"""DeployEnv: choosing an implementation for every layer, as a gymnasium environment."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import gymnasium
import numpy as np
import numpy.typing as npt

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable
from tvmx.search._border import BorderWalk, ChainBorderWalk
from tvmx.search._memo import TableBorder
from tvmx.search._objective import TIE_BREAK, check_objective
from tvmx.search._observation import (
    DECIDED,
    FEATURES,
    RELATIVE,
    Vector,
    slot_of,
    slots_of,
    static_rows,
)

ENV_ID = "tvmx/Deploy-v0"

ArenaBytes = Callable[[tuple[int, ...]], int]
Step = tuple[Vector, float, bool, bool, dict[str, Any]]


class DeployEnv(gymnasium.Env[Vector, Any]):
    """Walks the layers of a network in topological order; each step chooses one implementation.

    ## Action space
    ``Discrete(n)``, n the most implementations any layer has. Action i is the layer's
    ``implementations[i]``. ``info["action_mask"]`` and :meth:`action_masks` tell which are
    legal; a masked action raises :class:`tvmx.errors.UsageError`, it is never remapped.

    ## Observation space
    ``Box(0, 1, (13 + 1 + slots,), float32)``:

    | num | observation                                              | scale            |
    |-----|----------------------------------------------------------|------------------|
    | 0   | position of the layer                                    | layer / layers   |
    | 1   | MACs                                                     | log2 / 40        |
    | 2   | input channels (features)                                | log2 / 16        |
    | 3   | output channels (features)                               | log2 / 16        |
    | 4   | output height                                            | log2 / 12        |
    | 5   | output width                                             | log2 / 12        |
    | 6   | kernel area                                              | log2 / 8         |
    | 7   | stride area                                              | log2 / 6         |
    | 8   | depthwise                                                | 0 or 1           |
    | 9   | dense                                                    | 0 or 1           |
    | 10  | the layer's share of the baseline's latency              | 0 to 1           |
    | 11  | share of the baseline's latency that is decided already  | 0 to 1           |
    | 12  | plan / (plan + baseline), us of the decided layers       | 0.5: as baseline |
    | 13  | no previous layer                                        | 0 or 1           |
    | 14+ | previous layer's implementation, one-hot over ``slots``  | 0 or 1           |

    Features 1 to 9 need the layer's workload in ``table.workloads`` and are 0 without.

    ## Reward
    With objective ``latency``: (baseline us - chosen us) of this layer, conversions at its
    borders included, over the baseline's total us; the last step adds the outputs'
    conversions. The return of an episode is (baseline total - plan total) / baseline total.
    ``weights``: the same of packed constants' bytes. ``arena``: the last step is rewarded
    with the same of ``arena_bytes(assignment)``. Both add the latency's reward times
    ``TIE_BREAK``.

    ## Episode
    Starts at the first layer and terminates after the last one; never truncated.
    ``info`` has ``layer`` (index), ``action_mask`` (int8), ``baseline`` (the baseline's
    action, -1 at the end), ``previous`` (slot of the previous layer, -1 at the start) and
    ``state`` (hashable; what tabular agents key on: the layer with the layouts of the
    tensors still to be read, as a number that only this environment object knows, if the
    walk is resumable, else with ``previous``). After the
    last step it also has ``assignment``, ``latency_us``, ``weights_bytes`` and, with
    objective ``arena``, ``arena_bytes``.

    ## Arguments
    ``table``; ``walk`` (default: the chain of the table's layers); ``objective``;
    ``arena_bytes`` (assignment to bytes; needed for ``arena``); ``slots`` (a fixed slot
    list, so that one policy fits several tables).

    ## Version history
    * v0: first version, table mode.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium declares it so)
    _layer: int
    _us: float
    _previous: int
    _assignment: list[int]

    def __init__(
        self,
        table: CostTable,
        walk: BorderWalk | None = None,
        *,
        objective: str = "latency",
        arena_bytes: ArenaBytes | None = None,
        slots: Sequence[str] | None = None,
    ) -> None:
        self.table = table
        self.objective = check_objective(objective)
        if self.objective == "arena" and arena_bytes is None:
            raise UsageError("objective 'arena' needs arena_bytes, a function of the assignment")
        self._arena_bytes = arena_bytes
        walk = walk if walk is not None else ChainBorderWalk.from_table(table)
        self._border = TableBorder(walk, [costs.implementations for costs in table.layers])
        self._prepare_slots(slots)
        self._prepare_baseline()
        width = max(len(costs.implementations) for costs in table.layers)
        self._prepare_masks(width)
        shares = [us / self._total for us in self._expected]
        self._rows = static_rows(table, shares, len(self.slots))
        self.action_space = gymnasium.spaces.Discrete(width)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, self._rows[0].shape, np.float32)
        self._start()

    @property
    def baseline_us(self) -> float:
        """Latency of the baseline plan in us: all layers and all border conversions."""
        return self._total

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Which actions are legal now, bool of shape (n,)."""
        legal: npt.NDArray[np.bool_] = self._masks[self._layer].astype(np.bool_)
        return legal

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:
        """Back to the first layer. The environment draws no random numbers itself."""
        super().reset(seed=seed)
        self._start()
        return self._observe()

    def step(self, action: SupportsIndex) -> Step:
        """Place the current layer. Raises UsageError for a masked action or a finished episode."""
        layer, index = self._layer, operator.index(action)
        latencies = self._latency[layer]
        latency = latencies[index] if 0 <= index < len(latencies) else None
        if latency is None:
            raise self._refusal(index)
        us = latency + self._border.place(layer, index)
        self._layer = layer + 1
        self._assignment.append(index)
        self._previous = self._slot[layer][index]
        last = self._layer == self._count
        self._us += us
        reward = (self._expected[layer] - us) / self._total
        if self.objective != "latency":
            reward = self._bytes_reward(layer, index, last) + TIE_BREAK * reward
        observation, info = self._observe()
        if last:
            info.update(self._summary())
        return observation, reward, last, False, info

    def _start(self) -> None:
        self._layer = 0
        self._us = 0.0
        self._previous = -1
        self._assignment = []
        self._border.reset()

    def _observe(self) -> tuple[Vector, dict[str, Any]]:
        layer, previous = self._layer, self._previous
        row = self._rows[layer].copy()
        decided = self._decided[layer]
        if layer:
            row[DECIDED] = min(1.0, decided / self._total)
            row[RELATIVE] = self._us / (self._us + decided)
        else:
            row[RELATIVE] = 0.5
        row[len(FEATURES) + 1 + previous] = 1.0
        past = self._border.state
        return row, {
            "layer": layer,
            "action_mask": self._masks[layer].copy(),
            "baseline": self._baseline[layer],
            "previous": previous,
            "state": (layer, previous if past is None else past),
        }

    def _bytes_reward(self, layer: int, index: int, last: bool) -> float:
        if self.objective == "weights":
            sizes = self._weights[layer]
            return (sizes[self._baseline[layer]] - sizes[index]) / max(1, self._base_weights)
        if not last or self._arena_bytes is None:
            return 0.0
        self._arena = self._arena_bytes(tuple(self._assignment))
        return (self._base_arena - self._arena) / max(1, self._base_arena)

    def _summary(self) -> dict[str, Any]:
        assignment = tuple(self._assignment)
        summary: dict[str, Any] = {
            "assignment": assignment,
            "latency_us": self._us,
            "weights_bytes": sum(w[i] for w, i in zip(self._weights, assignment, strict=True)),
        }
        if self.objective == "arena":
            summary["arena_bytes"] = self._arena
        return summary

    def _refusal(self, index: int) -> UsageError:
        if self._layer >= self._count:
            return UsageError("the episode is over", hint="call reset() before the next step()")
        costs = self.table.layers[self._layer]
        return UsageError(
            f"layer {costs.layer!r}: action {index} is masked; legal actions: "
            f"{', '.join(map(str, costs.legal))}",
            hint='choose where info["action_mask"] is 1',
        )

    def _prepare_slots(self, slots: Sequence[str] | None) -> None:
        self.slots = tuple(slots) if slots is not None else slots_of(self.table)
        number = {slot: i for i, slot in enumerate(self.slots)}
        missing = [slot for slot in slots_of(self.table) if slot not in number]
        if missing:
            raise UsageError(f"slots lack {missing[0]!r}, which the cost table uses")
        self._slot = [
            [number[slot_of(i)] for i in costs.implementations] for costs in self.table.layers
        ]

    def _prepare_baseline(self) -> None:
        layers = self.table.layers
        self._count = len(layers)
        # The empty row at the end makes a step after the last one look like a masked action.
        self._latency = [*(costs.latency_us for costs in layers), ()]
        self._weights = [costs.weights_bytes for costs in layers]
        self._baseline = [*self.table.baseline, -1]
        self._border.reset()
        self._expected: list[float] = []
        for i, costs in enumerate(layers):
            us = costs.latency_us[costs.baseline] or 0.0
            self._expected.append(us + self._border.place(i, costs.baseline))
        self._total = sum(self._expected)
        self._decided = [sum(self._expected[:i]) for i in range(self._count + 1)]
        self._base_weights = self.table.weights_bytes(self.table.baseline)
        self._arena = 0
        needed = self._arena_bytes if self.objective == "arena" else None
        self._base_arena = needed(self.table.baseline) if needed else 0

    def _prepare_masks(self, width: int) -> None:
        self._masks = np.zeros((self._count + 1, width), np.int8)
        for i, costs in enumerate(self.table.layers):
            self._masks[i, list(costs.legal)] = 1
        self._masks.flags.writeable = False


def register() -> None:
    """Make ``gymnasium.make("tvmx/Deploy-v0", table=...)`` work; harmless when repeated."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(id=ENV_ID, entry_point="tvmx.search:DeployEnv")
