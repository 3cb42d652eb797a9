"""Where templates come from, and what a file that breaks the contract says."""

from __future__ import annotations

import pickle
import textwrap
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tvmx.errors import TemplateLoadError
from tvmx.ir import Conv2dWorkload, DenseWorkload
from tvmx.targets import load_target
from tvmx.templates import Registry, TemplateRef, fingerprint_of, load_template
from tvmx.templates import _registry as registry_module

TOY = textwrap.dedent(
    """
    from tvmx.templates import ScheduleTemplate

    class Toy(ScheduleTemplate):
        name = "toy"
        op = "dense"
        def supports(self, workload, target): return None
        def layouts(self, workload, target): return ("NC", "NC")
        def space(self, workload, target): raise NotImplementedError
        def build(self, workload, config, target): raise NotImplementedError
    """
)


def conv(**fields: object) -> Conv2dWorkload:
    base = {
        "batch": 1, "in_channels": 32, "height": 8, "width": 8, "out_channels": 32,
        "kernel": (3, 3),
    }  # fmt: skip
    return Conv2dWorkload.model_validate({**base, **fields})


@pytest.fixture(scope="module")
def builtin() -> Registry:
    registry = Registry()
    registry.load_builtin()
    return registry


def test_builtin_templates(builtin: Registry) -> None:
    names = {e.name for e in builtin.entries()}
    assert names == {
        "conv1x1_bsr", "conv1x1_bsr_int8", "conv1x1_bsr_nchw", "conv2d_direct", "conv2d_im2col",
        "conv2d_int8", "conv2d_smmla", "conv2d_winograd", "conv3x3_bsr", "conv3x3_bsr_int8",
        "dense_bsr", "dense_bsr_int8", "dense_int8", "dense_packed", "dense_smmla",
        "depthwise_int8", "depthwise_nchwc", "depthwise_vnni",
    }  # fmt: skip
    for entry in builtin.entries():
        assert entry.origin == "built-in"
        assert entry.path.name == f"{entry.name}.py"
        assert entry.fingerprint == fingerprint_of(entry.path)
        assert len(entry.fingerprint) == 12


def test_implementations_are_exact_ones_first_then_int8_then_sparse(builtin: Registry) -> None:
    target = load_target("rpi4")
    pointwise = conv(kernel=(1, 1), padding=(0, 0, 0, 0))
    found = [i for _, i in builtin.implementations(pointwise, target)]
    kinds = [(i.precision, i.sparsity == "dense") for i in found]
    assert kinds[:2] == [("f32", True)] * 2 and kinds[2] == ("int8", True)
    assert set(kinds[3:]) == {("f32", False), ("int8", False)}
    levels = {(i.precision, i.sparsity) for i in found[3:]}
    assert levels == {
        (precision, f"{blocks}@{level}")
        for precision, blocks in (("f32", "4x1"), ("int8", "4x4")) for level in (50, 70, 80, 90)
    }  # fmt: skip
    assert {i.layout for i in found[3:]} == {"NCHW", "NCHW4c"}
    exact = builtin.implementations(pointwise, target, exact=True)
    assert [i for _, i in exact] == found[:2]
    assert all(entry.name == i.template for entry, i in builtin.implementations(pointwise, target))


def test_float_templates_are_not_asked_about_int8(builtin: Registry) -> None:
    host = load_target("host")
    three = [i for _, i in builtin.implementations(conv(), host)]
    sparse = {(i.template, i.precision) for i in three if i.sparsity != "dense"}
    assert sparse == {("conv3x3_bsr", "f32"), ("conv3x3_bsr_int8", "int8")}
    assert [i.precision for i in three if i.sparsity == "dense"].count("int8") == 1


def test_legal_is_ordered_by_priority_and_default_is_its_first(builtin: Registry) -> None:
    target = load_target("rpi4")
    plain = [e.name for e in builtin.legal(conv(kernel=(5, 5)), target)]
    assert plain == ["conv2d_direct", "conv2d_im2col"]
    three = [e.name for e in builtin.legal(conv(), target)]
    assert three == ["conv2d_winograd", "conv2d_direct", "conv2d_im2col"]
    tiny = [e.name for e in builtin.legal(conv(height=4, width=4), target)]
    assert tiny == ["conv2d_direct", "conv2d_winograd", "conv2d_im2col"], "by its model"
    depthwise = builtin.legal(conv(groups=32), target)
    assert [e.name for e in depthwise] == ["depthwise_nchwc", "conv2d_im2col"]
    assert builtin.default(conv(groups=32), target) == depthwise[0]
    odd_groups = conv(in_channels=6, out_channels=9, groups=3)
    assert [e.name for e in builtin.legal(odd_groups, target)] == ["conv2d_im2col"]
    dense = DenseWorkload(batch=1, in_features=4, out_features=4)
    assert builtin.default(dense, target) == builtin.get("dense_packed")
    assert builtin.default(conv(dtype="float16"), target) is None


