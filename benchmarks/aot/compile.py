"""Ahead-of-time compilation of one recorded kernel launch, and an analysis of its machine code.

No GPU is needed: :func:`~ivcl_fast.kernels.launch.record` records the launches of the ops on
tensors without storage, and the CUDA tools in Triton's wheel disassemble the code. It cannot run
under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivcl_fast.kernels._triton import triton
from ivcl_fast.kernels.launch import REGISTERS, Launch, cdiv

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
    """Bytes of shared memory, including 1 KB per resident block for the system."""
    dot: str
    """The tensor-core instruction of PTX for 16-bit operands."""


CHIPS = {
    90: Chip(64, 32, 228 << 10, "wgmma"),
    100: Chip(64, 32, 228 << 10, "tcgen05"),
    80: Chip(64, 32, 164 << 10, "mma"),
    120: Chip(48, 24, 100 << 10, "mma"),
    89: Chip(48, 24, 100 << 10, "mma"),
    86: Chip(48, 16, 100 << 10, "mma"),
    103: Chip(64, 32, 228 << 10, "tcgen05"),
    121: Chip(48, 24, 100 << 10, "mma"),
}
"""By compute capability, most important first."""


@dataclass(frozen=True)
class Compiled:
    """Figures of the machine code of one kernel for one chip."""

    arch: int
    warps: int
    registers: int
    """Registers per thread."""
    stack: int
    """Bytes of stack per thread."""
    spills: int
    """Number of loads and stores of thread-local memory (LDL, STL) in the code."""
    shared: int
    """Bytes of shared memory per block."""
    dots: dict[str, int]
    """Number of matrix products in the source, by the dtype of their operands."""
    mma: dict[str, int]
    """Number of tensor-core instructions by family: mma, wgmma, tcgen05."""
    store_bytes: int
    """Bytes per thread of the widest store to global memory."""
    hazards: int
    """Writes to registers that a tensor-core instruction of sm_90 may still be reading."""

    @property
    def resident(self) -> int:
        """Return how many programs can be resident on a multiprocessor at once."""
        chip = CHIPS[self.arch]
        registers = cdiv(self.registers, 8) * 8 * 32 * self.warps  # allocated 8 at a time
        return min(
            chip.blocks,
            chip.warps // self.warps,
            REGISTERS // registers,
            chip.shared // (self.shared + 1024),
        )


def specialise(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict]:
    """Return signature, constants and attributes, derived from arguments as Triton does.

    Pointers aligned to 16 bytes and integers divisible by 16 are marked as such; 1 and None become
    constants. PyTorch aligns every allocation, so a tensor's offset determines its alignment.
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


