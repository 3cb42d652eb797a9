"""Workload: a layer without its weights, the unit of tuning."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from tvmx.ir._sparsity import DENSE

DataType = Literal["float32", "float16", "int8"]
"""What a kernel computes with; the int8 one accumulates in int32 and writes int8."""
Rounding = Literal["even", "upward", "tonearest", "gemmlowp"]
"""How int8 kernels bring sums to the output's scale, as the model's origin does it.

``even``: times a float32, halves to the even one (ONNX, PyTorch). The others multiply by a 31-bit
integer and shift right: halves go up (``upward``, Relay's default), away from zero
(``tonearest``, Relay's other), or are rounded twice as TFLite's gemmlowp does.
"""
ROUNDINGS: frozenset[Rounding] = frozenset(get_args(Rounding))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Epilogue(_Frozen):
    """What is fused behind an anchor operator, in this order: bias, residual add, clip.

    ``clip_min`` and ``clip_max`` are bounds on the output; ``relu`` is ``clip_min=0``,
    ``relu6`` is ``(0, 6)``; ``None`` means unbounded on that side. ``rounding`` is that of int8
    layers; a residual is added only in ``even``, in which alone there are these two:
    ``float_out`` layers read int8, but their output and residual are float32, and so is the bias;
    ``float_bias`` layers write int8, but their bias is added in float32, after the multiplication:
    it is not rounded to a whole number of the sums' steps.
    """

    bias: bool = False
    residual: bool = False
    clip_min: float | None = None
    clip_max: float | None = None
    rounding: Rounding = "even"
    float_out: bool = False
    float_bias: bool = False

    @model_validator(mode="after")
    def _whole_numbers_in_fixed_point(self) -> Self:
        if self.residual and self.rounding != "even":
            raise ValueError(f"a residual is not added in rounding {self.rounding!r}")
        if self.in_float and self.rounding != "even":
            raise ValueError(f"nothing is added in float in rounding {self.rounding!r}")
        if self.float_out and self.float_bias:
            raise ValueError("float_bias is for layers with an int8 output")
        return self

    @property
    def in_float(self) -> bool:
        """Whether the bias of an int8 layer is float32, added to the sums behind their scale."""
        return self.float_out or self.float_bias

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is as it always was is left out: digests stay the same."""
        fields: dict[str, Any] = handler(self)
        usual = {"rounding": "even", "float_out": False, "float_bias": False}
        return {name: v for name, v in fields.items() if name not in usual or v != usual[name]}

    def describe(self) -> str:
        """Short form for tables, such as ``bias+add+relu`` or ``bias+upward``."""
        bias = "float-bias" if self.float_bias else "bias"
        parts = [n for n, on in ((bias, self.bias), ("add", self.residual)) if on]
        if (self.clip_min, self.clip_max) == (0.0, None):
            parts.append("relu")
        elif (self.clip_min, self.clip_max) == (0.0, 6.0):
            parts.append("relu6")
        elif self.clip_min is not None or self.clip_max is not None:
            parts.append(f"clip[{self.clip_min},{self.clip_max}]")
        if self.rounding != "even":
            parts.append(self.rounding)
        if self.float_out:
            parts.append("float-out")
        return "+".join(parts)


class _WorkloadBase(_Frozen):
    dtype: DataType = "float32"
    sparsity: str = DENSE
    epilogue: Epilogue = Epilogue()

    def variant(self, dtype: DataType, sparsity: str = DENSE, *, float_out: bool = False) -> Self:
        """The same layer computed with another type and sparsity: what a template is given.

        With ``float_out`` an int8 layer's output is made float32.
        """
        # Not model_copy: it would copy the cached digest.
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        if float_out:
            fields["epilogue"] = self.epilogue.model_copy(update={"float_out": True})
        return type(self)(**fields | {"dtype": dtype, "sparsity": sparsity})

    @property
    def out_dtype(self) -> DataType:
        """Element type of the output, and of a residual."""
        return "float32" if self.epilogue.float_out else self.dtype

    def _suffix(self) -> str:
        kind = "" if self.dtype == "float32" else f" {self.dtype}"
        return kind if self.sparsity == DENSE else f"{kind} {self.sparsity}"

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no blanks. Equal workloads have equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]


class Conv2dWorkload(_WorkloadBase):
    """A 2-d convolution, logical NCHW data and OIHW weights.

    ``padding`` is (top, left, bottom, right). ``groups == in_channels == out_channels``
    is a depthwise convolution.
    """

    op: Literal["conv2d"] = "conv2d"
    batch: int = Field(ge=1)
    in_channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def is_depthwise(self) -> bool:
        """One filter per channel, no channel multiplier."""
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    @property
    def out_height(self) -> int:
        """Output rows."""
        span = (self.kernel[0] - 1) * self.dilation[0] + 1
        return (self.height + self.padding[0] + self.padding[2] - span) // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Output columns."""
        span = (self.kernel[1] - 1) * self.dilation[1] + 1
        return (self.width + self.padding[1] + self.padding[3] - span) // self.strides[1] + 1

    @property
    def data_shape(self) -> tuple[int, int, int, int]:
        """Logical input shape, NCHW."""
        return (self.batch, self.in_channels, self.height, self.width)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Logical weight shape, OIHW (I per group)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Logical output shape, NCHW."""
        return (self.batch, self.out_channels, self.out_height, self.out_width)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        n, o, h, w = self.out_shape
        return n * o * h * w * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]

    def describe(self) -> str:
        """One line for tables."""
        kind = "dwconv" if self.is_depthwise else "conv"
        text = (
            f"{kind}{self.kernel[0]}x{self.kernel[1]} {self.in_channels}-{self.out_channels}"
            f" @{self.height}x{self.width}"
        )
        if self.strides != (1, 1):
            text += f" /{self.strides[0]}" + (
                f",{self.strides[1]}" if self.strides[0] != self.strides[1] else ""
            )
        if self.groups > 1 and not self.is_depthwise:
            text += f" g{self.groups}"
        if self.dilation != (1, 1):
            text += f" d{self.dilation[0]},{self.dilation[1]}"
        if self.batch > 1:
            text += f" n{self.batch}"
        tail = self.epilogue.describe()
        return (f"{text} {tail}" if tail else text) + self._suffix()


class DenseWorkload(_WorkloadBase):
    """A matrix product with constant weights: (batch, in_features) x (in_features, out_features).

    Logical weights are ``(out_features, in_features)``.
    """

    op: Literal["dense"] = "dense"
    batch: int = Field(ge=1)
    in_features: int = Field(ge=1)
    out_features: int = Field(ge=1)

    @property
    def data_shape(self) -> tuple[int, int]:
        """Input shape (batch, in_features)."""
        return (self.batch, self.in_features)

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Weight shape (out_features, in_features)."""
        return (self.out_features, self.in_features)

    @property
    def out_shape(self) -> tuple[int, int]:
        """Output shape (batch, out_features)."""
        return (self.batch, self.out_features)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return self.batch * self.in_features * self.out_features

    def describe(self) -> str:
        """One line for tables."""
        text = f"dense {self.in_features}-{self.out_features}"
        if self.batch > 1:
            text += f" n{self.batch}"
        tail = self.epilogue.describe()
        return (f"{text} {tail}" if tail else text) + self._suffix()


Workload = Annotated[Conv2dWorkload | DenseWorkload, Field(discriminator="op")]
"""Any workload; JSON carries ``op`` as the discriminator."""

_ADAPTER: TypeAdapter[Conv2dWorkload | DenseWorkload] = TypeAdapter(Workload)


def workload_from_json(text: str) -> Conv2dWorkload | DenseWorkload:
    """Parse what :meth:`canonical` wrote. Raises pydantic.ValidationError on anything else."""
    return _ADAPTER.validate_json(text)
