"""Block sparsity as text and as numbers: ``16x1@80`` drops 80 % of the 16x1 blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvmx.errors import UsageError
from tvmx.ir._layout import ceil_div

DENSE = "dense"
LEVELS = (50, 70, 80, 90)
"""Percent of the blocks that are dropped, as the search tries them."""
_SPARSE = re.compile(r"^(\d+)x(\d+)@(\d+)$")


@dataclass(frozen=True)
class BlockSparsity:
    """Blocks of ``rows`` output channels x ``columns`` input channels; ``level`` in percent."""

    rows: int
    columns: int
    level: int

    @classmethod
    def parse(cls, text: str) -> BlockSparsity | None:
        """None for ``dense``. Raises UsageError for anything else that is not ``RxC@LEVEL``."""
        if text == DENSE:
            return None
        match = _SPARSE.match(text)
        rows, columns, level = map(int, match.groups()) if match else (0, 0, 0)
        if rows < 1 or columns < 1 or not 0 < level < 100:
            raise UsageError(f"sparsity {text!r} is neither 'dense' nor like '16x1@80'")
        return cls(rows, columns, level)

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}@{self.level}"

    def blocks(self, out_channels: int, in_channels: int) -> tuple[int, int]:
        """Rows and columns of the matrix in blocks, the last ones padded."""
        return ceil_div(out_channels, self.rows), ceil_div(in_channels, self.columns)

    def kept(self, out_channels: int, in_channels: int) -> int:
        """Blocks that stay, at least one."""
        rows, columns = self.blocks(out_channels, in_channels)
        return max(1, rows * columns - rows * columns * self.level // 100)
