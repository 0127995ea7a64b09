"""Kernel launches, products and bytes of a training step on a GPU, counted without one.

The step runs on tensors without storage, and every operation that reaches a device is counted: the
fused ops by what their Triton functions launch, operations on many tensors by how many launches
CUDA splits them into, and views not at all.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.kernels import _op
from ivcl_fast.kernels.launch import cdiv, record
from ivcl_fast.kernels.linear import cast_together, weights_to_cast
from ivcl_fast.training.loop import nan_unless_finite
from ivcl_fast.training.optim import Schedule, make_optimizers
from ivcl_fast.training.seeds import clip_seeds

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "lift_fresh", "device",
        "promote_types"}  # fmt: skip
"""Operations that launch nothing, besides views."""
TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
"""Tensors that one launch takes, by the number of lists (ATen/native/cuda/MultiTensorApply.cuh)."""
OVERWRITTEN = {"copy_", "_foreach_copy_", "zero_", "fill_", "_foreach_zero_"}
"""Operations that do not read what they write."""
SHAPE_ONLY = {"new_zeros", "ones_like", "zeros_like", "select_backward"}
"""Operations that take a shape, or a small part, of their argument."""
RATE, MEMORY = 700e12, 3.0e12
"""FLOP/s of products in bfloat16, and bytes/s of memory, both assumed."""
BF16 = torch.bfloat16
CHUNK, BLOCKS = 65536, 320
"""Elements of a block and blocks of a launch, from there."""
UNSORTED = 3072
"""Indices whose gradients one launch adds; more are sorted (ATen/native/cuda/Embedding.cu)."""


def multi_tensor_launches(sizes: list[int], lists: int) -> int:
    """Return into how many launches CUDA splits an operation on tensors of these sizes."""
    launches = blocks = tensors = 0
    for size in sizes:
        tensors += 1
        chunks = cdiv(size, CHUNK)
        for chunk in range(1, chunks + 1):
            blocks += 1
            if blocks == BLOCKS or (tensors == TENSORS[lists] and chunk == chunks):
                launches, blocks, tensors = launches + 1, 0, int(chunk < chunks)
    return launches + (blocks > 0)


@dataclass
class Cost:
    """What operations take: launches, FLOPs of products, bytes, and seconds without launches."""

    launches: int = 0
    flops: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class StepCounter(TorchDispatchMode):
    """Counts launches in ``by_op``, by the name of the operation, and what the host does for them.

    ``dispatched`` counts the operations that PyTorch dispatches, also inside of fused ones: those
    that launch nothing, such as views and new tensors, take the host as long as others. ``costs``
    has what operations take on the device; those of linear gradients are PyTorch's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_op: Counter[str] = Counter()
        self.dispatched = 0
        self.costs: defaultdict[str, Cost] = defaultdict(Cost)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = op(*args, **kwargs)
        namespace, name = op.namespace, op.overloadpacket.__name__
        self.dispatched += namespace in ("aten", "ivcl_fast")
        if namespace == "ivcl_fast":
            self._count_fused(op, name, args, result)
        elif namespace == "aten" and not op.is_view and name not in FREE:
            self._add(op, launches_of(name, args, kwargs), args, result)
        return result

    def _count_fused(self, op: Any, name: str, args: Any, result: Any) -> None:
        """Count what the op's function for CUDA launches, on tensors of the same shapes."""
        inner = StepCounter()
        on_meta = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, args)
        with record() as recorded, inner:
            _op.TRITON[name](*on_meta)
        if recorded:
            self._add(op, len(recorded), args, result)
        self.by_op[name] += inner.by_op.total()
        self.dispatched += inner.dispatched
        for part, cost in inner.costs.items():
            self.costs[part if name == "linear_gradients" else name] += cost

    def _add(self, op: Any, launches: int, args: Any, result: Any) -> None:
        name = op.overloadpacket.__name__
        self.by_op[name] += launches
        flops, moved = flops_of(op, args, result), bytes_of(op, args, result)
        self.costs[name] += Cost(launches, flops, moved, max(flops / RATE, moved / MEMORY))


