"""Tensors inside an arena: a C function of the library that makes them.

TVM's VM can allocate a tensor at an offset of a storage, but leaves the offset in the tensor, and
compiled kernels take none. This one moves the data pointer; the view keeps the arena alive.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvmx._tvm import relax, tvm

FUNCTION = "tvmx_view"


def view(arena: Any, offset: int, shape: Any, dtype: str) -> Any:
    """Call the function: a tensor ``offset`` bytes into the one-dimensional tensor ``arena``."""
    kind = tvm.DataType(dtype)
    # The type in numbers: TVM's VM hands a type on as a string while it is instrumented.
    first, *others = map(relax.prim_value, (offset, kind.type_code, kind.bits, kind.lanes))
    args = [arena, first, shape, *others]
    return relax.Call(relax.ExternFunc(FUNCTION), args, ty_args=[relax.TensorType(shape, dtype)])


def write_views(folder: Path) -> Path:
    """Write the function's source, to be compiled and linked in."""
    path = folder / "views.c"
    path.write_text(_CODE.replace("@FUNCTION@", FUNCTION), encoding="utf-8")
    return path


_CODE = """\
#include <tvm/ffi/c_api.h>

enum { MOST_AXES = 16 };

#ifdef __cplusplus
extern "C" {
#endif

__attribute__((visibility("default")))
int __tvm_ffi_@FUNCTION@(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  TVMFFIObjectHandle tensor = NULL;
  DLTensor wanted;
  int64_t strides[MOST_AXES];
  const DLTensor* arena;
  const TVMFFIShapeCell* shape;
  int64_t bytes, items = 1, axis;
  (void)self;
  if (count != 6 || args[0].type_index != kTVMFFITensor || args[1].type_index != kTVMFFIInt ||
      args[2].type_index != kTVMFFIShape || args[3].type_index != kTVMFFIInt ||
      args[4].type_index != kTVMFFIInt || args[5].type_index != kTVMFFIInt) {
    TVMFFIErrorSetRaisedFromCStr("TypeError",
                                 "@FUNCTION@: arena, offset, shape, type code, bits, lanes");
    return -1;
  }
  arena = (const DLTensor*)((const char*)args[0].v_obj + sizeof(TVMFFIObject));
  shape = (const TVMFFIShapeCell*)((const char*)args[2].v_obj + sizeof(TVMFFIObject));
  if (shape->size > MOST_AXES) {
    TVMFFIErrorSetRaisedFromCStr("ValueError", "@FUNCTION@: too many axes");
    return -1;
  }
  for (axis = (int64_t)shape->size - 1; axis >= 0; --axis) {
    strides[axis] = items;
    items *= shape->data[axis];
  }
  wanted = *arena;
  wanted.dtype.code = (uint8_t)args[3].v_int64;
  wanted.dtype.bits = (uint8_t)args[4].v_int64;
  wanted.dtype.lanes = (uint16_t)args[5].v_int64;
  bytes = items * ((wanted.dtype.bits * wanted.dtype.lanes + 7) / 8);
  if (args[1].v_int64 < 0 || args[1].v_int64 + bytes > arena->shape[0]) {
    TVMFFIErrorSetRaisedFromCStr("ValueError", "@FUNCTION@: not inside the arena");
    return -1;
  }
  wanted.data = (char*)arena->data + args[1].v_int64;
  wanted.ndim = (int32_t)shape->size;
  wanted.shape = (int64_t*)shape->data;
  wanted.strides = strides;
  if (TVMFFITensorCreateUnsafeView(args[0].v_obj, &wanted, &tensor) != 0) return -1;
  result->type_index = kTVMFFITensor;
  result->zero_padding = 0;
  result->v_obj = (TVMFFIObject*)tensor;
  return 0;
}

#ifdef __cplusplus
}
#endif
"""
