"""The command line: ``main`` is the console entry point."""

from tvmx.cli._main import main

__all__ = ["main"]
