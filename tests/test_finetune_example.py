"""examples/finetune.py: masks that are kept, and a .pt2 file that arrives sparse in tvmx."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort
import pytest
import torch

from tvmx.explore._context import Context
from tvmx.explore._prune_own import layer_steps
from tvmx.ir import BlockSparsity
from tvmx.numerics import own_level, prune

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def finetune() -> Iterator[ModuleType]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("finetune")
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in ("finetune", "shapes", "digits"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(finetune: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits network that was trained very little."""
    folder = tmp_path_factory.mktemp("finetune")
    digits = finetune.digits
    torch.manual_seed(0)
    data, model = digits.load_data(0), digits.DigitsNet()
    digits.train(model, data.train_images[:384], data.train_labels[:384], epochs=2, seed=0)
    digits.save_onnx(model, folder / "digits.onnx")
    return folder / "digits.onnx"


@pytest.mark.parametrize("shape", [(40, 24), (32, 8, 3, 3), (20, 30, 1, 1)], ids=str)
@pytest.mark.parametrize("block", [(16, 1), (4, 1), (1, 4)])
def test_masks_are_those_of_tvmx(
    finetune: ModuleType, shape: tuple[int, ...], block: tuple[int, int]
) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    mask = finetune.block_mask(torch.from_numpy(weight), *block, 70).numpy()
    np.testing.assert_array_equal(weight * mask, prune(weight, BlockSparsity(*block, 70)))


def test_weights_are_read_back(finetune: ModuleType, trained: Path) -> None:
    model = finetune.load_weights(finetune.digits.DigitsNet(), trained)
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    session = ort.InferenceSession(trained, providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"image": image.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(model(image).numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_another_network_is_refused(finetune: ModuleType, trained: Path) -> None:
    with pytest.raises(SystemExit, match="layers, the network"):
        finetune.load_weights(finetune.shapes.ShapesNet(), trained)


def test_it_arrives_sparse(
    finetune: ModuleType, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--level", "75", "--block", "4x1", "--images", "256", "--test-images", "64",
               "--epochs", "1", "--threads", "1"]  # fmt: skip
    assert finetune.main([str(trained), "--out", str(tmp_path), *options]) == 0
    told = capsys.readouterr().out
    match = re.search(r"(\d+) layers, ([\d.]+)% of their weights zero", told)
    assert match is not None
    layers, zeros = int(match[1]), float(match[2])
    assert layers >= 6 and 74 <= zeros <= 76
    context = Context.open(tmp_path / "digits.pruned.pt2", {}, "rpi4", [], exact=True)
    options_of, steps = context.options(), layer_steps(context.network)
    pruned = [at for at, step in steps.items() if own_level(step.weight, 4, 1) >= 73]
    assert len(pruned) == layers
    offered = {at for at in pruned for how in options_of[at] if how.exact and how.stated}
    assert offered, "sparse kernels without data, since they change nothing"
