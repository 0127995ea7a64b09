"""``python -m ivcl_fast.info``: what is installed, what this machine can do, and what runs where.

For each kernel and attention backend: available, or the reason why not.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
import tyro

from ivcl_fast.errors import run_command
from ivcl_fast.kernels import _ext, _triton, attention, unsupported_reason
from ivcl_fast.training import hardware

PACKAGES = (
    "ivcl_fast", "torch", "triton", "nvidia-dali-cuda130", "av", "flash-attn", "flash-attn-4",
    "xformers", "timm", "safetensors", "huggingface-hub",
)  # fmt: skip
OPS = (
    "embed_patches", "short_attention", "add_layer_norm", "bias_gelu", "restore_tokens",
    "patch_loss", "sample_masks",
)  # fmt: skip
CPU_FEATURES = ("avx2", "avx512", "avx512_bf16", "amx_tile", "amx_bf16")


def sections() -> dict[str, dict[str, str]]:
    """Title to name to state, every value one line."""
    return {
        "versions": {"python": platform.python_version()} | {p: installed(p) for p in PACKAGES},
        "devices": dict(devices()),
        "kernels": {op: serving(op) for op in OPS},
        "attention": attention.backend_status(),
        "torch.compile": {
            kind: hardware.compile_unsupported_reason(torch.device(kind)) or "available"
            for kind in ("cpu", "cuda")
            if kind == "cpu" or torch.cuda.is_available()
        },
    }


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def devices() -> Iterator[tuple[str, str]]:
    """The CPU and every CUDA device, with what they compute fast in."""
    cpu = torch.device("cpu")
    features = [
        name for name in CPU_FEATURES if getattr(torch.cpu, f"_is_{name}_supported", bool)()
    ]
    bf16 = "fast" if hardware.has_fast_bf16(cpu) else "slow"
    known = ", ".join(features) or torch.backends.cpu.get_cpu_capability()
    yield "cpu", f"{torch.get_num_threads()} threads, {known}, bfloat16 {bf16}"
    if not torch.cuda.is_available():
        yield (
            "cuda",
            "no NVIDIA GPU is visible to this torch"
            + ("" if torch.version.cuda else ", which is built without CUDA"),
        )
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield (
            f"cuda:{index}",
            (
                f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} SMs, "
                f"{gpu.total_memory / 2**30:.0f} GiB"
            ),
        )


def serving(op: str) -> str:
    """What runs an op on each kind of device."""
    if not hasattr(torch.ops.ivcl_fast, op):
        return "not registered"
    states = []
    for kind in ("cuda", "cpu"):
        reason = unsupported_reason(torch.device(kind))
        kernel = "Triton" if kind == "cuda" or _triton.INTERPRET else f"C++ for {_ext.ISA}"
        how = kernel if reason is None else f"PyTorch, {reason}"
        states.append(f"{kind}: {how}")
    return "; ".join(states)


def show() -> None:
    """Show versions, devices, kernels and attention backends, and why something is missing."""
    for title, rows in sections().items():
        print(title)
        width = max(map(len, rows))
        for name, state in rows.items():
            print(f"  {name:<{width}}  {state}")


if __name__ == "__main__":
    run_command(lambda: tyro.cli(show, prog="python -m ivcl_fast.info"))
