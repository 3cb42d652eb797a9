"""Measuring: devices behind a tracker, runners, and the servers tvmx starts itself."""

from tvmx.measure._address import DeviceAddress, join_host_port, parse_host_port
from tvmx.measure._base import OnResult, Runner
from tvmx.measure._cores import Cluster, Cores
from tvmx.measure._deadlines import Deadlines
from tvmx.measure._elf import elf_machine, library_problem
from tvmx.measure._fake import FakeRunner
from tvmx.measure._farm import LocalFarm
from tvmx.measure._jobs import Job, KernelJob, NetworkJob
from tvmx.measure._manners import LOCAL_KEY, Manners, open_runner
from tvmx.measure._measurement import Measurement, Status, compare_measured
from tvmx.measure._observer import Observer, Unobserved
from tvmx.measure._paired import Paired, compare_paired, median_interval
from tvmx.measure._probe import (
    DRIFT,
    SIBLINGS,
    ProbeFigures,
    ProbeKernel,
    ProbeLibrary,
    median_figures,
    unlike_siblings,
)
from tvmx.measure._roster import DeviceReport
from tvmx.measure._rpc import RpcRunner
from tvmx.measure._serve import (
    BOARD_INSTALL,
    FFI_VERSION,
    TVM_VERSION,
    board_commands,
    exposure_warning,
    serve_forever,
    track_forever,
)
from tvmx.measure._simulated import (
    SimulatedCounts,
    SimulatedRun,
    describe_simulation,
    simulation_id,
)
from tvmx.measure._tasks import Fact, FailedEvent
from tvmx.measure._timing import TimingPolicy
from tvmx.measure._tracker import KeyStatus, TrackerSummary, require_key, tracker_summary
from tvmx.measure._verify import check_output, relative_error
from tvmx.measure._visit import Visit

__all__ = [
    "BOARD_INSTALL",
    "DRIFT",
    "FFI_VERSION",
    "LOCAL_KEY",
    "SIBLINGS",
    "TVM_VERSION",
    "Cluster",
    "Cores",
    "Deadlines",
    "DeviceAddress",
    "DeviceReport",
    "Fact",
    "FailedEvent",
    "FakeRunner",
    "Job",
    "KernelJob",
    "KeyStatus",
    "LocalFarm",
    "Manners",
    "Measurement",
    "NetworkJob",
    "Observer",
    "OnResult",
    "Paired",
    "ProbeFigures",
    "ProbeKernel",
    "ProbeLibrary",
    "RpcRunner",
    "Runner",
    "SimulatedCounts",
    "SimulatedRun",
    "Status",
    "TimingPolicy",
    "TrackerSummary",
    "Unobserved",
    "Visit",
    "board_commands",
    "check_output",
    "compare_measured",
    "compare_paired",
    "describe_simulation",
    "elf_machine",
    "exposure_warning",
    "join_host_port",
    "library_problem",
    "median_figures",
    "median_interval",
    "open_runner",
    "parse_host_port",
    "relative_error",
    "require_key",
    "serve_forever",
    "simulation_id",
    "track_forever",
    "tracker_summary",
    "unlike_siblings",
]
