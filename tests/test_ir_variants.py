"""Workload variants: the same layer with another type or sparsity is another workload."""

from __future__ import annotations

import pytest

from tvmx.errors import UsageError
from tvmx.ir import (
    BlockSparsity,
    Conv2dWorkload,
    Implementation,
    dtype_of,
    is_int8,
    layout_of,
    physical_shape,
    stored_as,
    workload_from_json,
)

CONV = Conv2dWorkload(batch=1, in_channels=8, height=4, width=4, out_channels=8, kernel=(1, 1))


def test_variants_have_digests_of_their_own() -> None:
    digests = {CONV.digest}  # computed, and cached, before the variants are made
    for variant in (CONV.variant("int8"), CONV.variant("float32", "16x1@50")):
        assert variant.digest not in digests
        assert workload_from_json(variant.canonical()) == variant
        digests.add(variant.digest)
    assert CONV.variant("float32") == CONV
    assert CONV.variant("int8").describe() == "conv1x1 8-8 @4x4 int8"
    assert CONV.variant("float32", "4x1@90").describe() == "conv1x1 8-8 @4x4 4x1@90"


def test_an_implementation_tells_formats_and_variant() -> None:
    how = Implementation(
        template="t", layout="NCHW16c", data_layout="NCHW", precision="int8", sparsity="dense"
    )
    assert (how.reads, how.writes, how.exact) == ("NCHW/s8", "NCHW16c/s8", False)
    assert how.variant(CONV) == CONV.variant("int8")
    sparse = how.model_copy(update={"precision": "f32", "sparsity": "16x1@50"})
    assert (sparse.reads, sparse.exact) == ("NCHW", False)
    assert how.model_copy(update={"precision": "f32"}).exact


def test_formats() -> None:
    form = stored_as("NCHW4c", "int8")
    assert (form, is_int8(form), layout_of(form), dtype_of(form)) == (
        "NCHW4c/s8", True, "NCHW4c", "int8"
    )  # fmt: skip
    assert stored_as(form, "float32") == "NCHW4c"
    assert physical_shape((1, 6, 2, 3), form) == (1, 2, 2, 3, 4)


@pytest.mark.parametrize("text", ["16x1", "16x1@0", "16x1@100", "0x1@50", "x@", "sparse"])
def test_what_is_no_sparsity_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="sparsity"):
        BlockSparsity.parse(text)


def test_kept_blocks() -> None:
    found = BlockSparsity.parse("16x1@70")
    assert found is not None and str(found) == "16x1@70"
    assert found.blocks(33, 10) == (3, 10)
    assert found.kept(33, 10) == 9
    assert found.kept(1, 1) == 1
    assert BlockSparsity.parse("dense") is None