def test_implementation_carries_layouts_and_fingerprint(builtin: Registry) -> None:
    entry = builtin.get("conv2d_direct")
    implementation = entry.implementation(conv(in_channels=3), load_target("rpi4"))
    assert (implementation.data_layout, implementation.layout) == ("NCHW", "NCHW4c")
    assert implementation.fingerprint == entry.fingerprint


def test_unknown_name_lists_what_is_loaded(builtin: Registry) -> None:
    with pytest.raises(TemplateLoadError, match=r"no schedule template 'nope'.*conv2d_direct"):
        builtin.get("nope")


def test_user_folder_and_file(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "_helper.py").write_text("raise RuntimeError('never loaded')")
    registry = Registry()
    registry.add_folder(tmp_path)
    assert [(e.name, e.origin) for e in registry.entries()] == [("toy", "user file")]
    registry.add_file(tmp_path / "toy.py")
    assert len(registry.entries()) == 1


def test_a_taken_name_names_both_files(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(TOY)
    with pytest.raises(TemplateLoadError, match=r"'toy'.*one\.py.*two\.py"):
        Registry().add_folder(tmp_path)


def test_user_file_cannot_replace_a_builtin(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(TOY.replace('"toy"', '"dense_packed"'))
    registry = Registry()
    registry.load_builtin()
    with pytest.raises(TemplateLoadError, match=r"dense_packed\.py and .*mine\.py"):
        registry.add_file(file)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nraise ValueError('boom')\n", r"bad\.py:2 cannot be imported: ValueError: boom"),
        ("def f(:\n    pass\n", r"bad\.py:1 cannot be imported: SyntaxError"),
        ("import no_such_module_at_all\n", r"bad\.py:1 .*ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", r"bad\.py:2 .*SystemExit"),
        ("x = 1\n", r"defines no concrete ScheduleTemplate"),
        (TOY.replace('name = "toy"', ""), r"class Toy sets no 'name'"),
        (TOY.replace("def supp", "def __init__(self, x): ...\n    def supp"), "without arg"),
        (TOY.replace("def space(", "def spice("), r"defines no concrete ScheduleTemplate"),
    ],
)
def test_broken_files(tmp_path: Path, source: str, message: str) -> None:
    file = tmp_path / "bad.py"
    file.write_text(source)
    with pytest.raises(TemplateLoadError, match=message) as caught:
        Registry().add_file(file)
    assert "Traceback" not in caught.value.message


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(TemplateLoadError, match="does not exist"):
        Registry().add_folder(tmp_path / "nowhere")
    with pytest.raises(TemplateLoadError, match=r"holds no \*\.py"):
        Registry().add_folder(tmp_path)
    with pytest.raises(TemplateLoadError, match="does not exist"):
        Registry().add_file(tmp_path / "none.py")


def test_reference_survives_pickling_and_loads_once(tmp_path: Path) -> None:
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    reference = pickle.loads(pickle.dumps(TemplateRef("toy", str(file))))
    assert reference.load().name == "toy"
    assert type(load_template("toy", file)) is type(reference.load())
    with pytest.raises(TemplateLoadError, match=r"no template 'other' \(it has toy\)"):
        load_template("other", file)


def test_an_edited_file_is_loaded_anew(tmp_path: Path) -> None:
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    before, old = fingerprint_of(file), load_template("toy", file)
    file.write_text(TOY.replace('("NC", "NC")', '("NX", "NX")'))
    assert fingerprint_of(file) != before
    assert old.layouts(None, None) == ("NC", "NC")  # type: ignore[arg-type]
    assert load_template("toy", file).layouts(None, None) == ("NX", "NX")  # type: ignore[arg-type]


def test_entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "third_party_schedules.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint("toy", "third_party_schedules:Toy", "tvmx.schedules")]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points)
    registry = Registry()
    registry.load_entry_points()
    entry = registry.get("toy")
    assert entry.origin.startswith("entry point toy")
    assert entry.ref.load().name == "toy"
    points[:] = [EntryPoint("broken", "no_such_module_at_all", "tvmx.schedules")]
    with pytest.raises(TemplateLoadError, match=r"entry point broken.*no_such_module_at_all"):
        Registry().load_entry_points()
