"""Python packages for arm64: wheels that pip downloads and unpacks, nothing is executed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tvmx.errors import SimulationError
from tvmx.simulate._tools import pip, run, said

_OLDEST_GLIBC, _NEWEST_GLIBC = 17, 28  # 2.17: manylinux2014; 2.28: Debian 10


def install(
    requirements: Sequence[str],
    python: str,
    downloads: Path,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Unpack exactly ``requirements`` (no dependencies) for Python ``python`` into ``folder``.

    ``python`` is such as ``3.11``. Index, proxy and certificates are those of pip's own
    configuration; pip compares every file with the digest its index gives. Complete wheels
    stay in ``downloads``. Raises :class:`SimulationError`.
    """
    command, wheels, log = pip(), downloads / "wheels", downloads / "log"
    wheels.mkdir(parents=True, exist_ok=True)
    # Neither touches this Python's own packages, so settings that guard those do not matter.
    env = {"PIP_REQUIRE_VIRTUALENV": "0", "PIP_USER": "0"}
    options: list[str | Path] = ["--no-deps", "--only-binary=:all:", "--implementation=cp"]
    options += [f"--python-version={python}", "--progress-bar=off"]
    for minor in range(_NEWEST_GLIBC, _OLDEST_GLIBC - 1, -1):
        options += ["--platform", f"manylinux_2_{minor}_aarch64"]
    options += ["--platform", "manylinux2014_aarch64"]
    say(f"pip: downloading {', '.join(requirements)} for arm64")
    done, text = run([*command, "download", *options, "-d", wheels, *requirements], log, env)
    if not done:
        raise SimulationError(
            f"pip could not download the arm64 wheels: {said(text, ('ERROR:',))}",
            hint="check the network and pip's configuration (`pip config list`), then run the"
            f" command again: what is complete is kept; pip's own words are in {log}",
        )
    say("unpacking the wheels")
    source: list[str | Path] = [
        "--no-index",
        "--find-links",
        wheels,
        "--no-compile",
        "--target",
        folder,
    ]
    done, text = run([*command, "install", *options, *source, *requirements], log, env)
    if not done:
        raise SimulationError(
            f"pip could not unpack the arm64 wheels: {said(text, ('ERROR:',))}",
            hint=f"delete {wheels} and run the command again",
        )
