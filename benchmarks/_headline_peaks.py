"""What a core's multiply-add instructions can do at most: the ceiling above every kernel."""

from __future__ import annotations

from tvmx.simulate._core import SimulatedCore
from tvmx.simulate._mca import analyser
from tvmx.targets import Target

_SUMS = 16  # independent, so that latencies do not count
_FMLA, _SDOT, _SMULL = 4, 16, 8  # products of one instruction on vectors of 128 bits


def int8_macs_per_cycle(target: Target, core: SimulatedCore) -> float:
    """int8 products a simulated core adds up in a cycle, as llvm-mca has its instructions.

    Raises SimulationError.
    """
    loop, products = _dot() if target.int8_dot == "sdot" else _widening()
    return products / _cycles(core, loop)


def float_macs_per_cycle(core: SimulatedCore) -> float:
    """The same of float32. Raises SimulationError."""
    loop = [f"\tfmla\tv{i}.4s, v{28 + i % 2}.4s, v{30 + i % 2}.4s" for i in range(_SUMS)]
    return _FMLA * _SUMS / _cycles(core, loop)


def _dot() -> tuple[list[str], int]:
    loop = [f"\tsdot\tv{i}.4s, v{28 + i % 2}.16b, v{30 + i % 2}.16b" for i in range(_SUMS)]
    return loop, _SDOT * _SUMS


def _widening() -> tuple[list[str], int]:
    """Two products to 16 bits, then added up in pairs to 32: as the ``smlal`` kernels do."""
    half = _SUMS // 2
    loop = [f"\tsmull\tv{16 + i}.8h, v24.8b, v{25 + i % 4}.8b" for i in range(half)]
    loop += [f"\tsmlal2\tv{16 + i}.8h, v24.16b, v{25 + i % 4}.16b" for i in range(half)]
    loop += [f"\tsadalp\tv{i}.4s, v{16 + i}.8h" for i in range(half)]
    return loop, 2 * _SMULL * half


def _cycles(core: SimulatedCore, loop: list[str]) -> float:
    (cycles,) = analyser(core.triple, core.mca_cpu, core.mca_attrs).loop_cycles([loop])
    assert cycles, core.name
    return cycles