def source(launch: Launch) -> Any:
    """Convert a recorded launch to the input of Triton's compiler."""
    from triton.compiler import ASTSource

    return ASTSource(launch.kernel, *specialise(launch))


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compile a recorded launch for ``arch`` (90 means sm_90) and analyse its machine code."""
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", arch, 32)
    built = triton.compile(source(launch), target=target, options=launch.options)
    ptx, cubin = built.asm["ptx"], built.asm["cubin"]
    usage = {
        name: int(n) for name, n in re.findall(r"\b(REG|STACK):(\d+)", _dump(cubin, "-res-usage"))
    }
    dots = re.findall(r"\btt\.dot\b.*: tensor<[\dx]+x(\w+)> \*", built.asm["ttir"])
    mma = re.findall(r"\b(mma|wgmma|tcgen05)\.(?:sync|mma)", ptx)
    # Disassembly takes as long as compilation, and answers only these two questions.
    code = _dump(cubin, "-sass") if usage["STACK"] or "wgmma" in mma else ""
    return Compiled(
        arch=arch,
        warps=launch.num_warps,
        registers=usage["REG"],
        stack=usage["STACK"],
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared=built.metadata.shared,
        dots=dict(Counter(dots)),
        mma=dict(Counter(mma)),
        store_bytes=_widest_store(ptx),
        hazards=count_hazards(code),
    )


def _widest_store(ptx: str) -> int:
    """Return the bytes per thread of the widest store to global memory, at most 16."""
    stores = re.findall(r"\bst\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    widths = [int(count or 1) * int(bits) // 8 for count, bits in stores]
    blocks = [16] * bool(re.search(r"\bcp\.async\.bulk\S*\.global\.shared", ptx))
    return min(16, max(widths + blocks, default=0))


def count_hazards(code: str) -> int:
    """Count the writes to A registers of sm_90's WGMMAs before a wait covers their reads.

    A WGMMA reads A from registers while later instructions run. PTX leaves its result undefined if
    one of them writes these registers before a ``wgmma.wait_group`` for its group (triton#9433). A
    wait for all but n groups (``WARPGROUP.DEPBAR.LE gsb0, n``) covers a WGMMA if n later groups
    have been committed (``gsb0``) by then. The search continues at a loop's start
    after its end.
    """
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)
    lines = [line for _, line in found]
    places = {int(address, 16): at for at, (address, _) in enumerate(found)}
    return sum(
        len(_overwrites(lines, places, at))
        for at, line in enumerate(lines)
        if re.search(r"\bHGMMA\S*\s+R\d+,\s*R\d+,\s*gdesc", line)
    )


def _overwrites(lines: list[str], places: dict[int, int], wgmma: int) -> set[int]:
    """Return the places of the instructions that overwrite a WGMMA's A registers too early."""
    first = int(re.findall(r"\bR(\d+),", lines[wgmma])[1])
    operand = set(range(first, first + 4))
    groups = int("gsb0" in lines[wgmma])  # committed groups, including this WGMMA's
    early, at, wrapped = set(), wgmma + 1, False
    while at < len(lines):
        line = lines[at]
        wait = re.search(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)", line)
        if "EXIT" in line or (wait and groups > int(wait[1], 16)):
            break
        groups += "HGMMA" in line and "gsb0" in line
        if operand & _written(line):
            early.add(at)
        jump = re.search(r"\bBRA (0x[0-9a-f]+)", line)
        target = places.get(int(jump[1], 16), at + 1) if jump else at + 1
        if target <= wgmma and not wrapped:  # the end of the loop around the WGMMA
            at, wrapped = target, True
        elif jump and target == at:  # padding behind the code
            break
        else:
            at += 1
    return early


def _written(line: str) -> set[int]:
    """Return the registers that an instruction writes."""
    line = re.sub(r"^@!?U?P\w+\s+", "", line.strip())
    name, _, operands = line.partition(" ")
    first = re.match(r"\s*R(\d+)\b", operands)
    if not first or name.startswith(("ST", "HGMMA", "BAR", "BRA", "RED", "ATOM", "WARP")):
        return set()
    if ".128" in name or "HMMA" in name or name.endswith(".4"):
        count = 4
    elif ".64" in name or "WIDE" in name or name.endswith(".2"):
        count = 2
    else:
        count = 1
    return {int(first[1]) + i for i in range(count)}


def _dump(cubin: bytes, what: str) -> str:
    """Return the resource usage (``-res-usage``) or assembly code (``-sass``) of a kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def faults(launch: Launch, built: Compiled) -> list[str]:
    """List the faults of the machine code; each entry begins with the kind of fault."""
    chip, found = CHIPS[built.arch], []
    if built.spills or built.stack:
        found.append(f"spills: {built.spills} loads and stores, {built.stack} bytes of stack")
    if built.shared > (most := chip.shared - 1024):
        found.append(f"shared memory: {built.shared} bytes, the chip has {most}")
    if {"f16", "bf16"} & {*built.dots} and not built.mma.get(chip.dot):
        found.append(f"dots: no {chip.dot}, but {built.mma or 'no tensor-core instruction'}")
    if "f32" in built.dots and built.mma:
        found.append(f"dots: float32, but {built.mma}")
    if built.hazards:
        found.append(f"hazards: {built.hazards} operands of WGMMAs are overwritten while in use")
    if built.resident < launch.per_sm:
        found.append(
            f"grid: for {launch.per_sm} programs on a multiprocessor, {built.resident} fit"
        )
    return found
