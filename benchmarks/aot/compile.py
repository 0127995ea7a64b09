"""Ahead-of-time compilation of one recorded kernel launch, and an analysis of its machine code.

No GPU is needed: :func:`~ivcl_fast.kernels.launch.record` records the launches of the ops on
tensors without storage, and the CUDA tools in Triton's wheel disassemble the code. It cannot run
under ``TRITON_INTERPRET=1``.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import subprocess
import tempfile
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
    """Bytes of shared memory. The system takes 1 KB of them for each resident block."""
    dot: str
    """The tensor-core instruction for 16-bit operands."""


CHIPS = {
    80: Chip(64, 32, 164 << 10, "HMMA"),
    86: Chip(48, 16, 100 << 10, "HMMA"),
    89: Chip(48, 24, 100 << 10, "HMMA"),
    90: Chip(64, 32, 228 << 10, "HGMMA"),
    100: Chip(64, 32, 228 << 10, "UTCHMMA"),
    103: Chip(64, 32, 228 << 10, "UTCHMMA"),
    120: Chip(48, 24, 100 << 10, "HMMA"),
    121: Chip(48, 24, 100 << 10, "HMMA"),
}


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
    dots: dict[str, int]
    """Matrix products in the source, by the dtype of their operands."""
    mma: dict[str, int]
    """Tensor-core instructions by kind."""
    loads: int
    """Loads from global memory, asynchronous copies included."""
    wide_loads: int
    """Loads of 16 bytes per thread, or of a whole block."""
    store_bytes: int
    """Bytes per thread of the widest store to global memory."""
    hazards: int
    """Writes to registers that a tensor-core instruction of sm_90 may still be reading."""
    instructions: int
    """Instructions of the longest loop, or of the whole kernel if it has none."""

    @property
    def resident(self) -> int:
        """The programs that can be resident on a multiprocessor at once."""
        chip = CHIPS[self.arch]
        registers = cdiv(self.registers, 8) * 8 * 32 * self.warps  # allocated 8 at a time
        return min(
            chip.blocks,
            chip.warps // self.warps,
            REGISTERS // registers,
            chip.shared // (self.shared + 1024),
        )

    @property
    def occupancy(self) -> float:
        """The fraction of a multiprocessor's warps that can be resident at once."""
        return self.resident * self.warps / CHIPS[self.arch].warps


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
        options=launch.options,
    )
    code = _disassemble(built.asm["cubin"])
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", code)}
    dots = re.findall(r"\btt\.dot\b.*: tensor<[\dx]+x(\w+)> \*", built.asm["ttir"])
    mma = re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)\b", code)
    loads = re.findall(r"\b(?:LDG|LDGSTS|UTMALDG|UBLKCP)\b\S*", code)
    return Compiled(
        arch=arch,
        warps=launch.num_warps,
        registers=usage["REG"],
        stack=usage["STACK"],
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        shared=built.metadata.shared,
        dots={dtype: dots.count(dtype) for dtype in sorted(set(dots))},
        mma={kind: mma.count(kind) for kind in sorted(set(mma))},
        loads=len(loads),
        wide_loads=sum(".128" in load or load.startswith("U") for load in loads),
        store_bytes=_widest_store(code),
        hazards=count_hazards(code),
        instructions=_instructions(code),
    )


def _widest_store(code: str) -> int:
    """Return the bytes per thread of the widest store to global memory; 16 for whole blocks."""
    stores = re.findall(r"\b(STG|UTMASTG|UBLKCP)\b(\S*)", code)
    widths = {"128": 16, "64": 8, "U16": 2, "U8": 1}
    return max(
        (
            next((size for part, size in widths.items() if f".{part}" in suffix), 4)
            if name == "STG"
            else 16
            for name, suffix in stores
        ),
        default=0,
    )


