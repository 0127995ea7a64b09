"""The model's ops as fused kernels, one file each, registered under ``torch.ops.ivcl_fast``.

* ``transformer_block``: a whole pre-norm block on a CPU, for short sequences.
* ``embed_patches``: uint8 rows of the visible patches -> tokens. One pass gathers, normalises,
  multiplies by the patch embedding, and adds bias and position.
* ``short_attention``: multi-head attention of short sequences, read in place from packed qkv, also
  with dropout of its weights.
* ``kernels.attention.attention``: attention by the best backend for the shape.
* ``add_layer_norm``: residual sum and its LayerNorm; ``layer_norm`` is the same without the sum.
* ``bias_gelu``: bias + exact GELU.
* ``linear``: linear layer; on AMX both parameters' gradients in one pass.
* ``restore_tokens``: puts visible tokens back among mask tokens, plus position.
* ``patch_loss``: mean squared error against uint8 patches, optionally normalised per patch.
* ``mixture_loss``: frames as mixtures of the slots' predictions, and their error (slot attention).
* ``sample_masks``: random split of every frame's patches into visible and masked ones;
  ``hash_seeds`` makes the seeds of frames.

Each function takes ordinary tensors, differentiates, compiles with ``fullgraph=True``, and runs the
best implementation for their device and dtype: Triton on CUDA, C++ on a CPU (float32, bfloat16),
else plain PyTorch. :func:`unsupported_reason` returns why no kernel supports a device and dtype,
:func:`dispatches` counts the calls of each implementation.

Derivatives: the backward pass has kernels. Forward mode, second derivatives and ``torch.func`` run
in plain PyTorch. PyTorch does not support second derivatives of ``kernels.attention.attention``
over more than 1,024 tokens on a CPU, except with ``backend="eager"``.

Reproducibility: no kernel uses atomics, so the same call on the same device gives the same bits
every time. The C++ kernels also give the same bits for any number of threads. The matrix products
of PyTorch's libraries do not, because they split long sums between threads, such as a weight's
gradient over tokens. They compute ``linear``'s output and dx, all of ``linear`` without AMX, and
every other call of ``torch.nn.functional.linear``. For equal bits on machines with different
numbers of cores, set ``OMP_NUM_THREADS``.

Import this package as ``ivcl_fast.kernels``, never as a top-level ``kernels``.
"""

from __future__ import annotations

if __name__ == "kernels":
    # A checkout on sys.path hides Hugging Face's package of that name, which transformers needs.
    import sys
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    _ROOT = Path(__file__).resolve().parent.parent
    _SPEC = PathFinder.find_spec("kernels", [p for p in sys.path if Path(p).resolve() != _ROOT])
    if _SPEC and _SPEC.loader:
        sys.modules["kernels"] = module_from_spec(_SPEC)
        _SPEC.loader.exec_module(sys.modules["kernels"])
else:
    from ._op import autocast_dtype, dispatches, has_kernel, unsupported_reason
    from .add_layer_norm import add_layer_norm, layer_norm
    from .bias_gelu import bias_gelu
    from .embed_patches import embed_patches
    from .linear import linear
    from .mixture_loss import mixture_loss
    from .patch_loss import patch_loss
    from .restore_tokens import restore_tokens
    from .sample_masks import hash_seeds, sample_masks
    from .short_attention import short_attention
    from .transformer_block import transformer_block

__all__ = [
    "add_layer_norm",
    "autocast_dtype",
    "bias_gelu",
    "dispatches",
    "embed_patches",
    "has_kernel",
    "hash_seeds",
    "layer_norm",
    "linear",
    "mixture_loss",
    "patch_loss",
    "restore_tokens",
    "sample_masks",
    "short_attention",
    "transformer_block",
    "unsupported_reason",
]
