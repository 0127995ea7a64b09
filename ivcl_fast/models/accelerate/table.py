"""The classes known to :func:`ivcl_fast.accelerate`, and their adapters.

To add a class, add a line: its full name, and the adapters to try in order. Only instances of
exactly this class are replaced, not of its subclasses. MLPs and whole blocks are not listed,
because fusing them gained nothing on the measured CPUs.
"""

from __future__ import annotations

from torch import nn

from ivcl_fast.models.accelerate.adapter import Adapter
from ivcl_fast.models.accelerate.attention import (
    SdpaAttention,
    TimmAttention,
    TorchMultiheadAttention,
    VitPytorchAttention,
)

TABLE: dict[str, tuple[type[Adapter], ...]] = {
    # PyTorch, torchvision, open_clip
    "torch.nn.modules.activation.MultiheadAttention": (TorchMultiheadAttention,),
    # timm
    "timm.layers.attention.Attention": (TimmAttention, SdpaAttention),
    "timm.models.vision_transformer.Attention": (TimmAttention, SdpaAttention),  # older versions
    "timm.layers.attention.AttentionRope": (SdpaAttention,),
    "timm.models.eva.EvaAttention": (SdpaAttention,),
    # vit-pytorch
    "vit_pytorch.vit.Attention": (VitPytorchAttention,),
    "vit_pytorch.simple_vit.Attention": (VitPytorchAttention,),
    # Hugging Face
    "transformers.models.beit.modeling_beit.BeitAttention": (SdpaAttention,),
    "transformers.models.clip.modeling_clip.CLIPAttention": (SdpaAttention,),
    "transformers.models.data2vec.modeling_data2vec_vision.Data2VecVisionSdpaSelfAttention": (
        SdpaAttention,
    ),
    "transformers.models.deit.modeling_deit.DeiTAttention": (SdpaAttention,),
    "transformers.models.dinov2.modeling_dinov2.Dinov2Attention": (SdpaAttention,),
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers"
    ".Dinov2WithRegistersAttention": (SdpaAttention,),
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTAttention": (SdpaAttention,),
    "transformers.models.ijepa.modeling_ijepa.IJepaAttention": (SdpaAttention,),
    "transformers.models.siglip.modeling_siglip.SiglipAttention": (SdpaAttention,),
    "transformers.models.videomae.modeling_videomae.VideoMAESelfAttention": (SdpaAttention,),
    "transformers.models.vit.modeling_vit.ViTAttention": (SdpaAttention,),
    "transformers.models.vit_mae.modeling_vit_mae.ViTMAEAttention": (SdpaAttention,),
    "transformers.models.vit_msn.modeling_vit_msn.ViTMSNAttention": (SdpaAttention,),
    "transformers.models.vjepa2.modeling_vjepa2.VJEPA2RopeAttention": (SdpaAttention,),
}


def adapters_of(part: nn.Module) -> tuple[type[Adapter], ...]:
    """Return the adapters to try for a module; empty if its class is unknown."""
    return TABLE.get(f"{type(part).__module__}.{type(part).__qualname__}", ())
