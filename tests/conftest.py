"""Options of the test suite."""

from __future__ import annotations

import difflib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.measure_libraries import Libraries, build

GOLDEN = Path(__file__).parent / "golden"


# How long an example takes says something about the machine's load only.
settings.register_profile("tvmx", deadline=None)
settings.load_profile("tvmx")


def pytest_configure() -> None:
    """Shells start background jobs deaf to interrupts, and so would be what the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden/ with the present output"
    )


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` compares ``text`` with ``tests/golden/name``, or rewrites it."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
            return
        wanted = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != wanted:
            diff = difflib.unified_diff(
                wanted.splitlines(), text.splitlines(), f"golden/{name}", "produced", lineterm=""
            )
            pytest.fail("\n".join(diff) + "\nintended? pytest --update-golden", pytrace=False)

    return check


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    """Right, wrong, crashing and endless libraries for this machine, built once."""
    return build(tmp_path_factory.mktemp("libraries"))


_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


@pytest.fixture(autouse=True)
def all_cores() -> Iterator[None]:
    """Undo what TVM's thread pool does in this process: it binds the main thread to one core.

    Processes that later tests start would inherit that, and take it for the whole machine.
    """
    yield
    if _CORES is not None:
        os.sched_setaffinity(0, _CORES)
