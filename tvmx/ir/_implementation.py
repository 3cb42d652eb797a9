"""Implementation: how a layer is computed. The agent's action, the paper's "primitive"."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Precision = Literal["f32", "f16", "int8"]


class Implementation(BaseModel):
    """Precision, sparsity, data layout and schedule template of one layer.

    ``layout`` is the layout the kernel writes (``NCHW``, ``NCHW4c``, ``NC`` ...);
    ``data_layout`` is the one it reads, different only where a template bridges the two
    (a first layer reads NCHW and writes NCHWc). ``fingerprint`` identifies the template's
    source, so that a measurement made with an edited template is never reused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: str
    layout: str
    data_layout: str
    precision: Precision = "f32"
    sparsity: str = "dense"
    fingerprint: str = ""

    def label(self) -> str:
        """Short form for tables, such as ``conv2d_direct NCHW4c f32``."""
        parts = [self.template, self.layout, self.precision]
        if self.sparsity != "dense":
            parts.append(self.sparsity)
        return " ".join(parts)
