"""Pooling, padding and resizing."""

from __future__ import annotations

from typing import Any

from tvmx._tvm import relax
from tvmx.frontends._reason import RuleError
from tvmx.frontends.relay._attrs import Attrs
from tvmx.frontends.relay._emit import Emitter, rank_of
from tvmx.frontends.relay._rules_nn import Args, Rule, constant_array, in_nchw
from tvmx.passes._dataflow import dtype_of, shape_of

_METHODS = {
    "nearest_neighbor": "nearest_neighbor", "linear": "linear", "bilinear": "linear",
    "cubic": "cubic", "bicubic": "cubic",
}  # fmt: skip
_COORDINATES = ("half_pixel", "align_corners", "asymmetric")
_ROUNDING = ("round", "floor", "ceil")


def _max_pool(e: Emitter, args: Args, attrs: Attrs) -> Any:
    def run(nchw: Any) -> Any:
        return relax.op.nn.max_pool2d(
            nchw, attrs.pair("pool_size", 1), attrs.pair("strides", 1), attrs.padding(),
            attrs.pair("dilation", 1), attrs.flag("ceil_mode"),
        )  # fmt: skip

    return in_nchw(e, args[0], attrs, run, "layout")


def _avg_pool(e: Emitter, args: Args, attrs: Attrs) -> Any:
    def run(nchw: Any) -> Any:
        return _averaged(
            e, nchw, attrs.pair("pool_size", 1), attrs.pair("strides", 1), attrs.padding(),
            attrs.pair("dilation", 1), attrs.flag("ceil_mode"), attrs.flag("count_include_pad"),
        )  # fmt: skip

    return in_nchw(e, args[0], attrs, run, "layout")


def _averaged(e: Emitter, nchw: Any, size: tuple[int, int], *options: Any) -> Any:
    """Integers are rounded towards zero.

    They are averaged in int64: whatever it is given, TVM divides by a number of that type.
    """
    dtype = dtype_of(nchw)
    if dtype.startswith("float"):
        return relax.op.nn.avg_pool2d(nchw, size, *options)
    wide = e.emit(relax.op.astype(nchw, "int64"))
    return relax.op.astype(e.emit(relax.op.nn.avg_pool2d(wide, size, *options)), dtype)


def _global_pool(average: bool) -> Rule:
    def rule(e: Emitter, args: Args, attrs: Attrs) -> Any:
        return in_nchw(e, args[0], attrs, lambda nchw: _whole(e, nchw, average), "layout")

    return rule


def _whole(e: Emitter, nchw: Any, average: bool) -> Any:
    """One value per channel."""
    if not average:
        return relax.op.max(nchw, axis=[2, 3], keepdims=True)
    if dtype_of(nchw).startswith("float"):
        return relax.op.mean(nchw, axis=[2, 3], keepdims=True)
    height, width = shape_of(nchw)[2:]
    return _averaged(e, nchw, (height, width))


