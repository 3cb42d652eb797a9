"""DeployEnv: choosing an implementation for every layer, as a gymnasium environment."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import gymnasium
import numpy as np
import numpy.typing as npt

from tvmx.errors import UsageError
from tvmx.ir._cost_table import CostTable
from tvmx.search._border import BorderWalk
from tvmx.search._budgets import NO_BUDGETS, Budgets
from tvmx.search._graph_walk import walk_of
from tvmx.search._ledger import Ledger
from tvmx.search._measured import Measure, Measurer
from tvmx.search._memo import TableBorder
from tvmx.search._objective import TIE_BREAK, check_objective
from tvmx.search._observation import (
    DECIDED,
    DROP_LEFT,
    FEATURES,
    RELATIVE,
    WEIGHTS_LEFT,
    Vector,
    slot_of,
    slots_of,
    static_rows,
)

ENV_ID = "tvmx/Deploy-v0"

_SLOWEST = 50.0  # baselines: what takes longer is rewarded no less
_FAILED = 100.0  # times as large as the limit no plan's arena is

ArenaBytes = Callable[[tuple[int, ...]], int]
Step = tuple[Vector, float, bool, bool, dict[str, Any]]


class DeployEnv(gymnasium.Env[Vector, Any]):
    """Walks the layers of a network in topological order; each step chooses one implementation.

    ## Action space
    ``Discrete(n)``, n the most implementations any layer has. Action i is the layer's
    ``implementations[i]``: a precision, a sparsity, a layout and a template at once.
    ``info["action_mask"]`` and :meth:`action_masks` tell which are legal: those that could be
    measured and leave a way to the end within the accuracy and weights budgets, so there always
    is one. A masked action raises :class:`tvmx.errors.UsageError`, it is never remapped.

    ## Observation space
    ``Box(0, 1, (15 + 1 + slots,), float32)``:

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
    | 13  | share of the accuracy budget that is left                | 0 to 1, 1: none  |
    | 14  | share of the memory (weights) budget that is left        | 0 to 1, 1: none  |
    | 15  | no previous layer                                        | 0 or 1           |
    | 16+ | previous layer's implementation, one-hot over ``slots``  | 0 or 1           |

    Features 1 to 9 need the layer's workload in ``table.workloads`` and are 0 without.

    ## Reward
    With objective ``latency``: (baseline us - chosen us) of this layer, conversions at its
    borders included, over the baseline's total us; the last step adds the outputs'
    conversions. The return of an episode is (baseline total - plan total) / baseline total.
    ``weights``: the same of packed constants' bytes. ``arena``: the last step is rewarded
    with the same of ``arena_bytes(assignment)``. Both add the latency's reward times
    ``TIE_BREAK``. A plan over ``budgets.max_arena_bytes``, which shows at the end only, gets a
    last reward that makes its return less than any that keeps it: less than every layer at
    its slowest and every tensor through every conversion would return, and the less the more
    it is over.

    In **measured mode** (``measure`` is given) the latency's reward is 0 until the last step, which
    is rewarded with the share of the baseline's latency that the whole plan saves, both measured
    end to end (at least -50: what is slower is no worse). A plan that cannot be built or measured,
    or computes something wrong, returns less than any other.

    ## Episode
    Starts at the first layer and terminates after the last one; never truncated.
    ``info`` has ``layer`` (index), ``action_mask`` (int8), ``baseline`` (the baseline's action;
    where the budgets mask it the legal action of least latency, the first of equals; -1 at the
    end), ``previous`` (slot of the previous layer, -1 at the start) and ``state`` (hashable; what
    tabular agents key on: the layer with the formats of the tensors still to be read, as a number
    that only this environment object knows, if the walk is resumable, else with ``previous``; then,
    with an accuracy or weights budget, what is left of each, roughly: one of 5 levels). That of
    :meth:`reset` also has ``options``, for every layer the actions that the mask permits in some
    episode. After the last step it also has ``assignment``, ``latency_us``, ``weights_bytes``,
    ``accuracy_drop`` (points), ``feasible`` (whether all budgets are kept) and, with objective
    ``arena`` or a budget for it, ``arena_bytes``. In measured mode ``info`` always has
    ``measurements``, how many plans were measured so far by this environment and its forks (each
    plan once, however often it is played), and after the last step ``measured_us`` (None without a
    figure), ``outcome`` (``ok``, ``build``, or a status of :class:`tvmx.measure.Measurement`;
    ``feasible`` is False unless ``ok``) and ``message``; ``latency_us`` is still the table's.

    ## Arguments
    ``table``; ``walk`` (default: over the table's network, with its branches and joins; without
    a ``table.graph`` over the chain of its layers); ``objective``;
    ``budgets``; ``arena_bytes`` (assignment to bytes; needed for objective ``arena`` and for
    ``budgets.max_arena_bytes``); ``slots`` (a fixed slot list, so that one policy fits
    several tables); ``measure`` (assignment to :class:`tvmx.search.Measured`: measured mode).
    Raises UsageError when no plan keeps the accuracy and weights budgets.

    ## Version history
    * v0: table mode. Until its release it changes without a new number: budgets added features
      13 and 14, masks that depend on the episode, and the levels in ``state``; tables that bring
      their network along, its branches and joins as the default; ``options``.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium declares it so)
    _layer: int
    _us: float
    _return: float
    _previous: int
    _assignment: list[int]

    def __init__(
        self,
        table: CostTable,
        walk: BorderWalk | None = None,
        *,
        objective: str = "latency",
        budgets: Budgets = NO_BUDGETS,
        arena_bytes: ArenaBytes | None = None,
        slots: Sequence[str] | None = None,
        measure: Measure | None = None,
    ) -> None:
        self.table = table
        self.objective = check_objective(objective)
        self.budgets = budgets
        needs_arena = self.objective == "arena" or budgets.max_arena_bytes is not None
        if needs_arena and arena_bytes is None:
            raise UsageError(
                "objective 'arena' and an arena budget need arena_bytes, a function of the "
                "assignment"
            )
        self._arena_bytes = arena_bytes if needs_arena else None
        self._measurer = None if measure is None else Measurer(measure)
        self.walk = walk if walk is not None else walk_of(table)
        self._border = TableBorder(self.walk, [costs.implementations for costs in table.layers])
        self._prepare_slots(slots)
        self._prepare_baseline()
        width = max(len(costs.implementations) for costs in table.layers)
        self._prepare_masks(width)
        self._ledger = Ledger(table, budgets, width) if budgets.additive else None
        self._options = tuple(
            tuple(costs.legal) if self._ledger is None else self._ledger.possible(layer)
            for layer, costs in enumerate(table.layers)
        )
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
        if self._ledger is not None:
            return self._ledger.mask()
        legal: npt.NDArray[np.bool_] = self._masks[self._layer].astype(np.bool_)
        return legal

    def fork(self) -> DeployEnv:
        """Another environment of the same kind, at the start of an episode of its own.

        Both share what was worked out about the table, which makes many of them cheap.
        """
        other = copy.copy(self)
        other._border = copy.copy(self._border)
        other._ledger = copy.copy(self._ledger)
        other._start()
        return other

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Vector, dict[str, Any]]:
        """Back to the first layer. The environment draws no random numbers itself."""
        super().reset(seed=seed)
        self._start()
        observation, info = self._observe()
        info["options"] = self._options
        return observation, info

    def step(self, action: SupportsIndex) -> Step:
        """Place the current layer. Raises UsageError for a masked action or a finished episode."""
        layer, index = self._layer, operator.index(action)
        latencies = self._latency[layer]
        latency = latencies[index] if 0 <= index < len(latencies) else None
        ledger = self._ledger
        if latency is None or (ledger is not None and not ledger.allows(index)):
            raise self._refusal(index)
        if ledger is not None:
            ledger.spend(index)
        us = latency + self._border.place(layer, index)
        self._layer = layer + 1
        self._assignment.append(index)
        self._previous = self._slot[layer][index]
        last = self._layer == self._count
        self._us += us
        summary = self._summary() if last else None
        reward = self._latency_reward(self._expected[layer] - us, summary)
        if self.objective != "latency":
            reward = self._bytes_reward(layer, index, summary) + TIE_BREAK * reward
        if summary is not None:
            reward = self._limited(reward, summary)
        self._return += reward
        observation, info = self._observe()
        if summary is not None:
            info.update(summary)
        return observation, reward, last, False, info

    def _start(self) -> None:
        self._layer = 0
        self._us = 0.0
        self._return = 0.0
        self._previous = -1
        self._assignment = []
        self._border.reset()
        if self._ledger is not None:
            self._ledger.reset()

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
        state: tuple[int, ...] = (layer, previous if past is None else past)
        baseline, ledger = self._baseline[layer], self._ledger
        if ledger is None:
            mask = self._masks[layer].copy()
        else:
            row[DROP_LEFT], row[WEIGHTS_LEFT] = ledger.shares()
            state += ledger.levels()
            mask = ledger.mask().view(np.int8)
            if layer < self._count and not mask[baseline]:
                baseline = next(a for a in self._fastest[layer] if mask[a])
        info = {
            "layer": layer,
            "action_mask": mask,
            "baseline": baseline,
            "previous": previous,
            "state": state,
        }
        if self._measurer is not None:
            info["measurements"] = self._measurer.count
        return row, info

    def _latency_reward(self, saved_us: float, summary: dict[str, Any] | None) -> float:
        if self._measurer is None:
            return saved_us / self._total
        if summary is None:
            return 0.0
        found = self._measurer(summary["assignment"])
        summary |= {
            "measured_us": found.latency_us, "outcome": found.outcome, "message": found.message,
            "feasible": summary["feasible"] and found.saved is not None,
        }  # fmt: skip
        return max(found.saved or 0.0, -_SLOWEST)

    def _limited(self, reward: float, summary: dict[str, Any]) -> float:
        """The last reward: a plan past the arena's limit, or without a figure, gets a penalty."""
        if summary.get("outcome", "ok") != "ok":
            return self._worst - _FAILED - self._return
        if not summary["feasible"]:
            return self._worst - self._excess(summary) - self._return
        if self._measurer is None or self.budgets.max_arena_bytes is None:
            return reward
        return max(reward, self._worst - self._return)  # what is measured may be slower than any

    def _bytes_reward(self, layer: int, index: int, summary: dict[str, Any] | None) -> float:
        if self.objective == "weights":
            sizes = self._weights[layer]
            return (sizes[self._baseline[layer]] - sizes[index]) / max(1, self._base_weights)
        if summary is None:
            return 0.0
        saved: int = self._base_arena - summary["arena_bytes"]
        return saved / max(1, self._base_arena)

    def _summary(self) -> dict[str, Any]:
        assignment = tuple(self._assignment)
        summary: dict[str, Any] = {
            "assignment": assignment,
            "latency_us": self._us,
            "weights_bytes": sum(w[i] for w, i in zip(self._weights, assignment, strict=True)),
            "accuracy_drop": self.table.accuracy_drop(assignment),
            "feasible": True,
        }
        if self._arena_bytes is not None:
            arena = summary["arena_bytes"] = self._arena_bytes(assignment)
            limit = self.budgets.max_arena_bytes
            summary["feasible"] = limit is None or arena <= limit
        return summary

    def _excess(self, summary: dict[str, Any]) -> float:
        """Above 1: the arena in units of its limit."""
        arena: int = summary["arena_bytes"]
        return arena / max(1, self.budgets.max_arena_bytes or 0)

    def _refusal(self, index: int) -> UsageError:
        if self._layer >= self._count:
            return UsageError("the episode is over", hint="call reset() before the next step()")
        costs = self.table.layers[self._layer]
        return UsageError(
            f"layer {costs.layer!r}: action {index} is masked; legal actions: "
            f"{', '.join(map(str, self.action_masks().nonzero()[0]))}",
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
        self._fastest = [
            [i for _, i in sorted((costs.latency_us[i] or 0.0, i) for i in costs.legal)]
            for costs in layers
        ]
        self._base_arena = 0
        if self._arena_bytes is not None:
            self._base_arena = self._arena_bytes(self.table.baseline)
        self._worst = self._worst_return()

    def _worst_return(self) -> float:
        """Less than any plan within the arena budget can return."""
        layers = self.table.layers
        slowest = sum(max(us for us in costs.latency_us if us is not None) for costs in layers)
        slowest += (len(layers) + 1) * sum(self.table.transitions.values())
        worst = 1 - slowest / self._total
        if self.objective == "weights":
            largest = sum(max(costs.weights_bytes) for costs in layers)
            return 1 - largest / max(1, self._base_weights) + TIE_BREAK * worst
        if self.objective == "arena":
            limit = self.budgets.max_arena_bytes or 0
            return 1 - limit / max(1, self._base_arena) + TIE_BREAK * worst
        return worst

    def _prepare_masks(self, width: int) -> None:
        self._masks = np.zeros((self._count + 1, width), np.int8)
        for i, costs in enumerate(self.table.layers):
            self._masks[i, list(costs.legal)] = 1
        self._masks.flags.writeable = False


def register() -> None:
    """Make ``gymnasium.make("tvmx/Deploy-v0", table=...)`` work; harmless when repeated."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(id=ENV_ID, entry_point="tvmx.search:DeployEnv")
