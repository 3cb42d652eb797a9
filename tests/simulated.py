"""Tests on simulated boards: skipped with the reason where a board cannot be simulated."""

from __future__ import annotations

import os
import shutil

import pytest

from tvmx.errors import SimulationError
from tvmx.simulate import Guest, SimulatedBoard, find_guest, prepare
from tvmx.simulate._tools import QEMU, require
from tvmx.targets import load_target

REQUIRED = os.environ.get("TVMX_REQUIRE_SIM") == "1"


def tools_or_skip(*tools: str) -> None:
    """Skip where one of the programs is missing; with TVMX_REQUIRE_SIM=1 that is a failure."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing and not REQUIRED:
        pytest.skip(f"needs {', '.join(missing)}: make setup-sim")
    assert not missing


def guest_or_skip() -> Guest:
    """The prepared guest; with TVMX_REQUIRE_SIM=1 it is made, and nothing is skipped."""
    if REQUIRED:
        return prepare(print)
    try:
        require(QEMU)
        guest = find_guest()
    except SimulationError as err:
        pytest.skip(f"{err.message} ({err.hint})")
    if guest is None:
        pytest.skip("the arm64 guest is not prepared (tvmx simulate --prepare)")
    return guest


def board_or_skip(name: str) -> SimulatedBoard:
    """Simulated board ``name`` with its cycle model, not entered yet."""
    guest_or_skip()
    try:
        return SimulatedBoard(load_target(name))
    except SimulationError as err:
        if REQUIRED:
            raise
        pytest.skip(f"{err.message} ({err.hint})")
