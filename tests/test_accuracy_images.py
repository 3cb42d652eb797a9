"""--data as a folder of images or a function: what comes out, and each way it can be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tvmx.accuracy import _images, load_data
from tvmx.errors import DataError, UsageError
from tvmx.ir import Preprocess, TensorSpec

SPEC = TensorSpec("image", (1, 3, 6, 8), "float32")


def pixels(seed: int, height: int = 6, width: int = 8) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def save(path: Path, seed: int, height: int = 6, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, height, width)).save(path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Ten images 6x8, without labels."""
    for i in range(10):
        save(tmp_path / "photos" / f"{i}.png", i)
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    return tmp_path / "photos"


def write(folder: Path, text: str, name: str = "how.toml") -> Path:
    (folder.parent / name).write_text(text)
    return folder.parent / name


def every(folder: Path, how: Path | None = None, spec: TensorSpec = SPEC, seed: int = 0) -> Any:
    """All samples of a folder, sorted, and the dataset."""
    data = load_data(folder, [spec], seed, how)
    parts = [part.inputs[spec.name] for part in (data.calibration, data.visible, data.held_out)]
    return sorted(np.concatenate(parts), key=lambda a: a.tobytes()), data


def test_every_image_once(flat: Path) -> None:
    samples, data = every(flat)
    wanted = [(pixels(i) / 255).astype(np.float32).transpose(2, 0, 1) for i in range(10)]
    wanted.sort(key=lambda a: a.tobytes())
    assert np.array_equal(samples, wanted)
    assert [len(p) for p in (data.calibration, data.visible, data.held_out)] == [2, 4, 4]
    assert data.metric == "agreement"
    assert data.source.kind == "images"
    assert data.source.name == "photos"
    assert data.source.digest == data.digest
    assert data.source.preprocess == Preprocess(size=(6, 8))


