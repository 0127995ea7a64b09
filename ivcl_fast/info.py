"""``python -m ivcl_fast.info``: show versions, devices, and which kernel runs where.

Lists kernels and attention backends, with the reason if one is unavailable. With ``--plan`` and
flags of ``ivcl_fast.train``, predicts the memory of such a run.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

import torch

from ivcl_fast.command import parse, run_command
from ivcl_fast.errors import require_at_least
from ivcl_fast.kernels import _ext, _triton, attention, unsupported_reason
from ivcl_fast.training import hardware
from ivcl_fast.training.arguments import parse as parse_run

PACKAGES = (
    "ivcl_fast", "torch", "triton", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "av",
    "flash-attn", "xformers", "timm", "safetensors", "huggingface-hub",
)  # fmt: skip
OPS = (
    "embed_patches", "short_attention", "add_layer_norm", "bias_gelu",
    "restore_tokens", "patch_loss", "mixture_loss", "sample_masks",
)  # fmt: skip
CPU_OPS = ("transformer_block",)
"""Ops that only a CPU uses."""
CPU_FEATURES = {
    "avx2": "AVX2", "avx512": "AVX-512", "avx512_bf16": "AVX-512 with bfloat16",
    "amx_tile": "AMX", "amx_bf16": "AMX with bfloat16",
}  # fmt: skip


def sections() -> dict[str, dict[str, str]]:
    """Return the tables: title, name of each row, and its state in one line."""
    return {
        "Versions": {"python": platform.python_version()} | {p: installed(p) for p in PACKAGES},
        "Devices": dict(devices()),
        "Kernels on a GPU": {op: implementation(op, "cuda") for op in OPS},
        "Kernels on the CPU": {op: implementation(op, "cpu") for op in (*CPU_OPS, *OPS)},
        "Attention backends": attention.backend_status(),
        "torch.compile": {
            kind: hardware.compile_unsupported_reason(torch.device(kind)) or "available"
            for kind in ("cpu", "cuda")
            if kind == "cpu" or torch.cuda.is_available()
        },
    }


def installed(package: str) -> str:
    """Return the version of a package, or that it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def devices() -> Iterator[tuple[str, str]]:
    """Yield the CPU and each CUDA device with their capabilities."""
    features = [
        words
        for name, words in CPU_FEATURES.items()
        if getattr(torch.cpu, f"_is_{name}_supported", bool)()
    ]
    known = ", ".join(features) or torch.backends.cpu.get_cpu_capability()
    bf16 = "has" if hardware.has_fast_bf16(torch.device("cpu")) else "has no"
    yield "cpu", f"{torch.get_num_threads()} threads; {known}; {bf16} hardware for bfloat16"
    if not torch.cuda.is_available():
        build = "" if torch.version.cuda else ", which is built without CUDA"
        yield "cuda", f"no NVIDIA GPU is visible to this torch{build}"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield (
            f"cuda:{index}",
            f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, "
            f"{gpu.multi_processor_count} SMs, {gpu.total_memory / 2**30:.0f} GiB",
        )


def implementation(op: str, kind: str) -> str:
    """Return which implementation runs an op on ``cuda`` or ``cpu`` tensors."""
    if not hasattr(torch.ops.ivcl_fast, op):
        return "not registered"
    if reason := unsupported_reason(torch.device(kind)):
        return f"plain PyTorch, because {reason}"
    return "Triton" if kind == "cuda" or _triton.INTERPRET else f"C++ for {_ext.ISA}"


@dataclass(frozen=True)
class InfoConfig:
    """Information to show."""

    plan: bool = False
    """Predict the memory of a training run. Takes all flags of ivcl_fast.train, such as --preset
    base64 --batch-size 88."""
    ranks: int = 1
    """For --plan: GPUs that share the batch."""


def show() -> None:
    """Print all tables."""
    for title, rows in sections().items():
        print(title)
        width = max(map(len, rows))
        for name, state in rows.items():
            print(f"  {name:<{width}}  {state}")


def main() -> None:
    if "--plan" not in sys.argv:
        parse(InfoConfig, "info", __doc__)
        show()
        return
    from ivcl_fast.report import plan  # the models take seconds to import

    config, flags = parse(InfoConfig, "info", __doc__, return_unknown_args=True)
    require_at_least(config, 1, "ranks")
    plan.show(parse_run(flags), config.ranks)


if __name__ == "__main__":
    run_command(main)
