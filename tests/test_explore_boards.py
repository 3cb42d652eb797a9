"""A real exploration on two boards that are switched off and on while it runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.boards import Boards, Recorder
from tests.explorations import save_model
from tvmx.explore import explore
from tvmx.explore._request import ExploreRequest
from tvmx.measure import Manners
from tvmx.store import Journal

pytestmark = [pytest.mark.rpc, pytest.mark.slow]

TRIALS = 16


class Outages(Recorder):
    """A progress that switches boards off and on as the exploration advances."""

    def __init__(self, boards: Boards) -> None:
        super().__init__()
        self.boards = boards
        self.batches = 0
        self.stages: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def update(self, done: float, total: float, **_: object) -> None:
        if self.stages[-1] not in ("defaults", "tune"):
            return
        self.batches += 1
        if self.batches == 1:
            self.boards[0].kill()
        if self.batches == 2:
            for board in self.boards:
                board.kill()

    def waiting(self, text: str, seconds_left: float | None) -> None:
        super().waiting(text, seconds_left)
        countdown = [left for _, said, left in self.waits if said and left is not None]
        if (
            len(countdown) == 3 and not self.boards[0].alive
        ):  # nobody is left, and the user has seen it count
            for board in self.boards:
                board.start()


def test_explore_goes_on_with_the_others_and_pauses_when_none_is_left(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    with Boards(2) as boards:
        progress = Outages(boards)
        request = ExploreRequest(
            model=model,
            target="host",
            out=tmp_path / "run",
            tracker=boards.address,
            trials=TRIALS,
            manners=Manners(patience_s=120.0),
        )
        result = explore(request, progress)
        servers = {board.server for board in boards}
    assert progress.batches > 2
    records = list(Journal(tmp_path / "run" / "journal.jsonl").records())
    assert max(Counter(record.key for record in records).values()) == 1
    assert all(r.measurement["status"] == "ok" for r in records), "a fault was put on a candidate"
    assert result.measurements == TRIALS and result.failures == 0
    assert {device.server for device in result.devices} == servers
    assert all(device.fma_gflops for device in result.devices)
    left = [seconds for _, text, seconds in progress.waits if text and seconds is not None]
    assert left == sorted(left, reverse=True) and len(left) >= 3
    assert any("waiting for a device" in note for note in result.notes)
    assert result.candidates[result.best].max_error is not None
    assert result.candidates[result.best].max_error < 1e-3
