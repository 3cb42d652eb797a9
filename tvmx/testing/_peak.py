"""A kernel bound by multiply-add alone: chains of ``acc = acc * x + y`` in registers."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T  # noqa: N812 -- the name TVMScript's parser expects

STEPS = 20_000


def peak_kernel(chains: int, lanes: int) -> Any:
    """A PrimFunc over x (lanes,), y (lanes,), out (chains, lanes), float32; ``STEPS`` steps."""

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def kernel(
        x: T.Buffer((lanes,), "float32"),  # type: ignore[valid-type]
        y: T.Buffer((lanes,), "float32"),  # type: ignore[valid-type]
        out: T.Buffer((chains, lanes), "float32"),  # type: ignore[valid-type]
    ) -> None:
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        acc = T.sblock_alloc_buffer((chains, lanes), "float32", scope="local")
        for c in T.unroll(chains):
            for i in T.vectorized(lanes):
                acc[c, i] = T.float32(0)
        for _ in T.serial(STEPS):
            for c in T.unroll(chains):
                for i in T.vectorized(lanes):
                    acc[c, i] = acc[c, i] * x[i] + y[i]
        for c in T.unroll(chains):
            for i in T.vectorized(lanes):
                out[c, i] = acc[c, i]

    return kernel
