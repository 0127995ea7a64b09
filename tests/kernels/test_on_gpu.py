"""What only a GPU can test: sizes beyond 16 and 31 bits, finite gradients, whole models.

Most of these also run on a CPU, with small sizes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ivcl_fast import IVCL, IVCLConfig, SlotAutoencoder, reference, slot_autoencoder
from ivcl_fast.kernels import _triton, dispatches
from ivcl_fast.kernels.attention import Inputs, attention, eager_attention, not_supported_reasons
from tests.kernels.ops.table import OPS
from tests.support.numerics import run_with_grads

GPU = pytest.mark.gpu
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
pytestmark = pytest.mark.skipif(_triton.INTERPRET, reason="the interpreter is slow")


def assert_near(ours: Tensor, expected: Tensor, tolerance: float, what: str = "") -> None:
    """Check the norm of the difference relative to the norm of ``expected``; NaN always fails."""
    error = (ours.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-12)
    assert error <= tolerance, f"{what}: differs by {error:.2e} of its norm"


# --- Many frames ----------------------------------------------------------------------------------


SIZES = {
    "short_attention": (12, 1, 64), "add_layer_norm": (4, 768), "bias_gelu": (4, 768),
    "embed_patches": (64, 4, 192, 64), "restore_tokens": (16, 64, 0, 64),
    "mixture_loss": (3, 16, 16), "patch_loss": (64, 48, 192),
}  # fmt: skip
"""All sizes but the number of frames, of ops whose frames do not depend on each other."""


@pytest.mark.parametrize(
    "device, frames, elements",
    [
        ("cpu", 9, 0),
        pytest.param("cuda", 70_000, 0, marks=GPU, id="grid"),
        pytest.param("cuda", 0, 2**31, marks=[GPU, pytest.mark.large], id="offsets"),
    ],
)
@pytest.mark.parametrize("name", SIZES)
def test_many_frames(name, device, frames, elements):
    """More frames than a grid's second axis holds, and more elements than 31 bits count.

    The last frames have the same results as when they are computed alone.
    """
    if elements and torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("needs 60 GB of GPU memory")
    op, kind = OPS[name], {"dtype": torch.bfloat16, "device": device}
    one = op.inputs((1, *SIZES[name]), **kind)
    largest = max(x.numel() for x in pytree.tree_leaves(one) if isinstance(x, Tensor))
    frames = frames or elements // largest + 9
    torch.manual_seed(0)
    inputs = op.inputs((frames, *SIZES[name]), **kind)

    def results(inputs: list) -> list[Tensor]:
        count = len(inputs[0])

        def run(*args):  # the sum over frames of a mean
            return op.fused(*args) * count if op.is_loss else op.fused(*args)

        with torch.no_grad():
            ones = [torch.ones_like(x) for x in as_tuple(run(*inputs))]
        outputs, gradients = run_with_grads(run, inputs, ones)
        return [x for x in outputs + gradients if x.ndim and len(x) == count]

    many = results(inputs)
    for start in (0, frames // 2, frames - 3):
        few = pytree.tree_map_only(
            Tensor, lambda x, at=start: x[at : at + 3] if len(x) == frames else x, inputs
        )
        for got, expected in zip(many, results(few), strict=True):
            assert_near(got[start : start + 3], expected, 1e-2, f"{name}, from {start}")


def as_tuple(out: Tensor | tuple) -> tuple:
    return out if isinstance(out, tuple) else (out,)


# --- Gradients ------------------------------------------------------------------------------------


def randn_bf16(*shape: int, device: str) -> Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=device)


@pytest.mark.parametrize("tokens", [1, 7, 12, 20, 29, 44, 64, 65, 100, 127, 128, 129, 197, 448])
@pytest.mark.parametrize("backend", ["short", "flash", "eager"])
@pytest.mark.parametrize("device", DEVICES)
def test_attention_gradients_are_correct_at_every_length(device, backend, tokens):
    """cuDNN's backward has returned NaN at some lengths."""
    inputs = Inputs(tokens, 64, torch.bfloat16, torch.device(device))
    if reasons := not_supported_reasons(backend, inputs):
        pytest.skip(f"{backend}: {', '.join(reasons)}")
    torch.manual_seed(tokens)
    qkv, weights = (randn_bf16(3, tokens, width, device=device) for width in (384, 128))
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
