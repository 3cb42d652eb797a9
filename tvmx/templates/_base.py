"""The ScheduleTemplate contract: what a file in ``schedules/`` or of a user's must provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tvmx.errors import TemplateError
from tvmx.ir import DENSE, Conv2dWorkload, DenseWorkload, Implementation, Rounding, Space
from tvmx.ir._config import Config
from tvmx.ir._implementation import Precision
from tvmx.numerics import LayerConstants
from tvmx.targets import Target
from tvmx.templates._writes import writes_once

Array = npt.NDArray[np.float32]
Constant = npt.NDArray[Any]


@dataclass(frozen=True)
class Kernel:
    """A scheduled kernel and how its constants are packed.

    ``func`` is a ``tirx.PrimFunc`` whose buffers are, in order: data (in the
    implementation's ``data_layout``), the constants, residual (if the epilogue has one, in
    ``layout``), output (in ``layout``). Packing runs once, at compile time.

    Float kernels mostly have two constants: packed weight, and packed bias if the epilogue has
    one. For these give ``pack_weight``, which takes the logical weight (OIHW, or (out, in) for
    dense), and ``pack_bias``, for the logical ``(out_channels,)`` bias. Any other kernel (int8,
    block-sparse) gives ``pack``: all constants, in order, from :class:`LayerConstants`.

    Code that holds where a layer's weight is zero serves only weights that are zero there. Such a
    kernel is for the operands of :func:`tvmx.templates.make_operands`, with which kernels are
    measured; ``specialise`` makes the one for a layer's own constants. ``structure`` then tells
    its code from that for other weights: 16 hex digits.
    """

    func: Any
    pack_weight: Callable[[Array], Array] | None = None
    pack_bias: Callable[[Array], Array] | None = None
    pack: Callable[[LayerConstants], tuple[Constant, ...]] | None = None
    specialise: Callable[[LayerConstants], Kernel] | None = None
    structure: str = ""

    def of(self, layer: LayerConstants) -> Kernel:
        """The kernel for a layer: this one, unless its code is for other weights."""
        return self if self.specialise is None else self.specialise(layer)

    @property
    def in_place(self) -> bool:
        """Whether the output may be the residual's own memory.

        Found out from ``func`` (see :func:`writes_once`): each element of the output is written
        once, so nothing is added a second time to what was already added up there. The contract
        does the rest: an element of the output depends on that one element of the residual.
        """
        return writes_once(self.func)

    def constants(self, layer: LayerConstants) -> tuple[Constant, ...]:
        """The kernel's constants for a layer, packed, in the order of its buffers."""
        if self.pack is not None:
            return tuple(np.ascontiguousarray(c) for c in self.pack(layer))
        if self.pack_weight is None:
            raise TemplateError("a Kernel needs pack, or pack_weight and pack_bias")
        packed = [self.pack_weight(layer.weight)]
        if layer.bias is not None:
            if self.pack_bias is None:
                raise TemplateError("the layer has a bias, but the Kernel no pack_bias")
            packed.append(self.pack_bias(layer.bias))
        return tuple(np.ascontiguousarray(c) for c in packed)


class ScheduleTemplate(ABC):
    """A named, parametrised way to compute a workload on a family of targets.

    Pure: the same workload, config and target give the same kernel. Subclasses set
    ``name`` (unique over all loaded templates), ``op`` (the workload's ``op``) and
    ``priority``: among the templates that support a workload the lowest priority is the
    baseline's (:meth:`preference` where it depends on the workload).

    ``precision`` and ``sparse`` say which variants of a layer a template computes; it is never
    asked about others. A float dense template gets the workload as the network has it. An int8
    one gets ``workload.dtype == "int8"``: data, residual and output are s8, the constants come
    from int8 :class:`LayerConstants`, and the result equals
    ``tvmx.numerics.requantise`` bit for bit. With ``float_epilogue`` it also knows
    ``epilogue.float_out`` and ``epilogue.float_bias`` (see :func:`tvmx.templates.finished`), and
    is asked about such workloads. A sparse one gets ``workload.sparsity``, such as
    ``16x1@80``, for each entry of :meth:`sparsities`. An int8 template is asked only about
    workloads whose ``epilogue.rounding`` is among its ``roundings``.
    """

    name: ClassVar[str]
    op: ClassVar[str]
    precision: ClassVar[Precision] = "f32"
    sparse: ClassVar[bool] = False
    roundings: ClassVar[frozenset[Rounding]] = frozenset({"even"})
    float_epilogue: ClassVar[bool] = False
    priority: ClassVar[int] = 100
    examples: ClassVar[tuple[Conv2dWorkload | DenseWorkload, ...]] = ()
    """Workloads that conformance checks add to their own: for a template so specialised that
    it supports none of theirs. The first one is also timed."""

    @abstractmethod
    def supports(self, workload: Any, target: Target) -> str | None:
        """None when the template can compute ``workload`` on ``target``, else why it cannot."""

    def preference(self, workload: Any, target: Target) -> int:
        """The priority for a workload that the template supports."""
        del workload, target
        return self.priority

    def sparsities(self, workload: Any, target: Target) -> tuple[str, ...]:
        """The sparsities a ``sparse`` template offers for a layer (given as float and dense)."""
        return (DENSE,)

    @abstractmethod
    def layouts(self, workload: Any, target: Target) -> tuple[str, str]:
        """The layout the kernel reads its data in, and the one it writes (see ``tvmx.ir``)."""

    @abstractmethod
    def space(self, workload: Any, target: Target) -> Space:
        """The bounded space of configs, its default chosen by an analytical model."""

    @abstractmethod
    def build(self, workload: Any, config: Config, target: Target) -> Kernel:
        """Schedule the kernel. Raises IllegalConfigError for a config outside the space."""

    def implementation(
        self, workload: Conv2dWorkload | DenseWorkload, target: Target, fingerprint: str = ""
    ) -> Implementation:
        """The implementation record of this template for a workload (variant)."""
        data_layout, layout = self.layouts(workload, target)
        return Implementation(
            template=self.name,
            layout=layout,
            data_layout=data_layout,
            precision=self.precision,
            sparsity=workload.sparsity,
            fingerprint=fingerprint,
            float_out=workload.epilogue.float_out,
        )
