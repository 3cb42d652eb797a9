"""The policy: a small network that scores implementations by what they are, not by number."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from tvmx.errors import StoreError
from tvmx.search._features import ACTION, CONTEXT
from tvmx.store import write_atomic

POLICY_SCHEMA = 1
_HIDDEN = 64


class ImplementationPolicy(nn.Module):
    """Scores each implementation of a layer from the layer's features and its own.

    Any number of implementations, in any order: the score of one does not depend on its number
    in the table. That is what lets a policy be applied to a table it has never seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(len(CONTEXT) + len(ACTION), _HIDDEN), nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU(),
            nn.Linear(_HIDDEN, 1),
        )  # fmt: skip

    def forward(
        self, context: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities (n, width) of ``context`` (n, c), ``actions`` (n, width, f), ``mask``.

        Masked actions have -inf.
        """
        wide = context[:, None, :].expand(-1, actions.shape[1], -1)
        scores: torch.Tensor = self.score(torch.cat([wide, actions], dim=2))[..., 0]
        return scores.masked_fill(~mask, float("-inf")).log_softmax(dim=1)

    def save(self, path: Path) -> None:
        """Write weights and what they expect, as JSON. Raises UnwritableError."""
        weights = {name: value.tolist() for name, value in self.state_dict().items()}
        write_atomic(path, _PolicyFile(weights=weights).model_dump_json() + "\n")

    @classmethod
    def load(cls, path: Path) -> ImplementationPolicy:
        """Read a policy: numbers, nothing that could be executed.

        Raises :class:`StoreError` when it is missing, no policy, or one of another version.
        """
        again = "train another: `tvmx train-agent`"
        try:
            found = _PolicyFile.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as err:
            raise StoreError(f"cannot read policy {path}: {err.strerror}", hint=again) from err
        except (ValidationError, UnicodeDecodeError) as err:
            raise StoreError(f"{path} is not a tvmx policy", hint=again) from err
        if found.version != _PolicyFile(weights={}).version:
            raise StoreError(
                f"{path} was trained by another version of tvmx, on other features", hint=again
            )
        policy = cls()
        try:
            policy.load_state_dict({k: torch.tensor(v) for k, v in found.weights.items()})
        except (RuntimeError, ValueError) as err:
            raise StoreError(f"{path} is damaged: its weights do not fit", hint=again) from err
        return policy


class _PolicyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["tvmx-policy"] = "tvmx-policy"
    schema_version: int = POLICY_SCHEMA
    context: tuple[str, ...] = CONTEXT
    action: tuple[str, ...] = ACTION
    weights: dict[str, list[float] | list[list[float]]]

    @property
    def version(self) -> tuple[object, ...]:
        """What must be equal for the weights to mean the same."""
        return self.schema_version, self.context, self.action
