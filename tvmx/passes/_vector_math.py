"""Exponential functions in vectors: polynomials in place of one library call for each element.

``LEGALIZE`` says so to ``relax.transform.LegalizeOps``. For all float32, on every target, within
2e-6 of the value (:func:`exp`: 1e-7). Infinities and NaN come out as the library's; a result below
2**-126 may be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvmx._tvm import te, tirx, tvm

_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts, the first of few bits: its products with small integers are exact."""
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
        5.0000001201e-1)  # fmt: skip
_EXP_RANGE = (-104.0, 89.0)  # zero below, infinite above
_ROUND = 12582912.0  # 1.5 * 2**23: a sum with it is rounded to an integer, held in its low bits
_ROUND_BITS = 0x4B400000
_TANH_RANGE = 9.0
_TANH = (
    (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
     1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)  # fmt: skip
_ERF_RANGE = 4.0
_ERF = (
    (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
     -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
    (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
     -1.42647390514189e-02),
)  # fmt: skip


def exp(x: Any) -> Any:
    """``e ** x`` of a float32 expression: 2**n times a polynomial (Cephes' ``expf``)."""

    def scaled(x: Any, rounded: Any) -> Any:
        whole = tirx.reinterpret("int32", rounded) - tirx.const(_ROUND_BITS, "int32")
        n = rounded - _f32(_ROUND)
        rest = x - n * _f32(_LN2_HIGH) - n * _f32(_LN2_LOW)
        return _let(rest, lambda r: _let(whole, lambda n: _powers(r, n), "int32"))

    def rounded(x: Any) -> Any:
        return _let(x * _f32(_LOG2_E) + _f32(_ROUND), lambda t: scaled(x, t))

    return _let(_clamped(x, *_EXP_RANGE), rounded)


def _powers(r: Any, n: Any) -> Any:
    """``e ** r * 2 ** n``, in two steps: 2 ** 128 and 2 ** -150 are no float32."""
    half = n >> tirx.const(1, "int32")
    value = _horner(_EXP, r) * (r * r) + r + _f32(1.0)
    return value * _power_of_two(half) * _power_of_two(n - half)


def _power_of_two(n: Any) -> Any:
    bits = (n + tirx.const(127, "int32")) << tirx.const(23, "int32")
    return tirx.reinterpret("float32", bits)


def sigmoid(x: Any) -> Any:
    """``1 / (1 + e ** -x)`` of a float32 expression."""
    return _f32(1.0) / (_f32(1.0) + exp(_f32(0.0) - x))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent of a float32 expression, by a quotient of polynomials (Eigen's)."""
    return _odd_quotient(x, _TANH_RANGE, *_TANH)


def erf(x: Any) -> Any:
    """The error function of a float32 expression, by a quotient of polynomials (Eigen's)."""
    return _odd_quotient(x, _ERF_RANGE, *_ERF)


def _odd_quotient(x: Any, limit: float, over: Sequence[float], under: Sequence[float]) -> Any:
    def quotient(x: Any) -> Any:
        return _let(x * x, lambda square: x * _horner(over, square) / _horner(under, square))

    return _let(_clamped(x, -limit, limit), quotient)


def _horner(coefficients: Sequence[float], x: Any) -> Any:
    value = _f32(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _f32(coefficient)
    return value


def _clamped(x: Any, low: float, high: float) -> Any:
    """Selects, as NaN is neither above nor below and passes through."""
    return _let(
        x,
        lambda x: tirx.Select(x > _f32(high), _f32(high), tirx.Select(x < _f32(low), _f32(low), x)),
    )


def _let(value: Any, body: Callable[[Any], Any], dtype: str = "float32") -> Any:
    var = tirx.Var("v", dtype)
    return tirx.Let(var, value, body(var))


def _f32(value: float) -> Any:
    return tirx.const(value, "float32")


def _softmax(x: Any, axis: int) -> Any:
    axis %= len(x.shape)
    shape = [extent for at, extent in enumerate(x.shape) if at != axis]

    def along(reducer: Callable[..., Any], source: Any, name: str) -> Any:
        k = te.reduce_axis((0, x.shape[axis]), "k")
        return te.compute(
            shape, lambda *i: reducer(source[*i[:axis], k, *i[axis:]], axis=k), name=name
        )

    largest = along(te.max, x, "largest")
    powers = te.compute(
        x.shape, lambda *i: exp(x[i] - largest[*i[:axis], *i[axis + 1 :]]), name="powers"
    )
    total = along(te.sum, powers, "total")
    return te.compute(
        x.shape, lambda *i: powers[i] / total[*i[:axis], *i[axis + 1 :]], name="softmax"
    )


def _each(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda x: te.compute(x.shape, lambda *i: function(x[i]), name="value")


def _gelu(x: Any) -> Any:
    return x * _f32(0.5) * (_f32(1.0) + erf(x * _f32(0.5**0.5)))


def _rule(name: str, compute: Callable[..., Any], *attributes: str) -> Callable[[Any, Any], Any]:
    """Legalise float32 by ``compute(x, attributes)``, and anything else as TVM does."""

    def legalise(builder: Any, call: Any) -> Any:
        if str(call.args[0].ty.dtype) != "float32":
            return tvm.ir.Op.get(name).get_attr("FLegalize")(builder, call)
        values = [int(getattr(call.attrs, attribute)) for attribute in attributes]
        hint = name.rpartition(".")[2]
        return builder.call_te(compute, call.args[0], *values, primfunc_name_hint=hint)

    return legalise


LEGALIZE: dict[str, Callable[[Any, Any], Any]] = {
    name: _rule(name, _each(function))
    for name, function in (
        ("relax.exp", exp), ("relax.sigmoid", sigmoid), ("relax.tanh", tanh), ("relax.erf", erf),
        ("relax.nn.silu", lambda x: x * sigmoid(x)), ("relax.nn.gelu", _gelu),
    )
} | {"relax.nn.softmax": _rule("relax.nn.softmax", _softmax, "axis")}  # fmt: skip
"""For ``LegalizeOps``: by operator."""
