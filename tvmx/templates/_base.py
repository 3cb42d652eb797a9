"""The ScheduleTemplate contract: what a file in ``schedules/`` or of a user's must provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tvmx.ir import Conv2dWorkload, DenseWorkload, Implementation, Space
from tvmx.ir._config import Config
from tvmx.ir._implementation import Precision
from tvmx.targets import Target

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Kernel:
    """A scheduled kernel and how its constants are packed.

    ``func`` is a ``tirx.PrimFunc`` whose buffers are, in order: data (in the
    implementation's ``data_layout``), packed weight, packed bias (if the epilogue has
    one), residual (if it has one, in ``layout``), output (in ``layout``).
    ``pack_weight`` takes the logical weight (OIHW, or (out, in) for dense), ``pack_bias``
    the logical ``(out_channels,)`` bias; both run once, at compile time.
    """

    func: Any
    pack_weight: Callable[[Array], Array]
    pack_bias: Callable[[Array], Array]


class ScheduleTemplate(ABC):
    """A named, parametrised way to compute a workload on a family of targets.

    Pure: the same workload, config and target give the same kernel. Subclasses set
    ``name`` (unique over all loaded templates), ``op`` (the workload's ``op``) and
    ``priority``: among the templates that support a workload the lowest priority is the
    baseline's.
    """

    name: ClassVar[str]
    op: ClassVar[str]
    precision: ClassVar[Precision] = "f32"
    priority: ClassVar[int] = 100
    examples: ClassVar[tuple[Conv2dWorkload | DenseWorkload, ...]] = ()
    """Workloads that conformance checks add to their own: for a template so specialised that
    it supports none of theirs. The first one is also timed."""

    @abstractmethod
    def supports(self, workload: Any, target: Target) -> str | None:
        """None when the template can compute ``workload`` on ``target``, else why it cannot."""

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
        """The implementation record of this template for a workload."""
        data_layout, layout = self.layouts(workload, target)
        return Implementation(
            template=self.name,
            layout=layout,
            data_layout=data_layout,
            precision=self.precision,
            fingerprint=fingerprint,
        )
