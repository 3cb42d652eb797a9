"""Cycles of blocks of machine code on a core, by LLVM's machine code analyser (llvm-mca).

A block costs what one more repetition of it adds once the pipeline is full. Two corrections to
what llvm-mca makes of the text:

- A base register that a load or store moves on (``[x0], #16``) is ready one cycle later. LLVM's
  tables for Cortex-A53, A55, A510 and (for single vector registers) A57/A72 hand it out with the
  loaded value, which makes a chain of loads that no core has. Such an instruction is given to
  llvm-mca as a plain access and an addition.
- Calls cost as branches (llvm-mca assumes 100 cycles): what is called is a block of its own.

Instructions that llvm-mca does not know or has no figures for (system registers, vectors longer
than 128 bits on a core without them) cost one cycle each.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmx.errors import SimulationError

VARIABLE = "TVMX_LLVM_MCA"
MODEL = 1  # of the cost of a block: count up when the same code would get another figure
UNKNOWN_INSTRUCTION = 1000  # thousandths of a cycle

_OLDEST = 20  # the first llvm-mca that can step over an instruction it does not know
_NEWEST_TRIED = 60
_INSTALL = "apt-get install llvm-22 (or a later one from apt.llvm.org)"
_FILL = 256  # instructions before the measured repetitions: more than these cores have in flight
# Text costs llvm-mca more than iterations: short blocks get many of those.
_MANY, _FEW, _LONG = 32, 4, 32
_FIRST = "# LLVM-MCA-BEGIN first\n\tnop\n# LLVM-MCA-END\n"  # it wants one instruction at least
_BATCH = 64
_WRITEBACK = re.compile(
    r"^\t(?P<name>(?:ld|st)\w*)\t(?P<values>.*), "
    r"\[(?P<base>\w+)(?:(?P<post>\]), (?P<by>#-?\w+|x\d+)|, (?P<pre>#-?\w+)\]!)$"
)
_ADDED = " // moves the base"
_REGION = re.compile(
    r"^\[\d+\] Code Region - (\d+)x(\d)\n+Iterations: .*\nInstructions: +(\d+)\n"
    r"Total Cycles: +(\d+)",
    re.MULTILINE,
)
_PREFIX = re.compile(r"^(\t(?:lock|rep\w*))\n", re.MULTILINE)  # x86's, on a line of their own
_INVALID = re.compile(r"^<stdin>:(\d+):\d+: warning: ", re.MULTILINE)


@dataclass(frozen=True)
class Code:
    """One translated block: the size in bytes of each instruction, and the bytes of all."""

    sizes: bytes
    data: bytes

    def instructions(self) -> list[bytes]:
        """The bytes of each instruction."""
        found, start = [], 0
        for size in self.sizes:
            found.append(self.data[start : start + size])
            start += size
        return found


@dataclass(frozen=True)
class Analyser:
    """llvm-mca and llvm-mc of one LLVM, for one core. ``triple`` and ``attrs`` as LLVM's."""

    mca: Path
    mc: Path
    version: str
    triple: str
    cpu: str
    attrs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """All that the figures depend on, in one line."""
        attrs = "".join(f" {a}" for a in self.attrs)
        return f"model {MODEL}, llvm-mca {self.version}, {self.triple} {self.cpu}{attrs}"

    def costs(self, blocks: Sequence[Code]) -> list[int]:
        """Thousandths of a cycle of one execution of each block, whatever the others are.

        Raises:
            SimulationError: llvm-mc or llvm-mca does not run, or does not know the core.
        """
        found: list[int] = []
        for start in range(0, len(blocks), _BATCH):
            found += self._batch(blocks[start : start + _BATCH])
        return found

    def loop_cycles(self, loops: Sequence[Sequence[str]]) -> list[float | None]:
        """Cycles of an iteration of each loop, given in assembly; None where nothing is known.

        Raises:
            SimulationError: llvm-mca does not run, or does not know the core.
        """
        texts = {
            number: [plain for line in lines for plain in _plain(line)]
            for number, lines in enumerate(loops)
        }
        found = self._cycles({i: text for i, text in texts.items() if text}, _FEW)
        return [found[i][1] / 1000 if i in found else None for i in texts]

    def _batch(self, blocks: Sequence[Code]) -> list[int]:
        texts = self._disassemble(blocks)
        cycles: dict[int, tuple[int, int]] = {}
        for iterations, sizes in ((_MANY, range(1, _LONG)), (_FEW, range(_LONG, sys.maxsize))):
            chosen = {i: text for i, text in enumerate(texts) if len(text) in sizes}
            cycles |= self._cycles(chosen, iterations) if chosen else {}
        costs = []
        for index, (block, lines) in enumerate(zip(blocks, texts, strict=True)):
            unknown, cost = len(block.sizes), 0
            if index in cycles:
                known, cost = cycles[index]
                decoded = sum(1 for line in lines if not line.endswith(_ADDED))
                unknown += len(lines) - decoded - known
            costs.append(cost + unknown * UNKNOWN_INSTRUCTION)
        return costs

    def _disassemble(self, blocks: Sequence[Code]) -> list[list[str]]:
        """Assembly of each block; what is no instruction is left out."""
        code = [(i, one) for i, block in enumerate(blocks) for one in block.instructions()]
        # Brackets: the bytes of one instruction never complete those of another.
        text = "".join("[" + " ".join(f"{b:#04x}" for b in one) + "]\n" for _, one in code)
        done = _run([self.mc, "-disassemble", f"-triple={self.triple}", *self._options()], text)
        invalid = {int(line) - 1 for line in _INVALID.findall(done.stderr)}
        valid = [owner for line, (owner, _) in enumerate(code) if line not in invalid]
        lines = [line for line in _PREFIX.sub(r"\1 ", done.stdout).splitlines() if line.strip()]
        if len(lines) != len(valid):  # its exit status only says that some were invalid
            raise SimulationError(
                f"{self.mc} did not disassemble {len(code)} instructions: {_last(done.stderr)}"
            )
        texts: list[list[str]] = [[] for _ in blocks]
        for owner, line in zip(valid, lines, strict=True):
            texts[owner] += _plain(line)
        return texts

    def _cycles(
        self, texts: Mapping[int, list[str]], iterations: int
    ) -> dict[int, tuple[int, int]]:
        """Lines known to llvm-mca, and thousandths of a cycle, by block; of those it knows any of.

        Each block is given twice, the second time twice as often: the difference is what
        repetitions cost when the pipeline is full.
        """
        regions = [_FIRST]
        often = {i: -(-_FILL // (iterations * len(lines))) for i, lines in texts.items()}
        for index, lines in texts.items():
            for times in (1, 2):
                body = lines * (often[index] * times)
                regions += [f"# LLVM-MCA-BEGIN {index}x{times}", *body, "# LLVM-MCA-END", ""]
        options = [f"-mtriple={self.triple}", *self._options(), *_MCA_OPTIONS]
        done = _run([self.mca, *options, f"-iterations={iterations}"], "\n".join(regions))
        if done.returncode != 0 or "is not a recognized processor" in done.stderr:
            raise SimulationError(
                f"{self.mca} cannot analyse code for {self.cpu}: {_last(done.stderr)}",
                hint=f"install a newer one as root: {_INSTALL}",
            )
        counted = {
            (int(index), int(times)): (int(instructions), int(cycles))
            for index, times, instructions, cycles in _REGION.findall(done.stdout)
        }
        found = {}
        for index, times in counted:
            if times == 1:
                (instructions, once), (_, twice) = counted[index, 1], counted[index, 2]
                repetitions = often[index] * iterations
                cost = round((twice - once) * 1000 / repetitions)
                found[index] = (instructions // repetitions, cost)
        return found

    def _options(self) -> list[str]:
        attrs = [f"-mattr={','.join(self.attrs)}"] if self.attrs else []
        return [f"-mcpu={self.cpu}", *attrs]


_MCA_OPTIONS = (
    "-call-latency=1",
    "-skip-unsupported-instructions=any",
    "-instruction-info=false",
    "-resource-pressure=false",
)


def analyser(triple: str, cpu: str, attrs: tuple[str, ...] = ()) -> Analyser:
    """The newest suitable llvm-mca of this machine, or that of ``TVMX_LLVM_MCA``.

    Raises:
        SimulationError: there is none; the hint installs one.
    """
    mca, mc, version = _tools(os.environ.get(VARIABLE), os.environ.get("PATH", os.defpath))
    return Analyser(mca, mc, version, triple, cpu, attrs)


@functools.cache
def _tools(named: str | None, path: str) -> tuple[Path, Path, str]:
    if named:
        mca = Path(named)
        version = _version(mca)
        if version is None:
            raise SimulationError(f"{VARIABLE}={named} is no llvm-mca of LLVM {_OLDEST} or later")
        return mca, _beside(mca), version
    for candidate in _candidates(path):
        version = _version(candidate)
        if version is not None:
            return candidate, _beside(candidate), version
    raise SimulationError(
        f"simulated boards need llvm-mca of LLVM {_OLDEST} or later, which is not on PATH",
        hint=f"install it as root: {_INSTALL}; or name one in {VARIABLE}",
    )


def _candidates(path: str) -> list[Path]:
    names = [f"llvm-mca-{n}" for n in range(_NEWEST_TRIED, _OLDEST - 1, -1)]
    return [
        Path(found) for name in [*names, "llvm-mca"] if (found := shutil.which(name, path=path))
    ]


def _beside(mca: Path) -> Path:
    """llvm-mc of the same LLVM."""
    mc = mca.with_name(mca.name.replace("llvm-mca", "llvm-mc"))
    if not mc.is_file():
        raise SimulationError(
            f"there is {mca}, but no {mc.name} beside it",
            hint=f"install it as root: {_INSTALL}",
        )
    return mc


def _version(mca: Path) -> str | None:
    """LLVM's version, such as ``22.1.8``; None when it is too old or no llvm-mca."""
    try:
        text = _run([mca, "--version"], "").stdout
    except SimulationError:
        return None
    found = re.search(r"LLVM version (\d+)(\.\S+)", text)
    return found[1] + found[2] if found and int(found[1]) >= _OLDEST else None


def _run(command: Sequence[str | Path], text: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [str(part) for part in command],
            input=text, capture_output=True, text=True, check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except OSError as err:
        raise SimulationError(f"cannot run {command[0]}: {err.strerror}") from err


def _plain(line: str) -> list[str]:
    """The instruction; one that moves its base register as access and addition."""
    found = _WRITEBACK.match(line)
    if found is None:
        return [line]
    step = found["by"] or found["pre"]
    offset = f", {found['pre']}" if found["pre"] else ""
    base, verb = found["base"], "sub" if step.startswith("#-") else "add"
    access = f"\t{found['name']}\t{found['values']}, [{base}{offset}]"
    return [access, f"\t{verb}\t{base}, {base}, {step.replace('#-', '#')}{_ADDED}"]


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "error:" in line]
    return (lines or ["it wrote no message"])[-1]
