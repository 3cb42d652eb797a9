"""RunSettings: what an exploration was asked to do, and what makes two of them the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tvmx.errors import StoreError
from tvmx.ir import DataSource

RUN_SCHEMA = 1

_IDENTITY = {
    "model": "model digest",
    "target": "target",
    "target_digest": "target file",
    "device": "device key",
    "threads": "threads",
    "cores": "cores",
    "cache": "cache",
    "seed": "seed",
    "objective": "objective",
    "data": "data digest",
    "metric": "metric",
    "metric_digest": "metric's source",
    "calibration": "calibration",
    "equalise": "equalise",
    "bias_correction": "bias correction",
    "prune_method": "prune method",
    "skip": "skipped layers",
    "max_accuracy_drop": "max accuracy drop",
    "max_weights": "max weights",
    "max_arena": "max arena",
    "schedules": "schedule templates",
}


class RunSettings(BaseModel):
    """The request behind a run.

    ``model`` and ``data`` are digests (``data`` None without ``--data``), the paths and
    ``data_source`` beside them are for people. ``target_digest`` is the digest of the target's
    content.
    ``max_accuracy_drop`` is in percentage points of ``metric`` (None: top-1 or agreement),
    ``max_weights`` and ``max_arena`` are in bytes. ``schedules`` maps the names of templates
    of the user's to their fingerprints, ``schedule_paths`` says where they were loaded from;
    ``shapes`` are the input shapes given (part of the model digest); ``skip`` are globs of
    layers that are never int8. ``budget_s`` and ``trials`` bound the search and may change when
    a run is resumed, as may the paths; everything else must be equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["tvmx-run"] = "tvmx-run"
    schema_version: int = RUN_SCHEMA
    model: str
    model_path: str = ""
    params_path: str = ""
    target: str
    target_digest: str = ""
    device: str = "host"
    threads: int = Field(default=1, ge=1)
    cores: Literal["big", "little"] = "big"
    cache: Literal["warm", "cold"] = "warm"
    seed: int = 0
    objective: Literal["latency", "arena", "weights"] = "latency"
    data: str | None = None
    data_path: str = ""
    data_source: DataSource | None = None
    metric: str | None = None
    metric_digest: str = ""
    calibration: Literal["percentile", "minmax", "average", "kl", "mse"] = "percentile"
    equalise: bool = False
    bias_correction: bool = False
    prune_method: Literal["magnitude", "reconstruction"] = "magnitude"
    skip: tuple[str, ...] = ()
    max_accuracy_drop: float | None = None
    max_weights: int | None = None
    max_arena: int | None = None
    schedules: dict[str, str] = Field(default_factory=dict)
    schedule_paths: tuple[str, ...] = ()
    shapes: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    budget_s: float | None = None
    trials: int | None = None

    def differences(self, other: RunSettings) -> list[str]:
        """What makes ``other`` another exploration, such as ``seed: 0 there, 1 now``."""
        return [
            f"{label}: {_show(there)} there, {_show(now)} now"
            for name, label in _IDENTITY.items()
            if (there := getattr(self, name)) != (now := getattr(other, name))
        ]

    @classmethod
    def load(cls, path: Path) -> RunSettings:
        """Read ``settings.json``. Raises StoreError when it is damaged or too new."""
        try:
            settings = cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as err:
            raise StoreError(f"cannot read {path}: {err.strerror}") from err
        except (ValidationError, UnicodeDecodeError) as err:
            raise StoreError(
                f"{path} holds no run settings this tvmx can read",
                hint="name another folder with --out",
            ) from err
        if settings.schema_version != RUN_SCHEMA:
            raise StoreError(
                f"{path} has run schema {settings.schema_version}, this tvmx reads {RUN_SCHEMA}",
                hint="use the tvmx that wrote it, or name another folder with --out",
            )
        return settings


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in sorted(value.items())) or "none"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value)
