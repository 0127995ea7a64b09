"""Ahead-of-time compilation of every Triton kernel, and an analysis of its machine code.

``python -m ivcl_fast.kernels.aot`` compiles the kernels of a training step at every preset's
shapes for sm_80, sm_90, sm_100 and sm_120. It writes a table of all kernels to
``benchmarks/results/aot.md`` and a summary to ``docs/performance.md``, and fails if it finds a
fault (:func:`faults`). No GPU is needed: :func:`ivcl_fast.kernels.launch.record` records the
launches of the ops on tensors without storage, and the CUDA tools in Triton's wheel disassemble the
code. It cannot run under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import PRESETS, IVCLConfig
from ..files import write_text
from ._triton import INTERPRET, MISSING, triton
from .aot_cases import cases
from .launch import Launch, cdiv, record

TABLE = Path("benchmarks/results/aot.md")
DOCUMENT = Path("docs/performance.md")
BEGIN, END = "<!-- aot:begin -->", "<!-- aot:end -->"
TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.uint8: "u8",
}  # fmt: skip


@dataclass(frozen=True)
class Chip:
    """The limits of one multiprocessor, from NVIDIA's table of compute capabilities."""

    warps: int
    blocks: int
    shared: int
    """Bytes of shared memory. The system takes 1 KB of them for each resident block."""
    dot: str
    """The tensor-core instruction for 16-bit operands."""

    @property
    def block_shared(self) -> int:
        """The bytes of shared memory that one block can have."""
        return self.shared - 1024


CHIPS = {
    80: Chip(64, 32, 164 << 10, "HMMA"),
    90: Chip(64, 32, 228 << 10, "HGMMA"),
    100: Chip(64, 32, 228 << 10, "UTCHMMA"),
    120: Chip(48, 24, 100 << 10, "HMMA"),
}
REGISTERS = 64 << 10
"""32-bit registers of a multiprocessor of any of these chips."""


@dataclass(frozen=True)
class Compiled:
    """Figures of the machine code of one kernel for one chip."""

    arch: int
    warps: int
    registers: int
    """Per thread."""
    stack: int
    """Bytes per thread."""
    spills: int
    """Loads and stores of thread-local memory (LDL, STL) in the code."""
    shared: int
    """Bytes of shared memory per block."""
    dots: int
    """Matrix products in the source."""
    mma: dict[str, int]
    """Tensor-core instructions by kind."""
    loads: int
    """Loads from global memory, asynchronous copies included."""
    wide_loads: int
    """Loads of 16 bytes per thread, or of a whole block."""

    @property
    def occupancy(self) -> float:
        """The fraction of a multiprocessor's warps that can be resident at once."""
        chip = CHIPS[self.arch]
        registers = cdiv(self.registers, 8) * 8 * 32 * self.warps  # allocated 8 at a time
        blocks = min(
            chip.blocks,
            chip.warps // self.warps,
            REGISTERS // registers,
            chip.shared // (self.shared + 1024),
        )
        return blocks * self.warps / chip.warps


def specialise(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict]:
    """Signature, constants and attributes, derived from arguments as Triton itself does.

    Pointers aligned to 16 bytes and integers divisible by 16 are marked as such; 1 and None become
    constants. PyTorch aligns every allocation, so a tensor's offset decides about alignment.
    """
    types: dict[str, str] = {}
    constants = dict(launch.constexprs)
    attributes: dict[tuple[int], list] = {}
    for at, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.args, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            constants[name] = value
            continue
        if isinstance(value, Tensor):
            types[name] = "*" + TYPES[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        elif isinstance(value, float):
            types[name], aligned = "fp32", False
        else:
            types[name], aligned = "i32" if abs(value) < 2**31 else "i64", value % 16 == 0
        if aligned:
            attributes[(at,)] = [["tt.divisibility", 16]]
    signature = {name: types.get(name, "constexpr") for name in launch.kernel.arg_names}
    return signature, constants, attributes


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compile a recorded launch for ``arch`` (90 means sm_90) and analyse its machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    built = triton.compile(
        ASTSource(launch.kernel, *specialise(launch)),
        target=GPUTarget("cuda", arch, 32),
        options=dict(
            num_warps=launch.num_warps, num_stages=launch.num_stages, enable_fp_fusion=True
        ),
    )
    code = _disassemble(built.asm["cubin"])
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", code)}
    mma = re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", code)
    loads = re.findall(r"\b(?:LDG|LDGSTS|UTMALDG|UBLKCP)\b\S*", code)
    return Compiled(
        arch=arch,
        warps=launch.num_warps,
        registers=usage["REG"],
        stack=usage["STACK"],
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared=built.metadata.shared,
        dots=len(re.findall(r"\btt\.dot\b", built.asm["ttir"])),
        mma={kind: mma.count(kind) for kind in sorted(set(mma))},
        loads=len(loads),
        wide_loads=sum(".128" in load or load.startswith("U") for load in loads),
    )


def _disassemble(cubin: bytes) -> str:
    """The resource usage and assembly code of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def record_launches(preset: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Launch]:
    """The launches of a preset's training step by name; of those that compile alike, the first."""
    launches: dict[str, Launch] = {}
    seen = set()
    for name, call in cases(IVCLConfig.preset(preset), dtype).items():
        with record() as recorded:
            call()
        for launch in recorded:
            key = (launch.kernel, launch.num_warps, launch.num_stages, repr(specialise(launch)))
            if key not in seen:
                seen.add(key)
                step = launch.kernel.__name__.removesuffix("_kernel").strip("_")
                launches[f"{name} {step}".strip()] = launch
    return launches


def compile_all(
    launches: Iterable[Launch], archs: Iterable[int] = tuple(CHIPS)
) -> list[list[Compiled]]:
    """Every launch for every chip, on all cores of this machine."""
    archs = tuple(archs)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            [pool.submit(compile_launch, launch, arch) for arch in archs] for launch in launches
        ]
        return [[job.result() for job in row] for row in jobs]


