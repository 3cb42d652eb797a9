"""The shape of the source: imports go one way, TVM's names are in one place, files stay short."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tvmx"

# A part may import what stands before it, never what stands behind it.
ORDER = (
    "errors", "_resources", "ir", "numerics", "targets", "_tvm", "templates", "passes", "frontends",
    "build", "store", "measure", "doctor", "simulate", "tune", "search", "accuracy", "deploy",
    "explore", "report", "cli",
)  # fmt: skip

# `testing` is shipped for users, on top of everything its suites exercise.
TESTING_MAY_IMPORT = {
    "errors",
    "ir",
    "numerics",
    "targets",
    "_tvm",
    "templates",
    "frontends",
    "build",
    "measure",
    "doctor",
}
MAY_IMPORT_TESTING = {"tvmx/cli/_schedules.py"}  # `schedules check` runs the conformance suite

# Who may name TVM besides tvmx/_tvm.py, and why.
TVM_USERS = {
    "tvmx/_tvm.py": "the place for it",
    "tvmx/deploy/_run_template.py": "copied into bundles, where there is no tvmx",
    "tvmx/frontends/_onnx_import.py": "extends TVM's importer class",
    "tvmx/frontends/_torch_import.py": "the same",
    "tvmx/measure/_child.py": "runs on TVM's runtime alone, which has no relax",
    "tvmx/measure/_prepared.py": "the same",
    "tvmx/measure/_remote.py": "the same",
    "tvmx/measure/_worker.py": "the same",
    "tvmx/simulate/guest_server.py": "the same, in a guest without tvmx",
}
MOST_LINES = 500


class Import(NamedTuple):
    """``name`` is the full dotted module; ``eager``: when the importing module is imported."""

    name: str
    line: int
    eager: bool


def sources(*folders: str) -> list[Path]:
    found = [p for f in folders for p in sorted((ROOT / f).rglob("*.py"))]
    assert found
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, in functions and under TYPE_CHECKING too."""
    pending = [(node, True) for node in ast.parse(path.read_text(encoding="utf-8")).body]
    while pending:
        node, eager = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno}: relative import"
            assert node.module is not None
            yield Import(node.module, node.lineno, eager)
            for alias in node.names:  # `from tvmx.build import _worker` imports a module
                yield Import(f"{node.module}.{alias.name}", node.lineno, eager)
        else:
            later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            children = ast.iter_child_nodes(node)
            pending += [(child, eager and not later and not typing) for child in children]


def part_of(path: Path) -> str:
    """The package or module of ``tvmx`` a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parts_imported(path: Path) -> Iterator[tuple[str, int]]:
    for found in imports(path):
        names = found.name.split(".")
        known = names[0] == "tvmx" and len(names) > 1
        if known and ((PACKAGE / names[1]).is_dir() or (PACKAGE / f"{names[1]}.py").is_file()):
            yield names[1], found.line


def test_every_part_has_its_place() -> None:
    parts = {part_of(path) for path in sources("tvmx")} - {"__init__", "testing"}
    assert parts <= set(ORDER), f"give {parts - set(ORDER)} a place in ORDER"


def test_no_module_imports_backwards() -> None:
    wrong = [
        f"{relative(path)}:{line} imports tvmx.{other}"
        for path in sources("tvmx")
        if (part := part_of(path)) in ORDER
        for other, line in parts_imported(path)
        if other in ORDER and ORDER.index(other) > ORDER.index(part)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_but_its_command_imports_testing() -> None:
    users = {
        relative(path)
        for path in sources("tvmx", "schedules")
        if path.parent != PACKAGE / "testing"
        and any(name.name.startswith("tvmx.testing") for name in imports(path))
    }
    assert users == MAY_IMPORT_TESTING
    used = {o for path in sources("tvmx/testing") for o, _ in parts_imported(path)}
    assert used - {"testing"} <= TESTING_MAY_IMPORT


def test_no_cycle_among_modules() -> None:
    """Of imports that run when a module is imported; packages re-export, so they do not count."""
    modules = {
        relative(path).removesuffix(".py").replace("/", "."): path
        for path in sources("tvmx")
        if path.name != "__init__.py"
    }
    graph = {
        name: {i.name for i in imports(path) if i.eager and i.name in modules and i.name != name}
        for name, path in modules.items()
    }
    assert sum(map(len, graph.values())) > 50
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_tvm_is_named_in_one_place() -> None:
    users = {
        relative(path)
        for path in sources("tvmx", "schedules", "examples")
        if any(i.name == "tvm" or i.name.startswith("tvm.") for i in imports(path))
    }
    assert users == set(TVM_USERS), "import TVM's names from tvmx._tvm"


@pytest.mark.parametrize("path", sources("schedules", "examples/schedules"), ids=relative)
def test_templates_use_the_public_api_alone(path: Path) -> None:
    private = [
        f"line {found.line}: {found.name}"
        for found in imports(path)
        if found.name.split(".")[0] == "tvmx"
        for name in found.name.split(".")[1:]
        if name.startswith("_") and name != "_tvm"
    ]
    assert not private, private


def test_files_are_short() -> None:
    long = {
        relative(path): lines
        for path in sources("tvmx", "schedules", "examples", "benchmarks", "scripts", "tests")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long


def test_nothing_is_unpickled() -> None:
    """Except by multiprocessing and pebble, between our own processes."""
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    users = [
        f"{relative(path)}:{found.line}"
        for path in sources("tvmx", "schedules", "examples")
        for found in imports(path)
        if found.name.split(".")[0] in banned
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources("tvmx"))
    assert not users
    assert "allow_pickle=True" not in text


def test_the_checks_themselves_see_imports(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport tvm.relax\n"
        "if TYPE_CHECKING:\n    from tvmx.cli import x\n"
        "def f():\n    from tvmx.ir import _plan\n"
    )
    found = {i.name: i.eager for i in imports(file)}
    assert found["tvm.relax"]
    assert found["tvmx.cli"] is False
    assert found["tvmx.ir._plan"] is False
    assert {part for part, _ in parts_imported(file)} == {"cli", "ir"}
