"""What only a GPU can test: sizes beyond 16 and 31 bits, finite gradients, whole models.

Most of these also run on a CPU, with small sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ivcl_fast import (
    IVCL,
    IVCLConfig,
    SlotAutoencoder,
    kernels,
    reference,
    slot_autoencoder,
)
from ivcl_fast.kernels import _triton, dispatches
from ivcl_fast.kernels.attention import (
    Inputs,
    attention,
    eager_attention,
    not_supported_reasons,
)

GPU = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
pytestmark = pytest.mark.skipif(_triton.INTERPRET, reason="the interpreter is slow")


def assert_near(ours: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Check the norm of the difference relative to the norm of ``expected``; NaN always fails."""
    error = (ours.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-12)
    assert error <= tolerance, f"{what}: differs by {error:.2e} of its norm"


# --- Many frames ----------------------------------------------------------------------------------


class Case(NamedTuple):
    """An op whose frames do not depend on each other."""

    make_inputs: Callable[[int, str], list[Tensor]]
    """From the number of frames and the device to tensors with that many frames."""
    run: Callable[..., Tensor]
    per_frame: int
    """Elements of the largest tensor."""


def randn_bf16(*shape: int, device: str) -> Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=device)


def rows(frames: int, device: str) -> Tensor:
    return torch.randint(256, (frames, 64, 192), dtype=torch.uint8, device=device)


def ids(frames: int, count: int, device: str) -> Tensor:
    seeds = torch.arange(frames, device=device)
    return kernels.sample_masks(seeds, 64, count)[0]


def fixed(*shape: int, like: Tensor) -> Tensor:
    """A parameter that does not depend on the number of frames."""
    return torch.linspace(-1, 1, torch.Size(shape).numel(), device=like.device).view(shape)


