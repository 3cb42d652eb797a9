"""docs/cli.md is what the command line says, and README's commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from tvmx.cli._farm import _board
from tvmx.cli._main import app
from tvmx.cli._reference import PAGE, render

ROOT = Path(__file__).resolve().parents[1]


def test_the_reference_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run: python -m tvmx.cli._reference --update"
    )


@pytest.mark.parametrize("page", ["README.md", "docs/devices.md"])
def test_a_page_has_the_commands_a_board_needs(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    board = _board("rpi4", "127.0.0.1:9190")
    for command in (board["tunnel"], *board["board_commands"]):
        assert f"    {command}\n" in text


def test_every_command_has_help_examples_and_json() -> None:
    for path, command in walk(typer.main.get_command(app), "tvmx"):
        assert command.help, path
        assert path in (command.epilog or ""), path
        assert any("--json" in p.opts for p in command.params), path
        assert all(p.help for p in command.params), path


def walk(group: Any, path: str) -> list[tuple[str, Any]]:
    found = []
    for name, command in group.commands.items():
        found.append((f"{path} {name}", command))
        if hasattr(command, "commands"):
            found += walk(command, f"{path} {name}")
    return found


def command_lines() -> list[str]:
    """Command lines of tvmx in README, docs and the help's own examples."""
    names = ("README.md", "docs/devices.md", "docs/simulated-boards.md")
    pages = [ROOT / name for name in names]
    texts = [page.read_text(encoding="utf-8").replace("\\\n", " ") for page in pages]
    texts += [command.epilog or "" for _, command in walk(typer.main.get_command(app), "tvmx")]
    return [m.strip() for text in texts for m in re.findall(r"^ +(tvmx .*)$", text, re.M)]


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_documented_commands_parse(line: str) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    # Parsing alone: a wrong option, a missing argument or a surplus word raises.
    context = command.make_context("tvmx", words, resilient_parsing=False)
    assert context.command is command
