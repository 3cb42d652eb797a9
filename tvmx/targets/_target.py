"""Target: a board or core as the compiler and the templates see it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Int8Dot = Literal["vnni512", "vnni256", "pmadd", "sdot", "smlal", "none"]
_DTYPE_BITS = {"float32": 32, "float16": 16, "int8": 8, "uint8": 8, "int32": 32}


class Cluster(BaseModel):
    """Cores of one kind. ``l2_kib`` is what one cluster shares (per core when ``l2_private``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    core: str
    count: int = Field(ge=1)
    clock_mhz: int = Field(ge=1)
    in_order: bool
    l1d_kib: int
    l2_kib: int
    l2_private: bool = False


class Simulation(BaseModel):
    """How simulated boards of a target are timed, and why so.

    ``figure`` is what their clock shows; ``source`` says where that choice comes from. Costs of a
    line are in cycles, ``memory_factor`` is the share of them that no other work hides; what is
    left out is chosen for the core (``tvmx.simulate``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: Literal["core", "core+memory"]
    source: str
    l2_hit_cycles: float | None = Field(default=None, ge=0)
    prefetched_cycles: float | None = Field(default=None, ge=0)
    l2_miss_cycles: float | None = Field(default=None, ge=0)
    memory_factor: float | None = Field(default=None, ge=0, le=1)


class Target(BaseModel):
    """A deployment target.

    ``vector_bits`` and ``vector_registers`` describe the SIMD unit float templates use;
    ``features`` are LLVM feature strings; ``clusters`` lists the fastest cluster first.
    ``glibc`` is the oldest C library a bundle must run on (used when linking by zig).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    name: str
    description: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    vector_bits: int = 128
    vector_registers: int = 32
    glibc: str = "2.28"
    memory_mib: int = Field(ge=1)
    clusters: tuple[Cluster, ...] = Field(min_length=1)
    simulation: Simulation | None = None
    sources: tuple[str, ...] = ()

    def lanes(self, dtype: str = "float32") -> int:
        """Elements of ``dtype`` in one vector register."""
        return self.vector_bits // _DTYPE_BITS[dtype]

    @property
    def big(self) -> Cluster:
        """The fastest cluster."""
        return self.clusters[0]

    @property
    def cores(self) -> int:
        """Cores of the fastest cluster: the most threads a kernel is scheduled for."""
        return self.big.count

    @property
    def arch(self) -> str:
        """Architecture part of the triple, such as ``aarch64``."""
        return self.triple.split("-", 1)[0]

    @property
    def int8_dot(self) -> Int8Dot:
        """The best instructions for sums of s8 products (``tvmx.templates.DotForm``)."""
        if self.arch == "aarch64" and self.vector_bits == 128:
            return "sdot" if "+dotprod" in self.features else "smlal"
        if self.arch not in ("x86_64", "i686"):
            return "none"
        if self.vector_bits == 512 and "+avx512vnni" in self.features:
            return "vnni512"
        if self.vector_bits == 256 and "+avxvnni" in self.features:
            return "vnni256"
        return "pmadd" if self.vector_bits in (128, 256, 512) else "none"

    def tvm_config(self) -> dict[str, Any]:
        """Keyword dict for ``tvm.target.Target``."""
        config: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.cpu,
            "num-cores": self.cores,
        }
        if self.features:
            config["mattr"] = list(self.features)
        return config
