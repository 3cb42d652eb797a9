"""Baselines for a Cortex-A72: an aarch64 library, little needed, NEON in its convolutions.

tests/test_deploy_qemu.py runs such a bundle under qemu-user.
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from elftools.elf.elffile import ELFFile

from tests.disassembly import instructions
from tests.network_plans import network_of, plan_of, registry
from tvmx._tvm import build_module, tirx, tvm
from tvmx.deploy import load_bundle
from tvmx.explore import build_bundle
from tvmx.passes import lower
from tvmx.targets import load_target
from tvmx.testing.models import conv_model, residual_model

pytestmark = pytest.mark.cross

ALLOWED = re.compile(r"lib(c|m|pthread|dl|tvm\w*)\.so|ld-linux-aarch64\.so")
NEON_FMLA = re.compile(r"\bfmla\s+v\d+\.4s")


def as_version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two convolutions, a depthwise one and a dense layer, by template defaults."""
    folder = tmp_path_factory.mktemp("cross")
    onnx.save(residual_model(channels=16, size=16), folder / "model.onnx")
    build_bundle(folder / "model.onnx", "rpi4", folder / "bundle")
    return folder / "bundle"


def test_the_library_is_for_aarch64_and_needs_little(bundle: Path) -> None:
    with load_bundle(bundle).library.open("rb") as stream:
        elf = ELFFile(stream)
        assert elf["e_machine"] == "EM_AARCH64"
        assert elf["e_type"] == "ET_DYN"
        assert elf.elfclass == 64
        dynamic = elf.get_section_by_name(".dynamic")
        needed = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
        assert all(ALLOWED.match(name) for name in needed), needed
        assert not list(dynamic.iter_tags("DT_RUNPATH")) + list(dynamic.iter_tags("DT_RPATH"))
        versions = elf.get_section_by_name(".gnu.version_r")
        pairs = versions.iter_versions() if versions else ()
        asked = {need.name for _, needs in pairs for need in needs}
    newest = as_version(load_target("rpi4").glibc)
    assert all(as_version(n[6:]) <= newest for n in asked if n.startswith("GLIBC_")), asked


def test_the_manifest_says_that_nothing_was_measured(bundle: Path) -> None:
    manifest = load_bundle(bundle).manifest
    assert not manifest.measured_on_target
    assert manifest.figures == ()
    assert (manifest.target, manifest.cpu) == ("rpi4", "cortex-a72")
    assert manifest.triple.startswith("aarch64-linux-gnu")
    assert manifest.sizes.library_bytes == load_bundle(bundle).library.stat().st_size


@pytest.mark.parametrize("target", ["rpi4", "rpi3b+", "odroid-c4"])
def test_every_kernel_of_a_layer_multiplies_in_neon_registers(target: str) -> None:
    network = network_of(residual_model(channels=16, size=16))
    board = load_target(target)
    for templates in ({}, dict.fromkeys(("stem", "a", "b"), "conv2d_im2col")):
        mod = lower(network, plan_of(network, board, templates), registry(), board).mod
        kernels = {
            var.name_hint: func
            for var, func in mod.functions.items()
            if isinstance(func, tirx.PrimFunc) and re.match("conv2d|depthwise|dense", var.name_hint)
        }
        assert len(kernels) >= 3
        for name, func in kernels.items():
            alone = tvm.IRModule({name: func.with_attr("global_symbol", name)})
            assembly = build_module(alone, board).inspect_source("asm")
            assert len(NEON_FMLA.findall(assembly)) >= 4, name


def test_the_linked_library_holds_neon_code(tmp_path: Path) -> None:
    # One convolution is all the network computes: what multiplies there is its kernel.
    onnx.save(conv_model(16, 16, (16, 16), pads=[1] * 4), tmp_path / "conv.onnx")
    build_bundle(tmp_path / "conv.onnx", "rpi4", tmp_path / "bundle")
    library = load_bundle(tmp_path / "bundle").library
    code = (f"{mnemonic} {operands}" for mnemonic, operands in instructions(library))
    assert sum(bool(NEON_FMLA.match(line)) for line in code) >= 16
