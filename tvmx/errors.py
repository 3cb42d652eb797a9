"""Every error tvmx raises on purpose, as one tree.

::

    TvmxError                    exit code 1
    ├── UsageError               exit code 2: the command line asks for something that cannot be
    │   ├── UnknownTargetError
    │   ├── MissingExtraError    an optional dependency that is not installed
    │   └── UnwritableError      an output folder that cannot be written
    ├── ModelError               the network file
    │   ├── CorruptModelError
    │   ├── UnsupportedOpError   all unsupported operators at once
    │   └── ModelShapeError      dynamic or wrong input shapes
    ├── DataError                calibration, evaluation or input arrays
    ├── TemplateError            schedule templates
    │   ├── TemplateLoadError    a template file that cannot be imported, or a name clash
    │   └── IllegalConfigError   a config outside what the workload allows
    ├── BuildError               compile and link
    │   └── LinkerError          no linker, or the linker failed
    ├── DeviceError              tracker, servers, boards
    │   ├── TrackerError         refused, or not a tracker
    │   ├── UnknownKeyError      no such device key in the tracker
    │   └── SimulationError      what a simulated board needs is missing, or failed
    ├── MeasureError             a candidate failed where a figure is indispensable (the baseline)
    ├── LimitError               no plan stays within the accuracy and memory that were asked
    ├── StoreError               runs and journals
    │   ├── JournalError         corruption that is not a torn last line
    │   └── RunMismatchError     the folder belongs to another exploration
    └── BundleError              an exported bundle that is incomplete or altered

Each message names the layer, file, device or key it is about; ``hint`` holds the
next thing to type. The command line prints both and exits with ``exit_code``.
"""

from __future__ import annotations


class TvmxError(Exception):
    """Base of the tree; catch it to catch everything tvmx raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TvmxError):
    """The request itself makes no sense: unknown name, impossible budget, bad option."""

    exit_code = 2


class UnknownTargetError(UsageError):
    """No target of that name, neither built in nor in the user's folder."""


class MissingExtraError(UsageError):
    """What was asked for needs an optional dependency; the hint names the extra."""


class UnwritableError(UsageError):
    """An output path that cannot be created or written."""


class ModelError(TvmxError):
    """The network file cannot be used."""


class CorruptModelError(ModelError):
    """Not a model, or a damaged one."""


class UnsupportedOpError(ModelError):
    """The model uses operators no frontend knows; ``ops`` maps each to its node names."""

    def __init__(self, message: str, *, ops: dict[str, list[str]], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.ops = ops


class ModelShapeError(ModelError):
    """An input shape is dynamic, missing or contradicts the model."""


class DataError(TvmxError):
    """An array handed in (npz) has the wrong name, shape, dtype or values."""


class TemplateError(TvmxError):
    """A schedule template broke its contract."""


class TemplateLoadError(TemplateError):
    """A template file raised on import, defines no template, or reuses a name."""


class IllegalConfigError(TemplateError):
    """A config that the template's space does not contain for this workload."""


class BuildError(TvmxError):
    """Code generation failed."""


class LinkerError(BuildError):
    """No usable linker for the target, or the linker returned an error."""


class DeviceError(TvmxError):
    """Something between this process and the device failed."""


class TrackerError(DeviceError):
    """The tracker refused the connection, or what answers there is no tracker."""


class UnknownKeyError(DeviceError):
    """The tracker knows no device under this key."""


class SimulationError(DeviceError):
    """A simulated board cannot be had: a tool, the arm64 guest or the emulator failed."""


class MeasureError(TvmxError):
    """A measurement failed that the work cannot go on without."""


class LimitError(TvmxError):
    """No plan that was found stays within the limits on accuracy, weights and arena."""


class StoreError(TvmxError):
    """A run folder or journal cannot be used."""


class JournalError(StoreError):
    """A journal line other than the last one is damaged."""


class RunMismatchError(StoreError):
    """The run folder was made for another model, target or setting."""


class BundleError(TvmxError):
    """A bundle is incomplete, altered, or for another machine."""
