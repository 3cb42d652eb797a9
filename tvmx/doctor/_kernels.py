"""The functions of the probe library, emitted statement by statement.

The three kernels take one int32 buffer, whatever is in it, and leave another in it that NumPy
can predict bit by bit (:mod:`tvmx.doctor._predict`). What they read from the buffer is what
keeps LLVM from computing their loops at compile time.
"""

from __future__ import annotations

from typing import Any

from tvmx.targets import Target
from tvmx.templates import DotForm, dot_form, load, spread, store

FMA_STEPS = 40_000
DOT_STEPS = 16_000
FMA_SEEDS = (1 << 14) - 1
"""The bits of an element that a sum starts from."""
FMA_FACTOR = 2.0**-13
"""Lets a sum grow 132-fold; whatever the buffer holds, it stays far from infinity."""

_MOST_FMA_CHAINS = 16  # two units of four cycles' latency need eight; the widest cores sixteen
_FACTOR_BITS = (127 - 13) << 23  # FMA_FACTOR as float32
_GLIBC_VERSION = 2  # _CS_GNU_LIBC_VERSION


def fma_chains(target: Target) -> int:
    """Independent accumulators: enough to hide the latency, fewer than there are registers."""
    return min(_MOST_FMA_CHAINS, target.vector_registers - 4)


def dot_chains(target: Target) -> int:
    """The same for the int8 kernel; ``smlal`` works on pairs of registers, with temporaries."""
    return fma_chains(target) // dot_form(target).parts


def fma_size(target: Target) -> int:
    """Elements of the buffer of ``fma``."""
    return fma_chains(target) * target.lanes("float32")


def dot_size(target: Target) -> int:
    """Elements of the buffer of ``dot``: the sums, then the weights."""
    form = dot_form(target)
    return dot_chains(target) * form.parts * form.lanes + _weight_words(form) * _taken(form)


def fma_kernel(target: Target) -> Any:
    """Chains of ``sum = sum + sum * x`` in registers: one instruction each, on x86 and on Arm.

    (With another addend than the factor, Arm's ``fmla`` needs a move as well.) x is a power of
    two, which only the buffer knows, so the product is exact and fused or not makes no odds.
    The sums leave as bits.
    """
    from tvmx._tvm import IRBuilder, builder, tirx

    lanes, chains = target.lanes("float32"), fma_chains(target)

    def words(value: int) -> Any:
        return spread(tirx.const(value, "int32"), lanes)

    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        _begin("fma")
        buffer = _argument("buffer", fma_size(target), "int32")
        sign = load(buffer, 0, lanes=lanes) >> words(31) & words(1)
        x = builder.Bind(
            tirx.reinterpret(f"float32x{lanes}", tirx.bitwise_or(sign, words(_FACTOR_BITS)))
        )
        sums = builder.alloc_buffer((chains * lanes,), "float32", scope="local")
        for c in range(chains):
            seed = load(buffer, c * lanes, lanes=lanes) & words(FMA_SEEDS)
            store(sums, seed.astype(f"float32x{lanes}"), c * lanes, lanes=lanes)
        with builder.serial(0, FMA_STEPS):
            for c in range(chains):
                old = builder.Bind(load(sums, c * lanes, lanes=lanes))
                store(sums, old + old * x, c * lanes, lanes=lanes)
        for c in range(chains):
            bits = tirx.reinterpret(f"int32x{lanes}", load(sums, c * lanes, lanes=lanes))
            store(buffer, bits, c * lanes, lanes=lanes)
    return ir.get()


