"""Numbers per output channel of a layer, as plans keep them: exact, and short in JSON."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, field_validator

_FLOAT32 = np.dtype("<f4")


class ChannelValues(BaseModel):
    """One float32 number for each output channel of ``layer``; ``float32`` is their base64."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    float32: str

    @field_validator("float32")
    @classmethod
    def _decodes(cls, text: str) -> str:
        try:
            raw = base64.b64decode(text, validate=True)
        except binascii.Error as err:
            raise ValueError(f"no base64: {err}") from err
        if len(raw) % _FLOAT32.itemsize or not np.isfinite(np.frombuffer(raw, _FLOAT32)).all():
            raise ValueError("no finite float32 numbers")
        return text

    @classmethod
    def of(cls, layer: str, values: npt.NDArray[Any]) -> ChannelValues:
        """From an array (channels,)."""
        raw = np.ascontiguousarray(values, _FLOAT32).tobytes()
        return cls(layer=layer, float32=base64.b64encode(raw).decode())

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """(channels,)."""
        raw = base64.b64decode(self.float32)
        return np.frombuffer(raw, _FLOAT32).astype(np.float32)
