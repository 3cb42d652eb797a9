"""``python -m tvmx.simulate._launch``: becomes a guest process, under a guard.

The guard (see ``tvmx.measure._guard``) ends it with its parent. The working half turns into the
given command by exec, so its pid stays. ``{scratch}`` in the command and the environment is
replaced by the process's scratch folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource

from tvmx.measure._guard import split


def main() -> None:
    """Parse the command line, put the guard in place, become the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--command", type=json.loads, required=True, help="a JSON list")
    parser.add_argument("--environment", type=json.loads, required=True, help="a JSON object")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--scratch", required=True)
    args = parser.parse_args()
    split(args.parent, args.scratch)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # candidates that crash leave no core files
    command = [_filled(part, args.scratch) for part in args.command]
    own = {name: _filled(value, args.scratch) for name, value in args.environment.items()}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    os.execvpe(command[0], command, {**inherited, **own})


def _filled(text: str, scratch: str) -> str:
    return text.replace("{scratch}", scratch)


if __name__ == "__main__":
    main()
