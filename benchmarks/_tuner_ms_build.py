"""MetaSchedule's side of a workload: the computation in plain TE, and the library of a candidate.

Data and output are in NHWC and weights in HWIO (dense: as they are), which MetaSchedule's rules
vectorise best. The layout of the weights is declared free, as
``relax.transform.AttachAttrLayoutFreeBuffers`` does: MetaSchedule chooses one for each candidate,
and packing is not timed, as it is not for tvmx.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmx.build import SYMBOL
from tvmx.ir import Conv2dWorkload, DenseWorkload

Array = npt.NDArray[Any]
_WEIGHT = 1
"""Index of the weights among the arguments: data, weight, bias, output."""


@dataclass(frozen=True)
class CandidateBuild:
    """One candidate to build: ``module`` is its scheduled IRModule and ``target`` TVM's, as JSON.

    ``weight`` is an .npy file; :attr:`library` and the weights packed for it, :attr:`packed`, go
    to ``folder``.
    """

    module: str
    target: str
    weight: str
    folder: str
    number: int

    @property
    def library(self) -> Path:
        """The shared library; it exports ``SYMBOL``."""
        return Path(self.folder) / f"{self.number}.so"

    @property
    def packed(self) -> Path:
        """The weights in the layout of this candidate."""
        return packed_for(self.library)


def packed_for(library: Path) -> Path:
    """Where the weights of a candidate's library are."""
    return library.with_suffix(".npy")


def channels_last(array: Array) -> Array:
    """NCHW to NHWC; matrices stay as they are."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def plain_weight(workload: Conv2dWorkload | DenseWorkload, weight: Array) -> Array:
    """Logical weights as the TE workload takes them: HWIO, HWCM for depthwise, dense (out, in)."""
    if isinstance(workload, DenseWorkload):
        return weight
    axes = (2, 3, 0, 1) if workload.is_depthwise else (2, 3, 1, 0)
    return np.ascontiguousarray(weight.transpose(axes))


def te_workload(workload: Conv2dWorkload | DenseWorkload) -> Any:
    """The workload as an unscheduled PrimFunc, bias and activation included."""
    from tvmx._tvm import te, topi

    shape = workload.data_shape
    if isinstance(workload, Conv2dWorkload):
        shape = (shape[0], shape[2], shape[3], shape[1])
    data = te.placeholder(shape, name="data")
    weight_like = plain_weight(workload, np.empty(workload.weight_shape, np.int8))
    weight = te.placeholder(weight_like.shape, name="weight")
    bias = te.placeholder((workload.weight_shape[0],), name="bias")
    if isinstance(workload, DenseWorkload):
        out = topi.nn.dense(data, weight)
    else:
        anchor = topi.nn.depthwise_conv2d_nhwc if workload.is_depthwise else topi.nn.conv2d_nhwc
        out = anchor(data, weight, workload.strides, workload.padding, workload.dilation)
    total = te.compute(out.shape, lambda *i: out(*i) + bias(i[-1]), name="bias_add")
    result = topi.nn.relu(total) if workload.epilogue.clip_min is not None else total
    func = te.create_prim_func([data, weight, bias, result])
    return func.with_attr("layout_free_buffers", [_WEIGHT])


def build_candidate(job: CandidateBuild) -> None:
    """Write the library and its packed weights; runs in a worker process."""
    import json

    from tvmx._tvm import tvm
    from tvmx.build import link
    from tvmx.targets import load_target

    kernel, packing = _split(tvm.ir.load_json(job.module)["main"])
    target = tvm.target.Target(json.loads(job.target))
    weight = np.load(job.weight)
    np.save(job.packed, weight if packing is None else _pack(packing, weight, target))
    module = tvm.IRModule({SYMBOL: kernel.with_attr("global_symbol", SYMBOL)})
    with tempfile.TemporaryDirectory(prefix="tvmx-metaschedule-") as folder:
        object_file = Path(folder) / "kernel.o"
        tvm.tirx.build(module, target=target).write_to_file(str(object_file))
        link([object_file], job.library, load_target("host"))


def _split(func: Any) -> tuple[Any, Any | None]:
    """The kernel, taking packed weights, and what packs them; None where nothing is packed."""
    from tvmx._tvm import relax

    *inputs, out = (
        relax.Var(p.name, relax.TensorType([int(n) for n in p.shape], "float32"))
        for p in func.params
    )
    builder = relax.BlockBuilder()
    name = builder.add_func(func, "kernel")
    with builder.function("main", inputs):
        builder.emit_func_output(builder.emit(relax.call_tir(name, inputs, out.ty)))
    split = relax.transform.SplitLayoutRewritePreproc()(builder.get())
    parts = {name.name_hint: function for name, function in split.functions_items()}
    return parts.get("kernel_prepacked", func), parts.get("kernel_weight_prepack")


def _pack(packing: Any, weight: Array, target: Any) -> Array:
    from tvmx._tvm import tvm

    shape = [int(n) for n in packing.params[1].shape]
    packed = tvm.runtime.empty(shape, "float32")
    module = tvm.tirx.build(tvm.IRModule({"pack": packing.with_attr("global_symbol", "pack")}),
                            target=target)  # fmt: skip
    module["pack"](tvm.runtime.tensor(weight), packed)
    result: Array = packed.numpy()
    return result
