"""Small models of the packages in the table, and the inputs that they take."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ivcl_fast.kernels import dispatches

WIDTH, HEADS = 32, 4


def timm_vit(**options: Any) -> nn.Module:
    sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 3}
    return VisionTransformer(img_size=16, patch_size=8, **sizes, **options)


def timm_eva(**options: Any) -> nn.Module:
    sizes = {"embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 3}
    return Eva(16, 8, use_rot_pos_emb=True, **sizes, **options)


def torchvision_vit(**options: Any) -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(16, 8, 2, HEADS, WIDTH, 64, num_classes=3, **options)
    nn.init.normal_(model.heads.head.weight)  # zero at first
    return model


def vit_pytorch(name: str = "ViT", **options: Any) -> nn.Module:
    package = pytest.importorskip("vit_pytorch")
    sizes = {"dim": WIDTH, "depth": 2, "heads": HEADS, "dim_head": 8, "mlp_dim": 64}
    return getattr(package, name)(image_size=16, patch_size=8, num_classes=3, **sizes, **options)


def hugging_face(name: str, **options: Any) -> nn.Module:
    """The vision model of a family, which returns its tokens as a tensor."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=64,
        image_size=16, patch_size=8, **options,
    )  # fmt: skip
    return Tokens(getattr(transformers, f"{name}Model")(config))


class Tokens(nn.Module):
    """A model of Hugging Face whose output is the tensor of its last tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).last_hidden_state


MODELS = {
    "timm": timm_vit, "timm, Q/K norm": lambda: timm_vit(qk_norm=True), "timm, EVA": timm_eva,
    "torchvision": torchvision_vit, "vit-pytorch": vit_pytorch,
    "vit-pytorch, simple": lambda: vit_pytorch("SimpleViT"),
    "Hugging Face, ViT": lambda: hugging_face("ViT"),
    "Hugging Face, CLIP": lambda: hugging_face("CLIPVision"),
    "Hugging Face, DINOv2": lambda: hugging_face("Dinov2"),
    "Hugging Face, DINOv3": lambda: hugging_face("DINOv3ViT"),
}  # fmt: skip


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def images(batch: int = 2, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def tokens(length: int = 17) -> Tensor:
    return torch.randn(2, length, WIDTH, generator=torch.Generator().manual_seed(5))


def fused_calls(function: Any, *args: Any) -> int:
    """Calls of the fused attention in ``function(*args)``."""
    before: Counter = dispatches()
    function(*args)
    fused = "short_attention", "transformer_block"
    return sum(n for (op, _), n in (dispatches() - before).items() if op in fused)
