"""The one place that touches TVM names which move between releases.

Seen moving so far: ``tvm.tir`` -> ``tvm.tirx``, schedules -> ``tvm.s_tir``,
``relax.Constant`` -> ``tvm.ir.GenericConst``, string targets -> dict targets. Importing this
module imports TVM (about 3 s), so nothing on the command line's start-up path may.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

# tvm_ffi imports torch where it is installed, for tensor exchange tvmx does not use: over 2 s
# and 200 MB. A None in sys.modules makes that import fail; it is taken out again below.
_HIDE_TORCH = "torch" not in sys.modules
if _HIDE_TORCH:
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    import tvm
    from tvm import relax, s_tir, te, tirx, topi
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder
finally:
    if _HIDE_TORCH:
        del sys.modules["torch"]

if TYPE_CHECKING:
    from tvmx.targets import Target

__all__ = [
    "IRBuilder", "build_module", "builder", "make_target", "relax", "s_tir", "te", "tirx", "topi",
    "tvm",
]  # fmt: skip

VERSION: str = tvm.__version__


def make_target(target: Target) -> Any:
    """The ``tvm.target.Target`` of a tvmx target."""
    return tvm.target.Target(target.tvm_config())


def build_module(mod: Any, target: Target) -> Any:
    """Compile an IRModule of scheduled PrimFuncs to a runtime module (LLVM code, not linked)."""
    return tvm.tirx.build(mod, target=make_target(target))
