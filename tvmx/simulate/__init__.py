"""Simulated boards: TVM's RPC server for arm64 in an emulator on this machine."""

from tvmx.simulate._board import SimulatedBoard, require_board, simulate_forever
from tvmx.simulate._guest import Guest, add_wheels, find_guest, prepare
from tvmx.simulate._server import Emulation, PlainEmulation

__all__ = [
    "Emulation",
    "Guest",
    "PlainEmulation",
    "SimulatedBoard",
    "add_wheels",
    "find_guest",
    "prepare",
    "require_board",
    "simulate_forever",
]
