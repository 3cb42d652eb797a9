"""int8 operators between layers as TE computes; bit for bit those of ``tvmx.numerics``.

Tensors are physical: (n, c, h, w), (n, c / v, h, w, v) or (n, c). Scales and zero points are
baked in as constants. Relax fuses the computes and tvmx's default schedule schedules them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tvmx._tvm import te, tirx, topi
from tvmx.errors import BuildError
from tvmx.ir import block_of, is_int8, physical_shape
from tvmx.numerics import (
    QMAX,
    QMIN,
    Pool2d,
    QuantParams,
    product_factor,
    rescale_factor,
    sum_factors,
)
from tvmx.templates import fused, rounded_byte


def convert(
    data: Any, shape: tuple[int, ...], source: str, destination: str, params: QuantParams | None
) -> Any:
    """``data`` (logical ``shape``) moved from one format to another: layout and type at once.

    ``params`` belong to the s8 side where exactly one is s8, and are ignored otherwise. Padding
    lanes of a blocked result repeat the last channel.

    Raises:
        BuildError: the type changes, but ``params`` is None.
    """
    element = _conversion(source, destination, params)
    v, w = block_of(source), block_of(destination)
    out = physical_shape(shape, destination)

    def read(*at: Any) -> Any:
        if v is not None:
            n, c, y, x = at
            at = (n, c // v, y, x, c % v)
        return element(data[at])

    if w is None:
        return te.compute(out, read, name="convert")
    channels = shape[1]

    def blocked(n: Any, b: Any, y: Any, x: Any, i: Any) -> Any:
        channel = b * w + i
        # No select around the read: the simplifier would prove the bound superfluous inside it,
        # and lanes without a channel would read past the end of the tensor.
        whole = channels % w == 0 or v == w  # lanes of its own blocks exist in the source
        return read(n, channel if whole else tirx.min(channel, channels - 1), y, x)

    return te.compute(out, blocked, name="convert")


def quantise_te(x: Any, params: QuantParams) -> Any:
    """float32 -> s8, element-wise: :func:`tvmx.numerics.quantise`."""
    return te.compute(x.shape, lambda *i: _quantise(x[i], params), name="quantise")


def dequantise_te(q: Any, params: QuantParams) -> Any:
    """s8 -> float32, element-wise: :func:`tvmx.numerics.dequantise`."""
    return te.compute(q.shape, lambda *i: _dequantise(q[i], params), name="dequantise")


def add_te(
    a: Any, pa: QuantParams, b: Any, pb: QuantParams, out: QuantParams, low: int = QMIN,
    high: int = QMAX,
) -> Any:  # fmt: skip
    """s8 + s8 -> s8 in [low, high]: :func:`tvmx.numerics.add_int8`. Shapes are equal."""
    how = sum_factors(pa, pb, out)
    first, second, offset = (_float(float(f)) for f in (how.first, how.second, how.offset))

    def element(*i: Any) -> Any:
        x, y = ((q[i].astype("int32") + _int(how.shift)).astype("float32") for q in (a, b))
        total = fused(x, first, fused(y, second, offset))
        bounded = _between(total, _float(low + how.shift), _float(high + how.shift))
        return _byte(bounded, -how.shift)

    return te.compute(a.shape, element, name="add")


def multiply_te(a: Any, pa: QuantParams, b: Any, pb: QuantParams, out: QuantParams) -> Any:
    """s8 x s8 -> s8: :func:`tvmx.numerics.multiply_int8`. Image axes of size 1 broadcast."""
    shape = [x if int(x) != 1 else y for x, y in zip(a.shape, b.shape, strict=True)]
    factor = _float(float(product_factor(pa, pb, out)))

    def at(q: Any, i: Sequence[Any], params: QuantParams) -> Any:
        place = [0 if int(size) == 1 else axis for size, axis in zip(q.shape, i, strict=True)]
        return q[tuple(place)].astype("int32") - _int(params.zero_point)

    def element(*i: Any) -> Any:
        product = (at(a, i, pa) * at(b, i, pb)).astype("float32")
        return saturated(product * factor, out.zero_point)

    return te.compute(shape, element, name="multiply")


def table_te(x: Any, table: Any) -> Any:
    """``table[q + 128]``: :func:`tvmx.numerics.lookup_int8`. ``table`` is s8 (256,)."""
    return te.compute(x.shape, lambda *i: table[x[i].astype("int32") - _int(QMIN)], name="table")


def concat_te(
    parts: Sequence[Any], part_params: Sequence[QuantParams], out: QuantParams, form: str
) -> Any:
    """Channels of s8 ``parts``, each rescaled to ``out``: :func:`tvmx.numerics.concat_int8`.

    ``form`` is plain or blocked; in a blocked one every part's channels fill their blocks, so
    that channel blocks (axis 1) are concatenated.
    """
    assert block_of(form) is None or all(len(p.shape) == 5 for p in parts)
    scaled = [rescale_te(x, p, out) for x, p in zip(parts, part_params, strict=True)]
    return topi.concatenate(scaled, axis=1)


def rescale_te(x: Any, params: QuantParams, out: QuantParams) -> Any:
    """s8 of other parameters: :func:`tvmx.numerics.rescale`; ``x`` itself where they are equal."""
    if params == out:
        return x
    factor = _float(float(rescale_factor(params, out)))
    zero = out.zero_point
    return te.compute(
        x.shape, lambda *i: saturated(_shifted(x[i], params) * factor, zero), name="rescale"
    )


def clip_te(x: Any, low: int, high: int) -> Any:
    """s8 clipped to [low, high]: :func:`tvmx.numerics.clip_int8`."""
    least, most = tirx.const(low, "int8"), tirx.const(high, "int8")
    return te.compute(x.shape, lambda *i: tirx.max(tirx.min(x[i], most), least), name="clip")


def mean_te(x: Any, params: QuantParams, out: QuantParams) -> Any:
    """Mean over the s8 image, (h, w) -> (1, 1): :func:`tvmx.numerics.mean_int8`."""
    height, width = int(x.shape[2]), int(x.shape[3])
    ry, rx = te.reduce_axis((0, height), "ry"), te.reduce_axis((0, width), "rx")
    shape = (*x.shape[:2], 1, 1, *x.shape[4:])
    total = te.compute(
        shape,
        lambda n, c, y, z, *i: te.sum(x[(n, c, ry, rx, *i)].astype("int32"), axis=[ry, rx]),
        name="total",
    )
    count = height * width
    one = _float(count)
    return te.compute(shape, lambda *i: _mean(total[i], count, one, params, out), name="mean")


def max_pool_te(x: Any, pool: Pool2d) -> Any:
    """Max pooling of s8: :func:`tvmx.numerics.max_pool_int8`."""
    image, shape = _padded(x, pool, QMIN)
    ry, rx = _axes(pool)
    least = tirx.const(QMIN, "int8")
    largest = te.comm_reducer(lambda a, b: tirx.max(a, b), lambda dtype: least, name="largest")
    return te.compute(
        shape,
        lambda n, c, y, z, *i: largest(image(n, c, *_at(pool, y, z, ry, rx), *i), axis=[ry, rx]),
        name="max_pool",
    )


def avg_pool_te(x: Any, params: QuantParams, pool: Pool2d, out: QuantParams) -> Any:
    """Average pooling of s8: :func:`tvmx.numerics.avg_pool_int8`."""
    image, shape = _padded(x, pool, params.zero_point)
    ry, rx = _axes(pool)
    total = te.compute(
        shape,
        lambda n, c, y, z, *i: te.sum(
            image(n, c, *_at(pool, y, z, ry, rx), *i).astype("int32"), axis=[ry, rx]
        ),
        name="total",
    )
    size = (int(x.shape[2]), int(x.shape[3]))

    def element(n: Any, c: Any, y: Any, z: Any, *i: Any) -> Any:
        if not pool.ceil_mode and (pool.count_include_pad or not any(pool.padding)):
            count = _float(pool.taps)
        else:
            rows, columns = _covered(pool, 0, size[0], y), _covered(pool, 1, size[1], z)
            count = tirx.max(rows * columns, _int(1)).astype("float32")
        return _mean(total[(n, c, y, z, *i)], pool.taps, count, params, out)

    return te.compute(shape, element, name="avg_pool")


# elements


def _conversion(source: str, destination: str, params: QuantParams | None) -> Callable[[Any], Any]:
    if is_int8(source) == is_int8(destination):
        return lambda x: x
    if params is None:
        raise BuildError(
            f"converting {source} to {destination} needs a scale and zero point",
            hint="int8 plans are made by `tvmx explore --data FILE.npz`, which calibrates them",
        )
    one = _quantise if is_int8(destination) else _dequantise
    return lambda x: one(x, params)


def _float(value: float) -> Any:
    return tirx.const(float(value), "float32")


def _int(value: int) -> Any:
    return tirx.const(value, "int32")


def _between(value: Any, low: Any, high: Any) -> Any:
    return tirx.max(tirx.min(value, high), low)


def _byte(bounded: Any, zero: int) -> Any:
    """Round half to even, move by ``zero``; float32 -> s8, in which the result fits."""
    byte = np.array(zero).astype(np.int8)  # modulo 256, as the sum is
    return rounded_byte(bounded) + tirx.const(int(byte), "int8")


def saturated(scaled: Any, zero: int) -> Any:
    """A float32 element as s8: saturated, rounded half to even, moved by the zero point."""
    return _byte(_between(scaled, _float(QMIN - zero), _float(QMAX - zero)), zero)


def _shifted(q: Any, params: QuantParams) -> Any:
    return (q.astype("int32") - _int(params.zero_point)).astype("float32")


def _quantise(x: Any, params: QuantParams) -> Any:
    return saturated(x * _float(float(params.inverse)), params.zero_point)


def _dequantise(q: Any, params: QuantParams) -> Any:
    return _shifted(q, params) * _float(params.scale)


def _mean(total: Any, taps: int, count: Any, params: QuantParams, out: QuantParams) -> Any:
    """``total`` sums ``taps`` values, of which the zero point is still to be taken off."""
    mean = (total - _int(taps * params.zero_point)).astype("float32") / count
    if out != params:
        mean = mean * _float(float(rescale_factor(params, out)))
    return saturated(mean, out.zero_point)


# pools


def _axes(pool: Pool2d) -> tuple[Any, Any]:
    return te.reduce_axis((0, pool.kernel[0]), "ry"), te.reduce_axis((0, pool.kernel[1]), "rx")


def _at(pool: Pool2d, y: Any, x: Any, ry: Any, rx: Any) -> tuple[Any, Any]:
    (sh, sw), (dh, dw) = pool.strides, pool.dilation
    return y * sh + ry * dh, x * sw + rx * dw


def _padded(x: Any, pool: Pool2d, padding: int) -> tuple[Any, tuple[Any, ...]]:
    """(the image as the windows see it, the output's shape)."""
    height, width = int(x.shape[2]), int(x.shape[3])
    rows, columns = pool.out_size(height, width)
    top, left = pool.padding[:2]
    shape = (*x.shape[:2], rows, columns, *x.shape[4:])
    need_h, need_w = (
        (out - 1) * pool.strides[k] + (pool.kernel[k] - 1) * pool.dilation[k] + 1
        for k, out in enumerate((rows, columns))
    )
    if top == left == 0 and need_h <= height and need_w <= width:
        return x, shape
    fill = tirx.const(padding, "int8")

    def element(n: Any, c: Any, y: Any, z: Any, *i: Any) -> Any:
        inside = tirx.all(y >= top, y < top + height, z >= left, z < left + width)
        return tirx.if_then_else(inside, x[(n, c, y - top, z - left, *i)], fill)

    image = te.compute((*x.shape[:2], need_h, need_w, *x.shape[4:]), element, name="pad")
    return image, shape


def _covered(pool: Pool2d, axis: int, size: int, at: Any) -> Any:
    """Taps that the window at output position ``at`` is averaged over, along one axis."""
    dilation = pool.dilation[axis]
    start = at * pool.strides[axis]
    if pool.count_include_pad:
        size += pool.padding[axis] + pool.padding[axis + 2]
    else:
        start -= pool.padding[axis]
    first = tirx.max(tirx.floordiv(dilation - 1 - start, dilation), 0)
    last = tirx.min(tirx.floordiv(size - 1 - start, dilation), pool.kernel[axis] - 1)
    return tirx.max(last - first + 1, 0)