def count_hazards(code: str) -> int:
    """Count the writes to A registers of sm_90's WGMMAs before a wait covers their reads.

    A WGMMA reads A from registers while later instructions run. PTX leaves its result undefined if
    one of them writes these registers before a ``wgmma.wait_group`` for its group (triton#9433). A
    wait for all but n groups (``WARPGROUP.DEPBAR.LE gsb0, n``) covers a WGMMA if n later groups
    have been committed (``gsb0``) by then. What follows the end of a loop is also its beginning.
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
    groups = int("gsb0" in lines[wgmma])  # committed from this WGMMA on, its own included
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


def _instructions(code: str) -> int:
    """The instructions between a branch that goes back and its target, or all of them."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?\w+\s+)?(\w+)([^;]*);", code)
    lines = [(int(at, 16), name, operands) for at, name, operands in found if name != "NOP"]
    loops = []
    for at, name, operands in lines:
        target = re.search(r"\b0x([0-9a-f]+)", operands)
        if name == "BRA" and target and int(target[1], 16) < at:
            loops.append(sum(int(target[1], 16) <= other <= at for other, _, _ in lines))
    return max(loops, default=len(lines))


def _disassemble(cubin: bytes) -> str:
    """The resource usage and assembly code of a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def digest(launch: Launch) -> str:
    """A key that changes with everything that the machine code depends on but chip and Triton."""
    signature, constants, attributes = specialise(launch)
    constants = {name: str(value) for name, value in constants.items()}
    text = repr((_source(launch.kernel), signature, constants, attributes, launch.options))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _source(kernel: Any) -> str:
    """The source of a kernel and of the functions of its module that it calls."""
    functions = vars(inspect.getmodule(kernel.fn))
    called, text = [kernel.__name__], ""
    for name in called:  # grows
        source = inspect.getsource(functions[name].fn)
        text += source
        for word in re.findall(r"\b\w+\b", source):
            if word not in called and hasattr(functions.get(word), "fn"):
                called.append(word)
    return text


INSTRUCTIONS_PER_ELEMENT = {"bias_gelu": 33}
"""What an op's kernels may take in 16-bit dtypes, so that memory and not arithmetic limits them."""

LOW_OCCUPANCY = {
    ("embed_patches", "_backward_kernel"): (
        0.125,
        "a program accumulates a tile of the weight's gradient in registers, so that rows and "
        "gradients are read few times; it runs once per step",
    ),
    ("short_attention", "_backward_kernel", "fp32"): (
        0.125,
        "float32 has no tensor cores: registers are the operands' cache, and arithmetic limits it, "
        "not the latency of memory",
    ),
    ("short_attention", "_backward_kernel", "16-bit"): (
        0.1875,
        "for 64 tokens Triton 3.6 takes 133 registers and 3.9 takes 138, where 128 would let a "
        "fourth program in; held to 128, 3.9 spills",
    ),
}
"""Kernels of a training step that may fill less than a quarter of a multiprocessor on sm_90: the
part that they have to fill at least, and why it is no more."""


def faults(launch: Launch, built: Compiled) -> list[str]:
    """What is wrong with the machine code: spills, too much memory, slow dots, narrow loads, ..."""
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
    rows = [a for a in launch.args if isinstance(a, Tensor) and a.dtype != torch.int64]
    if rows and not built.wide_loads:  # a kernel that only reads ids loads too little to matter
        found.append(f"loads: none of {built.loads} takes 16 bytes")
    if built.resident < launch.per_sm:
        found.append(
            f"grid: for {launch.per_sm} programs on a multiprocessor, {built.resident} fit"
        )
    op, step = launch.kernel.fn.__module__.rpartition(".")[2], launch.kernel.__name__
    is_float32 = any(a.dtype == torch.float32 for a in rows[:1])
    if op in INSTRUCTIONS_PER_ELEMENT and not is_float32:
        tile = launch.constexprs["BLOCK_ROWS"] * launch.constexprs["BLOCK_COLS"]
        each = built.instructions * 32 * built.warps / tile
        if each > INSTRUCTIONS_PER_ELEMENT[op]:
            found.append(f"instructions: {each:.1f} per element")
    keys = (op, step), (op, step, "fp32" if is_float32 else "16-bit")
    least = min((LOW_OCCUPANCY[key][0] for key in keys if key in LOW_OCCUPANCY), default=0.25)
    if built.arch == 90 and built.occupancy < least:
        found.append(f"occupancy: {built.occupancy:.0%}")
    return found
