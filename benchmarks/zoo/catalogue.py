"""The models: two blocks each, of the width of the family's base model, with random weights.

A model is built for an image size that gives it about a wanted number of tokens: ``GRIDS`` patches
a side and, in most, a class token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo import rivals
from benchmarks.zoo.environments import HERE

GRIDS = {17: 4, 50: 7, 197: 14, 577: 24, 785: 28}
"""Patches a side, by the number of tokens with a class token."""
BATCHES = {17: 24, 50: 8, 197: 2, 577: 1, 785: 1}
WIDTH: dict[str, int] = {}
"""Arguments of timm's models for another width than the family's; for tests."""
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Model:
    """One entry: where its package is, how it is built, and what it is given."""

    name: str
    environment: str
    package: str
    """The distribution whose version is reported."""
    build: Callable[[int], nn.Module]
    """Makes the model for a number of patches a side."""
    inputs: Callable[[int, int], Inputs]
    """Makes a batch of a size for a number of patches a side."""
    rival: rivals.Rival | None = None
    """The one-line change that a user would try first; None where the model has it already."""
    also: str = ""
    """What the table adds to the name."""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.also}" if self.also else self.name


def images(argument: str, patch: int) -> Callable[[int, int], Inputs]:
    return lambda batch, grid: {argument: torch.randn(batch, 3, patch * grid, patch * grid)}


# --- timm -----------------------------------------------------------------------------------------


def timm_model(name: str, patch: int, grid: int) -> nn.Module:
    import timm

    return timm.create_model(name, img_size=patch * grid, depth=2, num_classes=10, **WIDTH)


def old_timm_model(options: dict[str, Any], grid: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"embed_dim": 768, "num_heads": 12, "depth": 2, "num_classes": 10}
    return VisionTransformer(img_size=16 * grid, **sizes, **options)


def timm_entries() -> Iterator[Model]:
    x16 = images("x", 16)
    for name, options in {
        "vit_base_patch16_224": {},
        "deit_base_distilled_patch16_224": {"distilled": True},
        "vit_base_patch16_224_in21k": {"representation_size": 768},
    }.items():
        yield Model(name, "timm-0.4.12", "timm", partial(old_timm_model, options), x16)
    common = (
        "vit_base_patch16_224", "deit3_base_patch16_224", "vit_base_patch14_dinov2",
        "eva02_base_patch14_224", "beit_base_patch16_224",
    )  # fmt: skip
    newest = (
        "vit_base_patch14_reg4_dinov2", "vit_base_patch16_clip_224", "vit_base_patch16_siglip_224",
        "vit_base_patch16_rpn_224", "vit_base_patch16_dinov3", "vit_base_patch16_rope_224",
        "beitv2_base_patch16_224",
    )  # fmt: skip
    of = {
        "timm-0.9.16": (*common, "vit_base_patch16_siglip_224"),
        "timm-1.0.9": (*common, "vit_base_patch16_clip_224"),
        "timm-1.0.15": common,
        HERE: (*common, *newest),
    }
    for environment, names in of.items():
        for name in names:
            patch = 14 if "patch14" in name else 16
            build = partial(timm_model, name, patch)
            given = images("x", patch)
            yield Model(name, environment, "timm", build, given, rivals.without_fused_attn)


# --- Hugging Face ---------------------------------------------------------------------------------


def hugging_face_model(name: str, patch: int, options: dict[str, Any], grid: int) -> nn.Module:
    import transformers

    config: Any = getattr(transformers, f"{name}Config")
    size = "crop_size" if name == "VJEPA2" else "image_size"
    known = {"num_hidden_layers": 2, "patch_size": patch, size: grid * patch}
    return getattr(transformers, f"{name}Model")(config(**known, **options))


def video(argument: str, frames: int, patch: int) -> Callable[[int, int], Inputs]:
    return lambda batch, grid: {argument: torch.randn(batch, frames, 3, patch * grid, patch * grid)}


def masked_images(batch: int, grid: int) -> Inputs:
    """With the noise that orders the patches, so that every implementation orders them alike."""
    return images("pixel_values", 16)(batch, grid) | {"noise": torch.rand(batch, grid * grid)}


def hugging_face_entries() -> Iterator[Model]:
    environment = "transformers-5.24.0"
    base = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    swiglu = {"use_swiglu_ffn": True}
    entries: list[tuple[str, str, int, dict[str, Any]]] = [
        ("ViT", "", 16, {}), ("DeiT", "", 16, {}), ("Beit", "", 16, {}),
        ("Data2VecVision", "", 16, {}), ("ViTMSN", "", 16, {}), ("IJepa", "", 16, {}),
        ("Dinov2", "", 14, base), ("Dinov2", "SwiGLU", 14, base | swiglu),
        ("Dinov2WithRegisters", "", 14, base), ("DINOv3ViT", "", 16, base),
        ("CLIPVision", "", 16, base), ("SiglipVision", "", 16, base),
    ]  # fmt: skip
    for name, also, patch, options in entries:
        build = partial(hugging_face_model, name, patch, options)
        given = images("pixel_values", patch)
        yield Model(f"{name}Model", environment, "transformers", build, given, rivals.eager, also)
    build = partial(hugging_face_model, "ViTMAE", 16, {"mask_ratio": 0.0})
    yield Model("ViTMAEModel", environment, "transformers", build, masked_images, rivals.eager)
    for name, argument, options in (
        ("VideoMAE", "pixel_values", {"num_frames": 2}),
        ("VJEPA2", "pixel_values_videos", {"frames_per_clip": 2, **base}),
    ):
        if name == "VJEPA2":
            options |= {"mlp_ratio": 4, "pred_num_hidden_layers": 2}
        build = partial(hugging_face_model, name, 16, options)
        given = video(argument, 2, 16)
        yield Model(f"{name}Model", environment, "transformers", build, given, rivals.eager)


# --- Others ---------------------------------------------------------------------------------------


def torchvision_model(patch: int, grid: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(patch * grid, patch, 2, 12, 768, 3072, num_classes=10)


def open_clip_model(options: dict[str, Any], patch: int, grid: int) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    sizes = {"width": 768, "layers": 2, "heads": 12, "mlp_ratio": 4.0, "output_dim": 512}
    return VisionTransformer(patch * grid, patch, **sizes, **options)


def vit_pytorch_model(name: str, grid: int) -> nn.Module:
    import vit_pytorch

    sizes = {"dim": 768, "depth": 2, "heads": 12, "mlp_dim": 3072, "num_classes": 10}
    return getattr(vit_pytorch, name)(image_size=16 * grid, patch_size=16, **sizes)


def other_entries() -> Iterator[Model]:
    for name, patch in (("vit_b_16", 16), ("vit_b_32", 32)):
        build = partial(torchvision_model, patch)
        yield Model(name, HERE, "torchvision", build, images("x", patch), rivals.in_math)
    for also, patch, options in (
        ("", 16, {}), ("LayerScale", 16, {"ls_init_value": 1e-5}), ("patch 32", 32, {}),
    ):  # fmt: skip
        build = partial(open_clip_model, options, patch)
        given = images("x", patch)
        where = ("open_clip-3.3.0", "open_clip_torch")
        yield Model("VisionTransformer", *where, build, given, rivals.in_math, also)
    for name in ("ViT", "SimpleViT"):
        build = partial(vit_pytorch_model, name)
        yield Model(name, "vit_pytorch-1.26.11", "vit-pytorch", build, images("img", 16))


def models() -> list[Model]:
    """Return all entries, in the order of the table."""
    return [*timm_entries(), *hugging_face_entries(), *other_entries()]
