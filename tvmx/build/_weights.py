"""Weights as a read-only section of the library, instead of TVM's constant pool.

TVM serialises constants into a blob that LLVM writes out as one array, and the runtime copies
them three times when it loads the library: 512 MB of weights took 11 s and 3 GB to export and
2.4 GB to load. Here every tensor constant above a kilobyte goes into one binary file which
the assembler includes as the section ``.tvmx.weights``; the Relax function asks for a tensor
by number, and a generated C function wraps the mapped bytes without a copy. The pages are
loaded on demand, shared between processes, and can be dropped by the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tvm_ffi.libinfo

from tvmx._tvm import relax, tvm

FUNCTION = "tvmx_weight"
THRESHOLD_BYTES = 1024
_ALIGNMENT = 64  # what TVM's own allocations have, and kernels may rely on


@dataclass
class WeightTable:
    """The constants taken out of a module, each once, and their bytes together."""

    tensors: list[Any] = field(default_factory=list)
    total_bytes: int = 0
    _known: dict[tuple[int, tuple[int, ...], str], int] = field(default_factory=dict)

    def index(self, tensor: Any) -> int:
        """The number of a tensor; the same buffer keeps its number."""
        key = (tensor.data_ptr(), tuple(tensor.shape), str(tensor.dtype))
        if key not in self._known:
            self._known[key] = len(self.tensors)
            self.tensors.append(tensor)
            self.total_bytes += tensor_bytes(tensor)
        return self._known[key]

    def write(self, folder: Path) -> list[Path]:
        """Write the sources to link in: an assembler file, a C file, and the bytes beside them."""
        binary = folder / "weights.bin"
        offsets = []
        with binary.open("wb") as stream:
            for tensor in self.tensors:
                stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
                offsets.append(stream.tell())
                stream.write(memoryview(tensor.numpy()).cast("B"))
        assembly, code = folder / "weights.S", folder / "weights.c"
        assembly.write_text(_ASSEMBLY.format(path=binary, alignment=4096), encoding="utf-8")
        code.write_text(self._code(offsets), encoding="utf-8")
        return [assembly, code]

    def _code(self, offsets: list[int]) -> str:
        shapes, entries = [], []
        for number, (tensor, offset) in enumerate(zip(self.tensors, offsets, strict=True)):
            dtype = tvm.DataType(str(tensor.dtype))
            extents = ", ".join(str(int(extent)) for extent in tensor.shape) or "0"
            shapes.append(f"static int64_t shape_{number}[] = {{{extents}}};")
            entries.append(
                f"  {{{{(void*)(tvmx_weights + {offset}), {{kDLCPU, 0}}, {len(tensor.shape)},"
                f" {{{dtype.type_code}, {dtype.bits}, {dtype.lanes}}}, shape_{number}, NULL, 0}},"
                " NULL, NULL},"
            )
        return _CODE.format(
            shapes="\n".join(shapes),
            entries="\n".join(entries),
            count=len(entries),
            function=FUNCTION,
        )


def include_options() -> list[str]:
    """Compiler options that make the generated C file find TVM's header."""
    folders = {tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()}
    return [f"-I{folder}" for folder in sorted(folders)]


def tensor_bytes(tensor: Any) -> int:
    """Size of a TVM tensor in bytes."""
    dtype = tvm.DataType(str(tensor.dtype))
    return int(tensor.numel()) * -(-int(dtype.bits) * int(dtype.lanes) // 8)


def constant_tensors(mod: Any) -> list[Any]:
    """The tensor constants in the Relax functions of ``mod``, one entry per buffer."""
    found: dict[int, Any] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tvm.ir.GenericConst) and isinstance(node.value, tvm.runtime.Tensor):
            found.setdefault(node.value.data_ptr(), node.value)

    for func in mod.functions.values():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func.body, visit)
    return list(found.values())


def take_weights(mod: Any) -> tuple[Any, WeightTable]:
    """Replace the large tensor constants of a fully lowered Relax module by calls.

    Returns the module and the table of what was taken out; run it behind all other passes.
    """
    table = WeightTable()
    result = tvm.IRModule(dict(mod.functions.items()), attrs=mod.attrs)
    for name, func in mod.functions.items():
        if isinstance(func, relax.Function):
            result[name] = _Taker(table).visit_expr(func)
    return result, table


@relax.expr_functor.mutator
class _Taker(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, table: WeightTable) -> None:
        super().__init__()
        self.table = table

    def visit_generic_const_(self, op: Any) -> Any:
        tensor = op.value
        if not isinstance(tensor, tvm.runtime.Tensor) or tensor_bytes(tensor) <= THRESHOLD_BYTES:
            return op
        number = relax.prim_value(self.table.index(tensor))
        call = relax.Call(relax.ExternFunc(FUNCTION), [number], ty_args=[op.ty])
        return self.builder_.emit(call)


_ASSEMBLY = """\
  .section .tvmx.weights,"a",%progbits
  .balign {alignment}
  .globl tvmx_weights
  .hidden tvmx_weights
tvmx_weights:
  .incbin "{path}"
  .section .note.GNU-stack,"",%progbits
"""

_CODE = """\
#include <tvm/ffi/c_api.h>

#ifdef __cplusplus
extern "C" {{
#endif

extern const char tvmx_weights[] __attribute__((visibility("hidden")));

{shapes}

static DLManagedTensor table[] = {{
{entries}
}};

__attribute__((visibility("default")))
int __tvm_ffi_{function}(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
  TVMFFIObjectHandle tensor = NULL;
  (void)self;
  if (count != 1 || args[0].type_index != kTVMFFIInt || args[0].v_int64 < 0 ||
      args[0].v_int64 >= {count}) {{
    TVMFFIErrorSetRaisedFromCStr("IndexError", "{function}: no such weight");
    return -1;
  }}
  if (TVMFFITensorFromDLPack(&table[args[0].v_int64], 0, 0, &tensor) != 0) return -1;
  result->type_index = kTVMFFITensor;
  result->zero_padding = 0;
  result->v_obj = (TVMFFIObject*)tensor;
  return 0;
}}

#ifdef __cplusplus
}}
#endif
"""
