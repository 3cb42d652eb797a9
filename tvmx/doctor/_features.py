"""CPU features: what a target's code needs, against what a device has."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tvmx.targets import Target, list_targets, load_target, x86_features

_ARM = {
    "+neon": "asimd", "+dotprod": "asimddp", "+fullfp16": "asimdhp", "+i8mm": "i8mm",
    "+bf16": "bf16", "+sve": "sve", "+sve2": "sve2",
}  # fmt: skip
_X86_LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")


def missing_features(target: Target, features: Iterable[str]) -> list[str]:
    """What the target's code needs and the device does not have.

    ``features`` are the kernel's names: of HWCAP on AArch64, of /proc/cpuinfo on x86. There a
    whole micro-architecture level may be missing, such as ``x86-64-v3``.
    """
    have = set(features)
    if target.arch == "aarch64":
        return [name for name in arm_needs(target) if name not in have]
    cpu, extras, *_ = x86_features(have)
    levels = [target.cpu] if _rank(target.cpu) > _rank(cpu) else []
    return levels + [name for name in target.features if name not in extras]


def arm_needs(target: Target) -> list[str]:
    """The kernel's names of the features of an AArch64 target."""
    return [kernel for llvm, kernel in _ARM.items() if llvm in target.features]


def best_targets(arch: str, features: Iterable[str]) -> list[Target]:
    """The built-in targets that use most of what the device has, and nothing it has not."""
    have = set(features)
    fitting = [t for t in built_in_targets(arch) if not missing_features(t, have)]
    most = max((len(arm_needs(t)) for t in fitting), default=0)
    return [t for t in fitting if len(arm_needs(t)) == most]


def built_in_targets(arch: str) -> list[Target]:
    """The boards tvmx comes with, of one architecture."""
    found = (load_target(e.path) for e in list_targets() if e.path and e.origin == "built-in")
    return [target for target in found if target.arch == arch]


def target_of_model(identity: str) -> Target | None:
    """The built-in target of the board that says it is ``identity``.

    A target's description starts with the board's name, which its device tree has as well.
    """
    spelt = identity.replace(" Plus", "+")
    for target in built_in_targets("aarch64"):
        if re.split(r"[:(]", target.description)[0].strip() in spelt:
            return target
    return None


def _rank(cpu: str) -> int:
    return _X86_LEVELS.index(cpu) if cpu in _X86_LEVELS else -1
