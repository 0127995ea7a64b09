"""Every kernel, compiled for chips that are not here: what the machine code of each is made of.

``python -m ivcl_fast.kernels.aot`` compiles the kernels of a training step at every preset's shapes
for sm_80, sm_90, sm_100 and sm_120 and writes the table in ``docs/performance.md``. No GPU is
needed: :func:`ivcl_fast.kernels.launch.record` lists what the ops would start, given tensors
without storage, and the CUDA tools inside Triton's wheel read the machine code back. Compiling and
interpreting kernels exclude each other: not under ``TRITON_INTERPRET=1``.
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
from ._triton import INTERPRET, MISSING, triton
from .aot_cases import cases
from .launch import Launch, cdiv, record

DOCUMENT = Path("docs/performance.md")
BEGIN, END = "<!-- aot:begin -->", "<!-- aot:end -->"
TYPES = {
    torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.uint8: "u8",
}  # fmt: skip


@dataclass(frozen=True)
class Chip:
    """Limits of one multiprocessor, from NVIDIA's table of compute capabilities."""

    warps: int
    blocks: int
    shared: int
    """Bytes of shared memory, 1 KB of which each resident block needs for the system."""
    dot: str
    """The tensor cores' instruction for 16-bit operands."""

    @property
    def block_shared(self) -> int:
        """Bytes of shared memory that one block may have."""
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
    """What the machine code of one kernel for one chip holds."""

    arch: int
    warps: int
    registers: int
    """Per thread."""
    stack: int
    """Bytes per thread."""
    spills: int
    """Loads and stores of thread-local memory (LDL, STL)."""
    shared: int
    """Bytes of shared memory per block."""
    dots: int
    """Matrix products in the source."""
    mma: dict[str, int]
    """Tensor-core instructions by kind."""
    loads: int
    """Loads from global memory, asynchronous copies included."""
    wide_loads: int
    """Those of 16 bytes per thread or of a whole block."""

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's warps that can be resident at once."""
        chip = CHIPS[self.arch]
        registers = cdiv(self.registers, 8) * 8 * 32 * self.warps  # given out by 8 per thread
        blocks = min(
            chip.blocks,
            chip.warps // self.warps,
            REGISTERS // registers,
            chip.shared // (self.shared + 1024),
        )
        return blocks * self.warps / chip.warps


def specialise(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict]:
    """Signature, constants and attributes, as Triton itself derives them from arguments.

    Pointers aligned to 16 bytes and integers divisible by 16 are marked so, 1 and None are built
    in. Every allocation of torch is aligned, so a tensor's offset decides.
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
    """Compile a recorded launch for ``arch`` (90 means sm_90) and read its machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    built = triton.compile(
        ASTSource(launch.kernel, *specialise(launch)),
        target=GPUTarget("cuda", arch, 32),
        options=dict(
            num_warps=launch.num_warps, num_stages=launch.num_stages, enable_fp_fusion=True
        ),
    )
    code = disassemble(built.asm["cubin"])
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


def disassemble(cubin: bytes) -> str:
    """Resource usage and assembly code of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def recorded(preset: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Launch]:
    """The launches of a preset's training step by name, those that compile alike only once."""
    launches: dict[str, Launch] = {}
    seen = set()
    for name, start in cases(IVCLConfig.preset(preset), dtype).items():
        with record() as started:
            start()
        for launch in started:
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
    """What is wrong with the machine code, in words; empty if nothing is."""
    chip, found = CHIPS[built.arch], []
    if built.spills or built.stack:
        found.append(f"spills: {built.spills} loads and stores, {built.stack} bytes of stack")
    if built.shared > chip.block_shared:
        found.append(f"shared memory: {built.shared} bytes, the chip has {chip.block_shared}")
    if built.dots and not built.mma.get(chip.dot):
        found.append(f"dots: no {chip.dot}, but {built.mma or 'no tensor-core instruction'}")
    rows = [a for a in launch.args if isinstance(a, Tensor) and a.dtype != torch.int64]
    if rows and not built.wide_loads:  # ids alone are nothing to stream
        found.append(f"loads: none of {built.loads} takes 16 bytes")
    return found


def report(presets: Iterable[str]) -> tuple[str, list[str]]:
    """A table in Markdown for every preset, one line for each kernel, and all faults."""
    chips = ", ".join(f"sm_{arch}" for arch in CHIPS)
    lines = [
        f"Compiled by triton {triton.__version__} with torch {torch.__version__}; batch 8, "
        f"bfloat16 activations, float32 parameters. Cells with four values are {chips}.",
        "",
    ]
    problems = []
    for preset in presets:
        launches = recorded(preset)
        lines += [
            f"### `{preset}`",
            "",
            "| kernel | registers | warps | shared | spills | tensor-core | loads "
            "| 16-byte | occupancy |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for (name, launch), row in zip(
            launches.items(), compile_all(launches.values()), strict=True
        ):
            mma = [" ".join(f"{n} {kind}" for kind, n in b.mma.items()) or "-" for b in row]
            cells = (
                [b.registers for b in row], [b.warps for b in row], [b.shared for b in row],
                [b.spills for b in row], mma, [b.loads for b in row], [b.wide_loads for b in row],
                [f"{b.occupancy:.0%}" for b in row],
            )  # fmt: skip
            lines.append(f"| {name} | " + " | ".join(map(_cell, cells)) + " |")
            for built in row:
                problems += [
                    f"{preset}, {name}, sm_{built.arch}: {fault}" for fault in faults(launch, built)
                ]
        lines.append("")
    return "\n".join(lines).rstrip(), problems


def _cell(values: list) -> str:
    """One value if all chips agree, else each chip's."""
    return " / ".join(map(str, values if len(set(values)) > 1 else values[:1]))


def write_between_markers(document: Path, text: str) -> None:
    """Replace what stands between the two markers; raises ``ValueError`` if they are missing."""
    old = document.read_text()
    if BEGIN not in old or END not in old:
        raise ValueError(f"{document}: the markers {BEGIN} and {END} are missing")
    head, tail = old.split(BEGIN)[0], old.split(END)[1]
    temporary = document.with_suffix(".tmp")
    temporary.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")
    os.replace(temporary, document)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="file with the markers")
    options = parser.parse_args()
    if INTERPRET or MISSING:
        sys.exit(f"aot: {MISSING or 'cannot compile under TRITON_INTERPRET=1; unset it'}")
    table, problems = report(options.presets)
    write_between_markers(options.document, table)
    print(f"wrote {options.document}")
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
