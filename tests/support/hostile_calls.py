"""Calls of the ops with arguments that do not fit, drawn from a seed.

``python -m tests.support.hostile_calls [NUMBER [SEED]]`` makes that many. Each must return outputs
of the shapes and dtypes that the op's fake promises, all of whose memory can be read, or raise a
Python exception. Behind its arguments lies memory that cannot be read. A crash ends the process;
the seed of the call that it printed last repeats it.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from ivcl_fast import kernels  # noqa: F401 - registers the ops
from ivcl_fast.kernels import _ext

REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, MemoryError, ArithmeticError)
"""What an op may raise. ``NotImplementedError``, for a layout without kernels, is among them."""
INTEGERS = [-(2**63), -(2**31), -3, -1, 0, 1, 2, 3, 5, 7, 64, 2**16 + 1, 2**31, 2**40, 2**63 - 1]
FLOATS = [0.0, -1.0, 1e-45, 1e300, float("inf"), float("nan")]
DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int32,
    torch.int64, torch.bool, torch.complex64,
]  # fmt: skip


def arguments(draw: random.Random) -> dict[str, list[Any]]:
    """Arguments that fit, by the name of the op, of small random sizes, some of them zero."""
    f, n, k, d, r = (draw.choice([0, 1, 2, 3, 5, 8, 17]) for _ in range(5))
    k = min(k, n)
    dtype = draw.choice([torch.float32, torch.bfloat16])

    def floats(*shape: int, as_input: bool = True) -> Tensor:
        return torch.randn(shape).to(dtype if as_input else torch.float32)

    rows = torch.randint(256, (f, n, r), dtype=torch.uint8)
    ids = torch.rand(f, n).argsort(1)[:, :k]
    heads = draw.choice([1, 2, 4])
    dropout = draw.choice([[], [0.0, None], [0.3, torch.tensor(7)]])
    embedding = [rows, ids, floats(d, r, as_input=False), floats(d), floats(n, d), 0.5, 0.25]
    q, s = (draw.choice([0, 1, 2, 5, 17]) for _ in range(2))
    mixture = [floats(f, s, n, 4 * q), *(torch.randn(x) for x in ((f, n, 3 * q), (n, 3, q)))]
    mixed = [torch.randn(f, n, 3 * q), torch.randn(f, s + 1, n, q)]
    return {
        "bias_gelu": [floats(f, n, d), floats(d)],
        "bias_gelu_backward": [floats(f, n, d), floats(f, n, d), floats(d)],
        "add_layer_norm": [floats(f, n, d), floats(f, n, d), floats(d), floats(d), 1e-6],
        "add_layer_norm_backward": [
            draw.choice([None, floats(f, d)]), floats(f, d), floats(f, d), floats(d), 1e-6, dtype
        ],
        "layer_norm": [floats(f, d), floats(d), floats(d), 1e-6, dtype],
        "embed_patches": [*embedding, dtype],
        "embed_patches_backward": [floats(f, k, d), *embedding],
        "linear_gradients": [floats(f, n, d), floats(f, n, r), dtype],
        "mixture_loss": [*mixture, 3.0, 0.1, 0.1],
        "mixture_loss_backward": [torch.randn(()), *mixture, *mixed, 3.0, 0.1, 0.1],
        "patch_loss": [floats(f, k, r), rows, ids, True, 0.5, 0.25, draw.random() < 0.5],
        "patch_loss_backward": [torch.randn(()), floats(f, k, r)],
        "restore_tokens": [
            floats(f, k, d), ids, floats(d), floats(n, d), draw.choice([None, floats(f, 2, d)])
        ],
        "restore_tokens_backward": [floats(f, n + 1, d), ids, floats(d), floats(n, d)],
        "sample_masks": [torch.randint(-99, 99, (f,)), n, k],
        "short_attention": [floats(f, n, 3 * heads * d), heads, *dropout],
        "short_attention_backward": [
            floats(f, n, heads * d), floats(f, n, 3 * heads * d), heads, *dropout
        ],
    }  # fmt: skip


NAMES = [name for name, _ in _ext.calls()] or [*arguments(random.Random(0))]


def change_tensor(x: Tensor, draw: random.Random) -> Any:
    """A tensor that does not fit where ``x`` did, or fits but lies in memory in another way."""
    shape = list(x.shape)
    kind = draw.randrange(10)
    if kind == 0:
        return x.to(draw.choice(DTYPES))
    if kind == 1 and shape:  # another size
        shape[draw.randrange(len(shape))] = draw.choice([0, 1, 2, 4, 9, 33, 100])
        return torch.ones(shape, dtype=x.dtype)
    if kind == 2 and shape:  # one dimension fewer
        del shape[draw.randrange(len(shape))]
        return torch.ones(shape, dtype=x.dtype)
    if kind == 3:
        return x.unsqueeze(draw.randint(0, x.ndim))
    if kind == 4 and x.ndim > 1:
        return x.transpose(draw.randrange(x.ndim), draw.randrange(x.ndim))
    if kind == 5 and x.numel():  # no memory between its elements
        return x.flatten()[0].expand(shape)
    if kind == 6 and x.dtype == torch.int64 and x.numel():  # an id out of bounds
        x = x.clone()
        x.view(-1)[draw.randrange(x.numel())] = draw.choice(INTEGERS)
        return x
    if kind == 7 and shape:  # no elements, but sizes whose products overflow
        sizes = [draw.choice([2**8, 2**20]) for _ in shape]
        sizes[draw.randrange(len(shape))] = 0
        return torch.empty(sizes, dtype=x.dtype)
    if kind == 8:
        return draw.choice([None, x.to("meta"), x.to_sparse(), 1.0, "text", [x]])
    return torch.full(shape, draw.choice([0, 1, 255]), dtype=x.dtype)


def change(value: Any, draw: random.Random) -> Any:
    if isinstance(value, Tensor):
        return change_tensor(value, draw)
    if isinstance(value, torch.dtype):
        return draw.choice(DTYPES)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice(INTEGERS)
    return draw.choice(FLOATS) if isinstance(value, float) else torch.ones(2, 3)


def at_the_end(x: Tensor) -> Tensor:
    """A copy behind whose last byte nothing can be read: that crashes the process."""
    if x.device.type != "cpu" or not x.numel() or not x.is_contiguous():
        return x
    pages = mmap.PAGESIZE * -(-x.nbytes // mmap.PAGESIZE)
    area = mmap.mmap(-1, pages + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(area)) + pages
    nothing = ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), 0)
    assert nothing == 0, "mprotect"
    copy = torch.frombuffer(area, dtype=x.dtype, count=x.numel(), offset=pages - x.nbytes)
    return copy.view(x.shape).copy_(x)


def read(outputs: Any, expected: Any) -> None:
    """Read all memory of an op's outputs, and compare their sizes with its fake's."""
    outputs, expected = ((x,) if isinstance(x, Tensor) else x for x in (outputs, expected))
    for got, fake in zip(outputs, expected, strict=True):
        assert got.shape == fake.shape and got.dtype == fake.dtype, (got.shape, fake.shape)
        assert got.is_contiguous() and fake.is_contiguous(), (got.stride(), fake.stride())
        if got.device.type != "meta":
            got.clone()


def on_meta(args: list[Any]) -> list[Any]:
    """The arguments of a call of the op's fake."""
    return [a.to("meta") if isinstance(a, Tensor) else a for a in args]


def call(seed: int) -> str:
    """Make the call of a seed; returns ``"returned"`` or the name of the exception."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    name = draw.choice(NAMES)
    op = getattr(torch.ops.ivcl_fast, name)
    args = arguments(draw)[name]
    for at in draw.sample(range(len(args)), min(len(args), draw.choice([0, 1, 1, 1, 2, 3]))):
        args[at] = change(args[at], draw)
    args = [at_the_end(a) if isinstance(a, Tensor) else a for a in args]
    try:
        outputs = op(*args)
    except REFUSALS as error:
        return type(error).__name__
    read(outputs, op(*on_meta(args)))
    return "returned"


def main() -> None:
    given = [int(x) for x in sys.argv[1:]]
    number, seed = (given + [10_000, 0][len(given) :])[:2]
    found: Counter[str] = Counter()
    for n in range(seed, seed + number):
        print(f"\rseed {n}", end="", file=sys.stderr, flush=True)
        found[call(n)] += 1
    print(f"\n{number} calls on {_ext.ISA or 'PyTorch'}: {dict(found)}")


if __name__ == "__main__":
    main()