def _adaptive_pool(average: bool) -> Rule:
    def rule(e: Emitter, args: Args, attrs: Attrs) -> Any:
        def run(nchw: Any) -> Any:
            height, width = shape_of(nchw)[2:]
            wanted = attrs.ints("output_size", ())
            if len(wanted) not in (0, 1, 2) or min(wanted, default=1) < 1:
                raise RuleError(f"output_size is {wanted}")
            rows, columns = (wanted[0], wanted[-1]) if wanted else (height, width)
            if (rows, columns) == (1, 1):
                return _whole(e, nchw, average)
            if height % rows == 0 and width % columns == 0:
                size = (height // rows, width // columns)
                if average:
                    return _averaged(e, nchw, size, size)
                return relax.op.nn.max_pool2d(nchw, size, size)
            if not average:
                raise RuleError(f"{height} x {width} is not divided by {rows} x {columns}")
            return relax.op.nn.adaptive_avg_pool2d(nchw, (rows, columns))

        return in_nchw(e, args[0], attrs, run, "layout")

    return rule


def pad_widths(attrs: Attrs, rank: int) -> list[int]:
    """Widths before and after each dimension, in one list."""
    pairs = attrs.raw("pad_width")
    good = isinstance(pairs, tuple) and len(pairs) == rank
    if not good or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise RuleError(f"pad_width is {pairs!r} for {rank} dimensions")
    widths = [width for pair in pairs for width in pair]
    if not all(isinstance(width, int) and 0 <= width < 2**31 for width in widths):
        raise RuleError(f"pad_width is {pairs!r}")
    return widths


def _pad(e: Emitter, args: Args, attrs: Attrs) -> Any:
    widths = pad_widths(attrs, rank_of(args[0]))
    mode = attrs.text("pad_mode", "constant")
    if mode == "constant":
        value = constant_array(args[1], "the padding's value") if len(args) > 1 else None
        fill = 0.0 if value is None else float(value.reshape(-1)[0])
        return relax.op.nn.pad(args[0], widths, "constant", fill)
    if mode not in ("edge", "reflect"):
        raise RuleError(f"pad_mode {mode!r}")
    if mode == "reflect":
        sizes = shape_of(args[0])
        if any(width >= sizes[i // 2] for i, width in enumerate(widths)):
            raise RuleError(f"padding {widths} reflects more than there is")
    return relax.op.nn.pad(args[0], widths, "replicate" if mode == "edge" else mode)


def _resize(e: Emitter, data: Any, size: tuple[int, int], attrs: Attrs, coordinates: str) -> Any:
    method = _METHODS.get(attrs.text("method", "linear"))
    if method is None or coordinates not in _COORDINATES:
        raise RuleError(f"method {attrs.text('method')!r} with {coordinates!r}")
    if attrs.text("out_dtype") not in ("", dtype_of(data)):
        raise RuleError(f"out_dtype {attrs.text('out_dtype')}")
    rounding = attrs.text("rounding_method")
    # What TVM's own operator took where nothing is said.
    rounding = rounding or ("round" if coordinates == "align_corners" else "floor")
    if method == "nearest_neighbor" and rounding not in _ROUNDING:
        raise RuleError(f"rounding_method {rounding!r}")

    def run(nchw: Any) -> Any:
        return relax.op.image.resize2d(
            nchw, size, layout="NCHW", method=method, coordinate_transformation_mode=coordinates,
            rounding_method=rounding if rounding in _ROUNDING else "round",
            cubic_alpha=attrs.real("cubic_alpha", -0.5),
            cubic_exclude=attrs.integer("cubic_exclude", 0),
        )  # fmt: skip

    return in_nchw(e, data, attrs, run, "layout")


def _resize2d(e: Emitter, args: Args, attrs: Attrs) -> Any:
    mode = attrs.text("coordinate_transformation_mode", "half_pixel")
    return _resize(e, args[0], attrs.pair("size", 1), attrs, mode)


def _upsampling(e: Emitter, args: Args, attrs: Attrs) -> Any:
    layout = attrs.text("layout", "NCHW")
    shape = shape_of(args[0])
    if len(shape) != 4 or not {"H", "W"} <= set(layout):
        raise RuleError(f"layout {layout} of {len(shape)} dimensions")
    scales = (attrs.real("scale_h", 1), attrs.real("scale_w", 1))
    if not all(0 < scale < 2**20 for scale in scales):
        raise RuleError(f"scales {scales}")
    height, width = (shape[layout.index(letter)] for letter in "HW")
    size = (max(1, round(height * scales[0])), max(1, round(width * scales[1])))
    mode = "align_corners" if attrs.flag("align_corners") else "asymmetric"
    return _resize(e, args[0], size, attrs.with_default("method", "nearest_neighbor"), mode)


RULES: dict[str, Rule] = {
    "nn.max_pool2d": _max_pool,
    "nn.avg_pool2d": _avg_pool,
    "nn.global_max_pool2d": _global_pool(average=False),
    "nn.global_avg_pool2d": _global_pool(average=True),
    "nn.adaptive_max_pool2d": _adaptive_pool(average=False),
    "nn.adaptive_avg_pool2d": _adaptive_pool(average=True),
    "nn.pad": _pad,
    "nn.upsampling": _upsampling,
    "image.resize2d": _resize2d,
}
