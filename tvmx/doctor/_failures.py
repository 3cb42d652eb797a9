"""What a device's failure means, and what to do about it."""

from __future__ import annotations

from tvmx.doctor._diagnosis import Finding, broken, hint
from tvmx.doctor._judge import Facts, more_room, thirty_two_bit
from tvmx.measure import BOARD_INSTALL, DeviceAddress, FailedEvent
from tvmx.targets import Target

_THIRTY_TWO = ("wrong ELF class", "ELFCLASS")


def explain_failure(
    failure: FailedEvent, facts: Facts, address: DeviceAddress | None, target: Target | None
) -> Finding:
    """The line for a visit that ended early; ``facts`` are what was found until then.

    ``address`` is None for this machine's own server.
    """
    text, (phase, late, seconds) = failure.message, failure.message.partition(": no end after ")
    restart = _restart(address)
    if failure.status == "queue":
        return hint("connection", text, "type the same again when the device is free")
    if late and phase == "run":
        return broken("probe", f"it does not end within {seconds}: the device hangs", *restart)
    if late:
        return broken(
            "connection",
            f"no answer within {seconds}: its server hangs, or cannot be reached from here",
            *restart,
        )
    if failure.status == "load":
        return _unloadable(text, facts, target)
    if failure.status == "upload":
        return broken("probe", text, *more_room(_value(facts, "folder")))
    if failure.status == "crash" and "loaded" in facts:
        return _ended(target, restart)
    return broken("connection", text, "type the same again", *restart)


def _ended(target: Target | None, restart: tuple[str, ...]) -> Finding:
    generic = target is not None and target.arch == "aarch64" and target.name != "aarch64"
    other = ("the same with a generic target: --target aarch64",) if generic else ()
    name = f"target {target.name!r}" if target else "the target"
    return broken(
        "probe",
        f"its server ended while the probe ran: killed, or {name} uses what the core has not",
        *other,
        *restart,
    )


def incomplete_upload(facts: Facts) -> Finding:
    """Less arrived than was sent."""
    folder = _value(facts, "folder")
    return broken(
        "disk",
        f"no room for uploads in {folder}: {facts['sent'].value} bytes arrived",
        *more_room(folder),
    )


def _unloadable(text: str, facts: Facts, target: Target | None) -> Finding:
    """TVM's server says of any library that cannot be opened that it is not there."""
    if any(sign in text for sign in _THIRTY_TWO):
        return thirty_two_bit(_value(facts, "os"))
    made_for = f"{target.arch} and glibc {target.glibc}" if target else "another machine"
    return broken(
        "probe",
        f"it arrived whole and cannot be loaded; it is made for {made_for} ({text})",
        "on the device: uname -m; getconf LONG_BIT; ldd --version",
        f"on the device: {BOARD_INSTALL}",
    )


def _restart(address: DeviceAddress | None) -> tuple[str, ...]:
    if address is None:
        return ("type the same again",)
    serve = f"tvmx serve --key {address.key} --tracker {address.tracker} --commands"
    return (f"start its server anew; what to type there is printed by: {serve}",)


def _value(facts: Facts, name: str) -> str:
    return facts[name].value if name in facts else ""