def test_the_seed_draws_and_the_digest_follows(flat: Path) -> None:
    first, again, other = (every(flat, seed=s)[1] for s in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert not np.array_equal(first.calibration.inputs["image"], other.calibration.inputs["image"])
    save(flat / "3.png", 99)
    assert every(flat)[1].digest != first.digest


def test_subfolders_are_classes(tmp_path: Path) -> None:
    of = {}
    for label, name in enumerate(("ant", "bee", "cat")):
        for i in range(4):
            save(tmp_path / "set" / name / f"{i}.jpeg.png", 10 * label + i)
            of[pixels(10 * label + i).tobytes()] = label
    data = load_data(tmp_path / "set", [SPEC], 0)
    assert data.metric == "top-1"
    for part in (data.visible, data.held_out):
        assert part.labels is not None
        for sample, label in zip(part.inputs["image"], part.labels, strict=True):
            image = np.rint(sample.transpose(1, 2, 0) * 255).astype(np.uint8)
            assert of[image.tobytes()] == label


def test_mean_std_scale_and_order(flat: Path) -> None:
    how = write(flat, 'scale = 1.0\nmean = [1, 2, 3]\nstd = [4.0, 5, 6]\nchannels = "BGR"\n')
    samples, data = every(flat, how)
    turned = [pixels(i).astype(np.float64)[..., ::-1] for i in range(10)]
    wanted = [((p - [1, 2, 3]) / [4, 5, 6]).astype(np.float32).transpose(2, 0, 1) for p in turned]
    assert np.array_equal(samples, sorted(wanted, key=lambda a: a.tobytes()))
    assert data.source.preprocess.mean == (1, 2, 3)


def test_layout_and_json(flat: Path) -> None:
    how = write(flat, json.dumps({"layout": "NHWC", "limit": 5}), "how.json")
    samples, _ = every(flat, how, TensorSpec("image", (1, 6, 8, 3), "float32"))
    wanted = [(pixels(i) / 255).astype(np.float32) for i in (0, 2, 4, 6, 8)]
    assert np.array_equal(samples, sorted(wanted, key=lambda a: a.tobytes()))


def test_gray_is_taken_for_one_channel(flat: Path) -> None:
    samples, data = every(flat, spec=TensorSpec("image", (1, 1, 6, 8), "float32"))
    assert samples[0].shape == (1, 6, 8)
    assert data.source.preprocess.channels == "GRAY"
    weights = np.array([0.299, 0.587, 0.114])
    wanted = sorted(float((pixels(i) @ weights).mean()) for i in range(10))
    found = sorted(float(s.mean()) * 255 for s in samples)
    assert found == pytest.approx(wanted, abs=1)


def test_size_and_crop(tmp_path: Path) -> None:
    """The middle 6x8 of images whose shorter side becomes 10: flat areas stay what they are."""
    for i in range(3):
        image = np.zeros((20, 40, 3), np.uint8)
        image[:, 12:28] = 50 + i  # columns 6 to 14 of the resized 10x20, which are cut out
        (tmp_path / "set").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / f"{i}.png")
    how = write(tmp_path / "set", "size = 10\ncrop = [6, 8]\nscale = 1.0\n")
    samples, _ = every(tmp_path / "set", how)
    for i, sample in enumerate(sorted(samples, key=lambda s: float(s[0, 3, 4]))):
        assert np.array_equal(sample[:, :, 1:7], np.full((3, 6, 6), 50 + i))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = ", "is damaged"),
        ("colour = 1", "colour"),
        ("size = 0", "size"),
        ("std = [0.0]", "std"),
        ('layout = "CHW"', "layout"),
        ("mean = [nan]", "mean"),
    ],
)
def test_preprocessing_that_is_wrong(flat: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_data(flat, [SPEC], 0, write(flat, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = [5, 5]", "5x5 pixels .* takes 6x8"),
        ("crop = 7", "7x7 pixels .* takes 6x8"),
        ("size = 4\ncrop = [6, 8]", r"\.png is 4x5 pixels, 6x8 are cut out"),
        ("size = 9", r"\.png is 9x12 pixels after --preprocess"),
        ("mean = [1, 2]", "2 numbers in mean"),
        ('channels = "GRAY"', "has 3 channels in layout NCHW, GRAY images have 1"),
        ('layout = "NHWC"', "has 8 channels in layout NHWC"),
    ],
)
def test_preprocessing_that_does_not_fit_the_model(flat: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(flat, [SPEC], 0, write(flat, text))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (TensorSpec("v", (1, 9), "float32"), r"input 'v' is float32 \[1, 9\]"),
        (TensorSpec("v", (1, 3, 6, 8), "uint8"), "input 'v' is uint8"),
    ],
)
def test_models_that_take_no_images(flat: Path, spec: TensorSpec, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(flat, [spec], 0)
    with pytest.raises(DataError, match="2 inputs"):
        load_data(flat, [SPEC, SPEC], 0)


def test_folders_that_are_wrong(flat: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load_data(tmp_path / "empty", [SPEC], 0)
    save(tmp_path / "few" / "a.png", 0)
    with pytest.raises(DataError, match="holds 1 images"):
        load_data(tmp_path / "few", [SPEC], 0)
    monkeypatch.setattr(_images, "MOST_BYTES", 5 * 4 * 6 * 8 * 3)
    with pytest.raises(DataError, match="10 images") as caught:
        load_data(flat, [SPEC], 0)
    assert caught.value.hint is not None and "limit = 5" in caught.value.hint
    save(flat / "cat" / "a.png", 0)
    with pytest.raises(DataError, match=r"0\.png.*subfolders with images \(cat\)"):
        load_data(flat, [SPEC], 0)
    for i in range(4):
        save(tmp_path / "set" / "cat" / f"{i}.png", i)
    (tmp_path / "set" / "dog").mkdir()
    with pytest.raises(DataError, match="subfolder dog holds no images"):
        load_data(tmp_path / "set", [SPEC], 0)


def test_broken_images_are_named(flat: Path) -> None:
    whole = (flat / "4.png").read_bytes()
    for broken in (b"", b"no image", whole[: len(whole) // 2]):
        (flat / "4.png").write_bytes(broken)
        with pytest.raises(DataError, match=r"4\.png cannot be read"):
            load_data(flat, [SPEC], 0)


def test_without_pillow(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match="needs Pillow") as caught:
        load_data(flat, [SPEC], 0)
    assert caught.value.hint is not None and "pip install pillow" in caught.value.hint


FUNCTIONS = """
import numpy as np
a = np.arange(5 * 144, dtype="float32").reshape(5, 3, 6, 8)
def good(): return {"calibration": a[:2], "inputs": a, "labels": np.arange(5)}
def raises(): raise KeyError("no such split")
def words(): return "arrays"
def lists(): return {"calibration": a, "inputs": [1, 2]}
def few(): return {"calibration": a}
def shape(): return {"calibration": a, "inputs": a[:, :2]}
def nan(): return {"calibration": a, "inputs": a * np.nan}
"""


def test_a_function(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "how.toml").write_text("")
    name = Path(f"{tmp_path}/mine.py:good")
    data = load_data(name, [SPEC], 0)
    assert len(data.calibration) == 2
    assert len(data.visible) + len(data.held_out) == 5
    assert data.metric == "top-1"
    assert (data.source.kind, data.source.name) == ("callable", "mine.py:good")  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="--preprocess is for images"):
        load_data(name, [SPEC], 0, tmp_path / "how.toml")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("raises", DataError, "raises raised KeyError: 'no such split'"),
        ("words", DataError, "returned str, no dict"),
        ("lists", DataError, "'inputs' is list, no NumPy array"),
        ("few", DataError, "missing inputs"),
        ("shape", DataError, r"inputs has shape \[5, 2, 6, 8\]"),
        ("nan", DataError, r"inputs\[0, 0, 0, 0\] is nan"),
        ("absent", UsageError, "data .*'absent' in .* does not exist"),
    ],
)
def test_functions_that_are_wrong(
    tmp_path: Path, function: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    with pytest.raises(error, match=message):
        load_data(Path(f"{tmp_path}/mine.py:{function}"), [SPEC], 0)


def test_modules_are_imported_from_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="data no_such_module:f: there is no module"):
        load_data(Path("no_such_module:f"), [SPEC], 0)