CASES = {
    "short_attention": Case(
        lambda n, device: [randn_bf16(n, 12, 192, device=device)],
        lambda qkv: kernels.short_attention(qkv, 1),
        12 * 192,
    ),
    "add_layer_norm": Case(
        lambda n, device: [randn_bf16(n, 4, 768, device=device) for _ in range(2)],
        lambda x, residual: sum(
            kernels.add_layer_norm(
                x, residual, fixed(768, like=x).bfloat16(), fixed(768, like=x).bfloat16()
            )
        ),
        4 * 768,
    ),
    "bias_gelu": Case(
        lambda n, device: [randn_bf16(n, 4, 768, device=device)],
        lambda x: kernels.bias_gelu(x, fixed(768, like=x)),
        4 * 768,
    ),
    "embed_patches": Case(
        lambda n, device: [rows(n, device), ids(n, 4, device)],
        lambda rows, ids: kernels.embed_patches(
            rows, ids, fixed(64, 192, like=rows), fixed(64, like=rows), fixed(64, 64, like=rows),
            0.5, 0.5, torch.bfloat16,
        ),
        64 * 192,
    ),
    "restore_tokens": Case(
        lambda n, device: [randn_bf16(n, 16, 64, device=device), ids(n, 16, device)],
        lambda visible, ids: kernels.restore_tokens(
            visible, ids, fixed(64, like=visible), fixed(64, 64, like=visible)
        ),
        64 * 64,
    ),
    "mixture_loss": Case(
        lambda n, device: [randn_bf16(n, 3, 16, 64, device=device)],
        lambda drawn: len(drawn) * kernels.mixture_loss(
            drawn, fixed(16, 48, like=drawn).expand(len(drawn), -1, -1),
            fixed(16, 3, 16, like=drawn), 3.0, 0.1, 0.1,
        )[0],
        3 * 16 * 64,
    ),
    "patch_loss": Case(
        lambda n, device: [
            randn_bf16(n, 48, 192, device=device), rows(n, device), ids(n, 48, device),
        ],
        # The sum over frames, so that a frame's gradient does not depend on their number.
        lambda pred, rows, ids: kernels.patch_loss(pred, rows, ids, True, 0.5, 0.5) * len(pred),
        64 * 192,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "device, frames, elements",
    [
        ("cpu", 9, 0),
        pytest.param("cuda", 70_000, 0, marks=GPU, id="grid"),
        pytest.param("cuda", 0, 2**31, marks=[GPU, pytest.mark.large], id="offsets"),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_many_frames(name, device, frames, elements):
    """More frames than a grid's second axis holds, and more elements than 31 bits count.

    The last frames have the same results as when they are computed alone.
    """
    if elements and torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("needs 60 GB of GPU memory")
    case = CASES[name]
    frames = frames or elements // case.per_frame + 9
    torch.manual_seed(0)
    tensors = case.make_inputs(frames, device)
    many = forward_backward(case, tensors)
    for start in (0, frames // 2, frames - 3):
        few = forward_backward(case, [x[start : start + 3].detach() for x in tensors])
        for got, expected in zip(many, few, strict=True):
            if expected.ndim:
                assert_near(got[start : start + 3], expected, 1e-2, f"{name}, from {start}")


def forward_backward(case: Case, tensors: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of float inputs, for an output gradient of ones."""
    floats = [x.requires_grad_() for x in tensors if x.is_floating_point()]
    with torch.set_grad_enabled(bool(floats)):
        out = case.run(*tensors)
    if not floats:
        return [out]
    weights = torch.ones((), dtype=out.dtype, device=out.device).expand_as(out)
    return [out.detach(), *torch.autograd.grad(out, floats, weights)]


# --- Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 7, 12, 20, 29, 44, 64, 65, 100, 127, 128, 129, 197, 448])
@pytest.mark.parametrize("backend", ["short", "flash", "eager"])
@pytest.mark.parametrize("device", DEVICES)
def test_attention_gradients_are_correct_at_every_length(device, backend, tokens):
    """cuDNN's backward has returned NaN at some lengths."""
    inputs = Inputs(tokens, 64, torch.bfloat16, torch.device(device))
    if reasons := not_supported_reasons(backend, inputs):
        pytest.skip(f"{backend}: {', '.join(reasons)}")
    torch.manual_seed(tokens)
    qkv, weights = (
        randn_bf16(3, tokens, 384, device=device),
        randn_bf16(3, tokens, 128, device=device),
    )
    results = []
    for function, x in ((attention, qkv), (eager_attention, qkv.float())):
        x.requires_grad_()
        out = function(x, 2, *([backend] if function is attention else []))
        results.append((out, *torch.autograd.grad(out, x, weights.to(out.dtype))))
    for got, expected in zip(*results, strict=True):
        assert_near(got, expected, 2e-2)


# --- Whole models ---------------------------------------------------------------------------------

SHALLOW = dict(depth=2, temporal_depth=2, decoder_depth=2, num_frames=4, num_query_frames=2)
OBJECTS = dict(objective="slot_attention", num_slots=5, patch_size=4)
PRECISIONS = pytest.mark.parametrize(
    "amp, tolerance", [(False, 1e-4), (True, 3e-2)], ids=["float32", "bfloat16"]
)


@GPU
@PRECISIONS
@pytest.mark.parametrize("preset", ["tiny", "base64", "base224"])
def test_training_step_parity_with_the_reference(preset, amp, tolerance):
    cfg = IVCLConfig.preset(preset, **SHALLOW)
    fast, plain = pair(IVCL, reference.IVCL, "cuda", cfg)
    video = clips(cfg, "cuda")
    seed = torch.tensor([3, 5], device="cuda")
    check_gradients(fast, plain, lambda model: model(video, seed=seed).loss, amp, tolerance)


@GPU
@PRECISIONS
def test_slot_attention_parity_with_the_reference(amp, tolerance):
    cfg = IVCLConfig.preset("tiny", **SHALLOW, **OBJECTS)
    fast, plain = pair(SlotAutoencoder, slot_autoencoder.SlotAutoencoder, "cuda", cfg)
    video = clips(cfg, "cuda")
    check_gradients(fast, plain, lambda model: model(video).loss, amp, tolerance)


def clips(cfg: IVCLConfig, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = 2, cfg.num_frames, cfg.num_patches, cfg.patch_dim
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)


def pair(fast_class, plain_class, device: str, cfg: IVCLConfig):
    models = []
    for model_class in (fast_class, plain_class):
        torch.manual_seed(0)
        models.append(model_class(cfg).to(device))
    return models


def check_gradients(fast, plain, loss, amp: bool, tolerance: float) -> None:
    """Compare loss and all gradients; check that every op ran as a Triton kernel."""
    before = dispatches()
    losses = []
    for model, half_precision in ((fast, amp), (plain, False)):
        with torch.autocast("cuda", torch.bfloat16, enabled=half_precision):
            value = loss(model)
        value.backward()
        losses.append(value.detach())
        if model is fast:
            used = dispatches() - before
    assert_near(losses[0], losses[1], tolerance, "loss")
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and ours.grad.isfinite().all(), name
        a, b = ours.grad, theirs.grad
        if name.endswith("qkv.bias"):  # the true gradient of the keys' third is zero
            a, b = (x.view(3, -1)[[0, 2]] for x in (a, b))
        assert_near(a, b, tolerance, name)
    assert used and {how for _, how in used} == {"triton"}, used


@GPU
@pytest.mark.parametrize("model_class, sizes", [(IVCL, {}), (SlotAutoencoder, OBJECTS)])
def test_compiled_blocks_match_eager_and_compile_once(model_class, sizes):
    cfg = IVCLConfig.preset("tiny", **SHALLOW, **sizes)
    compiled, eager = pair(model_class, model_class, "cuda", cfg)
    compiled.compile_blocks()
    video, seed = clips(cfg, "cuda"), torch.tensor([3, 5], device="cuda")

    def step(model, number):
        drawn = {"seed": seed + number} if model_class is IVCL else {}
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(video, **drawn).loss
        loss.backward()
        return loss.detach()

    for number in range(3):
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            ours = step(compiled, number)
        assert_near(ours, step(eager, number), 1e-2)
    for (name, a), b in zip(compiled.named_parameters(), eager.parameters(), strict=True):
        if not name.endswith("qkv.bias"):  # the gradient of the keys' third is next to zero
            assert_near(a.grad, b.grad, 5e-2, name)
