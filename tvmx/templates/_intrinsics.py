"""Dot products of bytes: how each instruction set multiplies s8 data by s8 weights.

A :class:`DotForm` works on *words*: the 32 bits of one pixel that one step of the reduction
consumes, ``step`` neighbouring channels of it. One vector of weights holds ``step`` channels for
each of ``lanes`` outputs, ``[lane][step]``, always in s8; one dot adds its products with a word
to the sums of those outputs:

========  ====  ======================  ====================================================
form      step  a word holds            instructions
========  ====  ======================  ====================================================
vnni*     4     u8 = s8 + 128           ``vpdpbusd`` (512 or 256 bits)
sdot      4     s8                      ``sdot``
smlal     4     s8                      ``smull`` + ``smlal`` of two words, then ``sadalp``
pmadd     2     s16                     ``pmaddwd`` of sign-extended weights
none      1     s32                     whatever multiplies int32 vectors
========  ====  ======================  ====================================================

The u8 of VNNI adds ``128 * sum(weights)`` to each sum, which the bias takes back
(:attr:`DotForm.weight_correction`).

``smlal`` is exact because weights stay in [-127, 127]: two products of at most 128 * 127 fit
int16. Its sums are kept as pairs, ``[lane][2]``, added up at the end.

Everything here emits statements through ``tvmx._tvm.builder``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.ir import ceil_div
from tvmx.targets import Target
from tvmx.templates._packing import pad_axis

_FLIP = 0x80
_PMADD = {
    4: "llvm.x86.sse2.pmadd.wd",
    8: "llvm.x86.avx2.pmadd.wd",
    16: "llvm.x86.avx512.pmaddw.d.512",
}


@dataclass(frozen=True)
class DotForm:
    """One row of the module's table, for vectors of ``lanes`` int32."""

    name: str
    lanes: int
    step: int

    splits = False

    @property
    def parts(self) -> int:
        """Partial sums of one output, neighbours in memory."""
        return 2 if self.name == "smlal" else 1

    @property
    def pairs(self) -> bool:
        """Whether it takes two words at once where it can."""
        return self.name == "smlal"

    @property
    def word(self) -> str:
        """Type of a word."""
        return "int32"

    @property
    def reads_data(self) -> bool:
        """Whether words are the data as it is in memory, so that no copy is needed."""
        return self.name in ("sdot", "smlal")

    def weight_correction(self, weight: npt.NDArray[Any]) -> npt.NDArray[np.int64] | None:
        """What to subtract from the bias of each output channel (axis 0); None: nothing."""
        if not self.name.startswith("vnni"):
            return None
        sums: npt.NDArray[np.int64] = weight.reshape(len(weight), -1).sum(axis=1, dtype=np.int64)
        return 128 * sums

    # words

    def words(self, channels: Any, count: int) -> Any:
        """``count`` words from the s8 vector of their ``count * step`` channels."""
        from tvmx._tvm import tirx

        if self.step == 1:
            return channels.astype(f"int32x{count}")
        if self.step == 2:
            return tirx.reinterpret(f"int32x{count}", channels.astype(f"int16x{2 * count}"))
        kind = _int32(count)
        return self._shifted(tirx.reinterpret(kind, channels), kind)

    def planes(self, planes: Sequence[Any], count: int) -> Any:
        """``count`` words from up to ``step`` s8 vectors of ``count``: channels of plain NCHW."""
        from tvmx._tvm import tirx

        kind = _int32(count)
        total = None
        bits = 32 // self.step
        for index, plane in enumerate(planes):
            value = plane.astype(kind)
            if index + 1 < len(planes) or len(planes) < self.step:
                value = value & _const((1 << bits) - 1, kind)
            value = value if index == 0 else value << _const(index * bits, kind)
            total = value if total is None else tirx.bitwise_or(total, value)
        return self._shifted(total, kind)

    def fill(self, value: Any) -> Any:
        """A word (int32) all of whose channels are the s8 scalar ``value``."""
        if self.step == 1:
            return value.astype("int32")
        bits = 32 // self.step
        mask = (1 << bits) - 1
        repeated = sum(1 << (bits * i) for i in range(self.step))
        byte = value.astype("int32") & _const(mask, "int32")
        return self._shifted(byte * _const(repeated, "int32"), "int32")

    def _shifted(self, words: Any, kind: str) -> Any:
        if not self.name.startswith("vnni"):
            return words
        flip = int.from_bytes(bytes([_FLIP] * 4), "little", signed=True)
        return words ^ _const(flip, kind)

    # sums

    def dot(self, sums: Sequence[Any], words: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
        """The ``parts`` vectors of sums after one step.

        ``words`` are int32 vectors of ``lanes`` equal words, ``weights`` s8 vectors: one of each,
        or two where the form ``pairs``.
        """
        from tvmx._tvm import tirx

        v = self.lanes
        if self.name == "none":
            return [sums[0] + words[0] * weights[0].astype(f"int32x{v}")]
        if self.name == "pmadd":
            wide = tirx.reinterpret(f"int16x{2 * v}", words[0])
            products = _llvm(
                f"int32x{v}", _PMADD[v], weights[0].astype(f"int16x{2 * v}"), wide
            )  # fmt: skip
            return [sums[0] + products]
        data = [tirx.reinterpret(f"int8x{4 * v}", word) for word in words]
        if self.name == "sdot":
            name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
            return [_llvm("int32x4", name, sums[0], weights[0], data[0])]
        if self.name == "smlal":
            return [self._smlal(acc, half, data, weights) for half, acc in enumerate(sums)]
        name = f"llvm.x86.avx512.vpdpbusd.{32 * v}"
        return [_llvm(f"int32x{v}", name, sums[0], data[0], weights[0])]

    def total(self, parts: Sequence[Any]) -> Any:
        """The vector of whole sums from its ``parts``."""
        if len(parts) == 1:
            return parts[0]
        return _llvm("int32x4", "llvm.aarch64.neon.addp.v4i32", *parts)

    def _smlal(self, acc: Any, half: int, data: Sequence[Any], weights: Sequence[Any]) -> Any:
        take = range(8 * half, 8 * half + 8)
        products = None
        for word, weight in zip(data, weights, strict=True):
            halves = (_shuffle([vector], take) for vector in (weight, word))
            product = _llvm("int16x8", "llvm.aarch64.neon.smull.v8i16", *halves)
            products = product if products is None else products + product
        return acc + _llvm("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", products)


def dot_form(target: Target) -> DotForm:
    """The form for a target (its ``int8_dot``)."""
    steps = {"pmadd": 2, "none": 1}
    name = target.int8_dot
    return DotForm(name, target.lanes("float32"), steps.get(name, 4))


def concat(vectors: Sequence[Any], lanes: int) -> Any:
    """Vectors of ``lanes`` elements one behind the other, as one vector."""
    return vectors[0] if len(vectors) == 1 else _shuffle(vectors, range(len(vectors) * lanes))


def repeat(vector: Any, lanes: int, times: int) -> Any:
    """``times`` times the vector of ``lanes`` elements, as one vector."""
    return concat([vector] * times, lanes)


def spread_lane(vector: Any, lane: int, lanes: int) -> Any:
    """A vector of ``lanes`` times one lane of ``vector``: by-element operands on Arm."""
    return _shuffle([vector], [lane] * lanes)


def pack_dot_weight(weight: npt.NDArray[Any], form: DotForm, in_block: int) -> npt.NDArray[np.int8]:
    """s8 OIHW -> ``(O / lanes, I / in_block, H, W, in_block / step, lanes * step)``, zero-padded.

    ``in_block`` is the number of input channels whose words are neighbours in memory.
    """
    o, i, h, w = weight.shape
    v, step = form.lanes, form.step
    out_blocks, in_blocks = ceil_div(o, v), ceil_div(i, in_block)
    padded = pad_axis(pad_axis(weight, 0, out_blocks * v), 1, in_blocks * in_block)
    split = padded.reshape(out_blocks, v, in_blocks, in_block // step, step, h, w)
    packed = split.transpose(0, 2, 5, 6, 3, 1, 4)
    return np.ascontiguousarray(
        packed.reshape(out_blocks, in_blocks, h, w, in_block // step, v * step)
    )


def _int32(count: int) -> str:
    return "int32" if count == 1 else f"int32x{count}"


def _const(value: int, dtype: str) -> Any:
    from tvmx._tvm import tirx

    scalar, _, lanes = dtype.partition("x")
    if value >= 1 << 31:
        value -= 1 << 32
    constant = tirx.const(value, scalar)
    return tirx.Broadcast(constant, int(lanes)) if lanes else constant


def _shuffle(vectors: Sequence[Any], lanes: Sequence[int]) -> Any:
    from tvmx._tvm import tirx

    return tirx.Shuffle(list(vectors), [tirx.const(i, "int32") for i in lanes])


def _llvm(dtype: str, name: str, *arguments: Any) -> Any:
    from tvmx._tvm import tirx

    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)
