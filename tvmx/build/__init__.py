"""Compile and link: kernels in a pool of killable workers, whole networks, cross linking.

Importing this package does not import TVM; ``build_network`` does when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmx.build._elf import ElfInfo, read_elf
from tvmx.build._job import SYMBOL, BuildFailure, BuildResult, FailureKind, KernelBuild
from tvmx.build._link import LINKER_ENV, Linker, fcompile, find_linker, host_arch, link
from tvmx.build._pool import BuildPool
from tvmx.build._ray_cluster import RayCluster
from tvmx.build._ray_pool import RayPool

if TYPE_CHECKING:
    from tvmx.build._nest_features import nest_features
    from tvmx.build._network import NetworkBuild, build_network

__all__ = [
    "LINKER_ENV",
    "SYMBOL",
    "BuildFailure",
    "BuildPool",
    "BuildResult",
    "ElfInfo",
    "FailureKind",
    "KernelBuild",
    "Linker",
    "NetworkBuild",
    "RayCluster",
    "RayPool",
    "build_network",
    "fcompile",
    "find_linker",
    "host_arch",
    "link",
    "nest_features",
    "read_elf",
]


def __getattr__(name: str) -> Any:
    if name == "nest_features":
        from tvmx.build._nest_features import nest_features

        return nest_features
    if name in ("NetworkBuild", "build_network"):
        from tvmx.build import _network

        return getattr(_network, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
