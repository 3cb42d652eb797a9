"""What a core can do at most, by its clock: to hold the probe's figures against.

Float32 operations a cycle (a multiply-add is two). Measured peaks agree with these: pigirons'
cpufp reports 11.96 GFLOP/s on a Cortex-A72 at 1.5 GHz, 11.26 on an A53 at 1.41, 38.37 on an A76
at 2.4, and 153.5 int8 GOP/s there by sdot. The others are taken to be like the nearest of these
(two 64-bit or 128-bit multiply-add pipes); no measurement of them is known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvmx.targets import Target
from tvmx.templates import is_x86

_FLOATS = {
    "cortex-a53": 8, "cortex-a55": 8, "cortex-a57": 8, "cortex-a72": 8, "cortex-a73": 8,
    "cortex-a76": 16, "cortex-a77": 16, "cortex-a78": 16, "neoverse-n1": 16,
}  # fmt: skip
_X86_UNITS = 2
_SDOT = 4
"""A dot product of bytes is issued like a float multiply-add and does four times as much."""


@dataclass(frozen=True)
class Peak:
    """G(FL)OP/s of one core, and in words what that follows from."""

    value: float
    basis: str


def float_peak(target: Target) -> Peak | None:
    """Of the target's fastest core; None for a core that is not known."""
    core = target.big
    basis = f"{core.core} at {core.clock_mhz} MHz"
    if is_x86(target):
        cycle = _X86_UNITS * 2 * target.lanes("float32")
        return Peak(cycle * core.clock_mhz / 1e3, f"two units at {core.clock_mhz} MHz")
    if core.core not in _FLOATS:
        return None
    return Peak(_FLOATS[core.core] * core.clock_mhz / 1e3, basis)


def int8_peak(target: Target) -> Peak | None:
    """The same for int8; known where the core has an instruction for it."""
    peak = float_peak(target)
    if peak is None or target.int8_dot not in ("sdot", "vnni512", "vnni256"):
        return None
    return Peak(_SDOT * peak.value, peak.basis)
