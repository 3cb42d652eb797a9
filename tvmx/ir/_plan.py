"""Plan: the whole decision, frozen, as JSON that rebuilds the same library."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from tvmx.errors import StoreError
from tvmx.ir._channels import ChannelValues
from tvmx.ir._config import Config
from tvmx.ir._implementation import Implementation

PLAN_SCHEMA = 3
_READ = (2, 3)  # 2 had neither equalisation nor corrections


class LayerChoice(BaseModel):
    """What one layer runs: implementation plus the template's config.

    ``weights`` is the digest of pruned constants that magnitude alone does not give; the files are
    in the folder ``weights`` beside the plan (:mod:`tvmx.passes._pruned`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    workload: str
    implementation: Implementation
    config: dict[str, Any]
    weights: str = Field(default="", pattern="^([0-9a-f]{16})?$")

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """``weights`` is left out where there are none: digests stay as they were."""
        fields: dict[str, Any] = handler(self)
        if not self.weights:
            del fields["weights"]
        return fields

    @property
    def knobs(self) -> Config:
        """The config as the template takes it."""
        return Config(self.config)


class Activation(BaseModel):
    """Scale and zero point of one value (numbered as in the network's graph) when it is int8."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: int = Field(ge=0)
    scale: float = Field(gt=0, allow_inf_nan=False)
    zero_point: int = Field(ge=-128, le=127)


class Plan(BaseModel):
    """Every layer's implementation and config for one model on one target.

    ``model`` is the digest of the imported model; ``versions`` records tvmx and TVM.
    ``activations`` are there where a layer is int8: what calibration found. ``equalisation`` are
    the factors that layers' output channels were divided by (:mod:`tvmx.passes._equalise`),
    ``corrections`` what is added to the biases of int8 layers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = PLAN_SCHEMA
    model: str
    target: str
    choices: tuple[LayerChoice, ...]
    activations: tuple[Activation, ...] = ()
    equalisation: tuple[ChannelValues, ...] = ()
    corrections: tuple[ChannelValues, ...] = ()
    seed: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    note: str = ""

    @property
    def digest(self) -> str:
        """16 hex digits over all that decides the library: equal plans build equal libraries."""
        decisive = {"model", "target", "choices", "activations"}
        # Not where they are empty: then digests are those of schema 2.
        decisive |= {name for name in ("equalisation", "corrections") if getattr(self, name)}
        text = self.model_dump_json(include=decisive)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def exact(self) -> bool:
        """Whether every layer computes as trained: float and dense."""
        return all(choice.implementation.exact for choice in self.choices)

    def choice(self, layer: str) -> LayerChoice | None:
        """The choice for a layer name, or None where no template covers the layer."""
        return next((c for c in self.choices if c.layer == layer), None)

    def save(self, path: Path) -> None:
        """Write as indented JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read a plan. Raises :class:`StoreError` when the file is missing or no plan."""
        try:
            plan = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as err:
            raise StoreError(f"cannot read plan {path}: {err.strerror}") from err
        except (ValidationError, UnicodeDecodeError) as err:
            raise StoreError(
                f"{path} is not a tvmx plan",
                hint="plans are written by `tvmx explore` and `tvmx build`",
            ) from err
        if plan.schema_version not in _READ:
            raise StoreError(
                f"{path} has plan schema {plan.schema_version}, this tvmx reads "
                f"{' and '.join(map(str, _READ))}"
            )
        return plan