def faults(launch: Launch, built: Compiled) -> list[str]:
    """What is wrong with the machine code: spills, too much memory, slow dots, narrow loads."""
    chip, found = CHIPS[built.arch], []
    if built.spills or built.stack:
        found.append(f"spills: {built.spills} loads and stores, {built.stack} bytes of stack")
    if built.shared > chip.block_shared:
        found.append(f"shared memory: {built.shared} bytes, the chip has {chip.block_shared}")
    if built.dots and not built.mma.get(chip.dot):
        found.append(f"dots: no {chip.dot}, but {built.mma or 'no tensor-core instruction'}")
    rows = [a for a in launch.args if isinstance(a, Tensor) and a.dtype != torch.int64]
    if rows and not built.wide_loads:  # a kernel that only reads ids loads too little to matter
        found.append(f"loads: none of {built.loads} takes 16 bytes")
    return found


# --- Report ---------------------------------------------------------------------------------------

Kernels = dict[str, list[Compiled]]
"""The kernels of a preset by name, each for all chips."""


def table(kernels: Kernels) -> str:
    """A Markdown table with a row for each kernel."""
    lines = [
        "| kernel | registers | warps | shared | spills | tensor-core | loads | 16-byte "
        "| occupancy |",
        "| --- " * 9 + "|",
    ]
    for name, built in kernels.items():
        columns = (
            [b.registers for b in built], [b.warps for b in built], [b.shared for b in built],
            [b.spills for b in built],
            [" ".join(f"{n} {kind}" for kind, n in b.mma.items()) or "-" for b in built],
            [b.loads for b in built], [b.wide_loads for b in built],
            [f"{b.occupancy:.0%}" for b in built],
        )  # fmt: skip
        lines.append(f"| {name} | {' | '.join(map(_cell, columns))} |")
    return "\n".join(lines)


def summary(presets: dict[str, Kernels]) -> str:
    """A Markdown table with a row for each op: ranges over its kernels, presets and chips."""
    by_op: dict[str, list[Compiled]] = {}
    for kernels in presets.values():
        for name, built in kernels.items():
            by_op.setdefault(name.split(",")[0].split()[0], []).extend(built)
    lines = ["| op | builds | registers | spills | shared memory | occupancy |", "| --- " * 6 + "|"]
    for op, built in sorted(by_op.items()):
        registers = _range([b.registers for b in built])
        spills, shared = sum(b.spills for b in built), max(b.shared for b in built) / 1024
        occupancy = _range([round(100 * b.occupancy) for b in built])
        lines.append(
            f"| `{op}` | {len(built)} | {registers} | {spills} | {shared:.0f} KiB | {occupancy} % |"
        )
    return "\n".join(lines)


def _cell(values: list) -> str:
    """One value if all chips agree, else each chip's."""
    return " / ".join(map(str, values if len(set(values)) > 1 else values[:1]))


def _range(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}"


def write_between_markers(document: Path, text: str) -> None:
    """Replace the text between the two markers; raises ``ValueError`` if they are missing."""
    old = document.read_text()
    if BEGIN not in old or END not in old:
        raise ValueError(f"{document}: the markers {BEGIN} and {END} are missing")
    head, tail = old.split(BEGIN)[0], old.split(END)[1]
    write_text(document, f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    if INTERPRET or MISSING:
        sys.exit(f"aot: {MISSING or 'cannot compile under TRITON_INTERPRET=1; unset it'}")
    presets: dict[str, Kernels] = {}
    found = []
    for preset in PRESETS:
        launches = record_launches(preset)
        compiled = compile_all(launches.values())
        presets[preset] = dict(zip(launches, compiled, strict=True))
        for (name, launch), row in zip(launches.items(), compiled, strict=True):
            for built in row:
                place = f"{preset}, {name}, sm_{built.arch}"
                found += [f"{place}: {fault}" for fault in faults(launch, built)]
    versions = f"triton {triton.__version__} and torch {torch.__version__}"
    chips = ", ".join(f"sm_{arch}" for arch in CHIPS)
    sections = [f"## `{preset}`\n\n{table(kernels)}" for preset, kernels in presets.items()]
    intro = INTRODUCTION.format(versions=versions, chips=chips)
    write_text(TABLE, "\n\n".join([intro, *sections]) + "\n")
    text = f"Compiled with {versions} for {chips}.\n\n{summary(presets)}"
    write_between_markers(DOCUMENT, text)
    print(f"wrote {TABLE} and {DOCUMENT}")
    sys.exit("\n".join(found) or None)


INTRODUCTION = """\
# Machine code of the kernels

Written by `make aot` with {versions}, for 8 clips per step,
bfloat16 activations and float32 parameters. Cells with four values are {chips}.

Registers are per thread; shared memory is in bytes per program; spills are loads and stores of
thread-local memory. Tensor-core instructions and loads from global memory are counted in the code,
not as executed. Occupancy is the fraction of a multiprocessor's warps that can be resident at once.
A row stands for every launch that compiles to the same code, and has the name of the first."""


if __name__ == "__main__":
    main()