def dot_kernel(target: Target) -> Any:
    """Chains of int8 dot products, of the bytes of each sum itself with constant weights.

    A sum that is its own data keeps LLVM from moving products out of the loop.
    """
    from tvmx._tvm import IRBuilder, builder, tirx

    form = dot_form(target)
    chains, v, parts = dot_chains(target), form.lanes, form.parts
    count = chains * parts
    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        _begin("dot")
        buffer = _argument("buffer", dot_size(target), "int32")
        size = _weight_words(form)
        weights = [
            builder.Bind(
                tirx.reinterpret(f"int8x{4 * size}", load(buffer, count * v + t * size, lanes=size))
            )
            for t in range(_taken(form))
        ]
        sums = builder.alloc_buffer((count * v,), "int32", scope="local")
        for slot in range(count):
            store(sums, load(buffer, slot * v, lanes=v), slot * v, lanes=v)
        with builder.serial(0, DOT_STEPS):
            for c in range(chains):
                slots = range(c * parts, (c + 1) * parts)
                old = [builder.Bind(load(sums, s * v, lanes=v)) for s in slots]
                for s, new in zip(slots, form.dot(old, old, weights), strict=True):
                    store(sums, new, s * v, lanes=v)
        for slot in range(count):
            store(buffer, load(sums, slot * v, lanes=v), slot * v, lanes=v)
    return ir.get()


def stream_kernel(target: Target) -> Any:
    """Reads and writes its whole buffer, of any length that whole vectors fill: adds one."""
    from tvmx._tvm import IRBuilder, builder, tirx

    lanes = target.lanes("int32")
    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        _begin("stream")
        size = tirx.Var("size", "int32")
        buffer = _argument("buffer", size, "int32")
        one = spread(tirx.const(1, "int32"), lanes)
        with builder.serial(0, size // lanes) as i:
            store(buffer, load(buffer, i * lanes, lanes=lanes) + one, i * lanes, lanes=lanes)
    return ir.get()


def copy_text_function() -> Any:
    """``copy_text(path, out)``: the start of a file; zeros behind it, or all when unreadable."""
    from tvmx._tvm import IRBuilder, builder, tirx

    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        _begin("copy_text")
        sizes = [tirx.Var(name, "int32") for name in ("length", "size")]
        path, out = (
            _argument(name, size, "uint8")
            for name, size in zip(("path", "out"), sizes, strict=True)
        )
        with builder.serial(0, sizes[1]) as i:
            store(out, tirx.const(0, "uint8"), i)
        file = builder.Bind(tirx.call_extern("handle", "fopen", path.data, "r"))
        with builder.If(tirx.Not(tirx.isnullptr(file))), builder.Then():
            one, size = tirx.const(1, "int64"), sizes[1].astype("int64")
            builder.evaluate(tirx.call_extern("int64", "fread", out.data, one, size, file))
            builder.evaluate(tirx.call_extern("int32", "fclose", file))
    return ir.get()


def libc_version_function() -> Any:
    """``libc_version(out)``: such as ``glibc 2.36``, and a zero; only the zero elsewhere."""
    from tvmx._tvm import IRBuilder, builder, tirx

    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        _begin("libc_version")
        size = tirx.Var("size", "int32")
        out = _argument("out", size, "uint8")
        store(out, tirx.const(0, "uint8"), 0)
        name = tirx.const(_GLIBC_VERSION, "int32")
        builder.evaluate(tirx.call_extern("int64", "confstr", name, out.data, size.astype("int64")))
    return ir.get()


def file_system_function() -> Any:
    """``file_system(path, out)``: C's ``struct statvfs`` as int64, all zero on an error."""
    from tvmx._tvm import IRBuilder, builder, tirx

    with IRBuilder() as ir, builder.prim_func(s_tir=True):
        _begin("file_system")
        length, size = tirx.Var("length", "int32"), tirx.Var("size", "int32")
        path, out = _argument("path", length, "uint8"), _argument("out", size, "int64")
        with builder.serial(0, size) as i:
            store(out, tirx.const(0, "int64"), i)
        builder.evaluate(tirx.call_extern("int32", "statvfs", path.data, out.data))
    return ir.get()


def _begin(name: str) -> None:
    from tvmx._tvm import builder

    builder.func_name(name)
    builder.func_attr({"global_symbol": name, "tirx.is_scheduled": True, "tirx.noalias": True})


def _argument(name: str, size: Any, dtype: str) -> Any:
    from tvmx._tvm import builder

    return builder.arg(name, builder.buffer((size,), dtype))


def _taken(form: DotForm) -> int:
    return 2 if form.pairs else 1


def _weight_words(form: DotForm) -> int:
    return form.lanes * form.step // 4
