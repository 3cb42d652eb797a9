"""Implementation: how a layer is computed. The agent's action, the paper's "primitive"."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from tvmx.ir._layout import stored_as
from tvmx.ir._sparsity import DENSE
from tvmx.ir._workload import Conv2dWorkload, DataType, DenseWorkload

Precision = Literal["f32", "f16", "int8"]
_DTYPES: dict[Precision, DataType] = {"f32": "float32", "int8": "int8"}


class Implementation(BaseModel):
    """Precision, sparsity, data layout and schedule template of one layer.

    ``layout`` is the layout the kernel writes (``NCHW``, ``NCHW4c``, ``NC`` ...);
    ``data_layout`` is the one it reads, different only where a template bridges the two
    (a first layer reads NCHW and writes NCHWc). ``fingerprint`` identifies the template's
    source, so that a measurement made with an edited template is never reused. ``stated`` is
    set where the model itself states the layer in int8, with scales of its own. ``float_out`` says
    of an int8 one that its output (and a residual) is float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str
    layout: str
    data_layout: str
    precision: Precision = "f32"
    sparsity: str = DENSE
    fingerprint: str = ""
    stated: bool = False
    float_out: bool = False

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is not so is left out: keys of earlier journals stay as they are."""
        fields: dict[str, Any] = handler(self)
        for name in ("stated", "float_out"):
            if not fields[name]:
                del fields[name]
        return fields

    def label(self) -> str:
        """Short form for tables, such as ``conv2d_direct NCHW4c f32``."""
        parts = [self.template, self.layout, self.precision]
        if self.sparsity != DENSE:
            parts.append(self.sparsity)
        if self.float_out:
            parts.append("float-out")
        return " ".join(parts)

    @property
    def dtype(self) -> DataType:
        """Element type of the activations it reads."""
        return _DTYPES[self.precision]

    @property
    def out_dtype(self) -> DataType:
        """Element type of what it writes."""
        return "float32" if self.float_out else self.dtype

    @property
    def exact(self) -> bool:
        """Whether it computes the layer as the model states it: float and dense, or stated."""
        return self.stated or (self.precision == "f32" and self.sparsity == DENSE)

    @property
    def reads(self) -> str:
        """The format (layout and type) its data comes in."""
        return stored_as(self.data_layout, self.dtype)

    @property
    def writes(self) -> str:
        """The format of its output, and of a residual it adds."""
        return stored_as(self.layout, self.out_dtype)

    def variant(self, workload: Conv2dWorkload | DenseWorkload) -> Conv2dWorkload | DenseWorkload:
        """The workload as the template is given it: with this type and sparsity."""
        return workload.variant(self.dtype, self.sparsity, float_out=self.float_out)