def launches_of(name: str, args: Any, kwargs: Any) -> int:
    """Return the launches of one of PyTorch's operations on a GPU."""
    if name.startswith(("_foreach_", "_fused_")):
        lists = [a for a in args if isinstance(a, list | tuple) and a and isinstance(a[0], Tensor)]
        lists = lists[:4] if name.startswith("_fused_adamw") else lists
        launches = multi_tensor_launches([x.numel() for x in lists[0]], len(lists))
        return launches + 2 * (name == "_foreach_norm")  # clears its partial sums, and adds them up
    if name in ("addmm", "baddbmm"):
        # A matrix that is added is copied to the result first; a bias is part of the product.
        return 2 if args[0].ndim > 1 else 1
    if name in ("cat", "stack"):
        return cdiv(len(args[0]), 128)
    if name == "embedding_dense_backward":
        return 6 if args[1].numel() > UNSORTED else 1
    return 1


def flops_of(op: Any, args: Any, result: Any) -> int:
    """Return the FLOPs of an operation's products. Other arithmetic counts as nothing."""
    name = op.overloadpacket.__name__
    if name.startswith("short_attention"):
        qkv = args[1 if name.endswith("backward") else 0]
        sequences, tokens, width = qkv.shape
        # Two products forward; backward computes one of them again, and four gradients.
        products = 5 if name.endswith("backward") else 2
        return 2 * products * sequences * tokens**2 * (width // 3)
    if name.startswith("embed_patches"):
        rows, ids, weight = args[1:4] if name.endswith("backward") else args[:3]
        return 2 * ids.numel() * rows.shape[-1] * weight.shape[0]
    formula = flop_registry.get(op.overloadpacket)
    return 0 if formula is None else formula(*args, out_val=result)


def bytes_of(op: Any, args: Any, result: Any) -> int:
    """Return the bytes of an operation's tensors: each read once as a whole, or written once."""
    name, total = op.overloadpacket.__name__, 0
    for argument, value in zip(op._schema.arguments, args, strict=False):
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        is_written &= not (name.startswith("_fused_") and argument.name == "grads")  # unless scaled
        is_read = name not in SHAPE_ONLY and not (is_written and name in OVERWRITTEN)
        total += (is_read + is_written) * size_of(value)
    if not any(r.alias_info is not None for r in op._schema.returns):
        total += size_of(result)
    if name == "index_add":  # backward of a selection, in place on a GPU: only what was selected
        index, source = args[2], args[3]
        return size_of(index) + 3 * size_of(source)
    if name in ("addmm", "baddbmm") and launches_of(name, args, {}) == 2:
        total += 2 * size_of(result)  # the copy of what is added: written, and read by the product
    return total


def size_of(value: Any) -> int:
    """Return the bytes of all tensors in ``value``; what is broadcast counts once."""
    total = 0
    for x in tree_leaves(value):
        if isinstance(x, Tensor):
            lengths = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or not n)
            total += math.prod(lengths) * x.element_size()
    return total


def count_step(cfg: IVCLConfig, clips: int) -> dict[str, StepCounter]:
    """Count a pretraining step in bfloat16, with a counter for each part."""
    parts: dict[str, StepCounter] = {}

    def part(name: str) -> StepCounter:
        parts[name] = StepCounter()
        return parts[name]

    with _op.as_on_a_gpu(), FakeTensorMode():
        model = IVCL(cfg)
        adamw, own = make_optimizers(model, Schedule(1, optimizer="muon"), capturable=True)
        shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
        rows, ids = torch.zeros(shape, dtype=torch.uint8), torch.zeros(clips, dtype=torch.int64)
        for step in range(2):  # the first one makes the optimisers' state
            casts = cast_together(weights_to_cast(model), BF16)
            with part("forward and backward"), casts:
                with torch.autocast("cpu", BF16):
                    loss = model(rows, seed=clip_seeds(0, step, ids)).loss
                loss.backward()
            with part("clipping"):
                norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
                nan_unless_finite(loss.detach(), norm)
            with part("AdamW"):
                adamw.step()
            with part("Muon"):
                own.step()
            own.zero_grad()
            adamw.zero_grad()
    return parts
