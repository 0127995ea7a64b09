"""IV-CL on fused kernels: the reference's models with fused forward passes.

Each class subclasses the reference's class of the same name and overrides some methods. Parameters,
keys, initial weights and arguments are the same, and an instance can change from one to the other
in place (``accelerate``). Their layers are in ``transformer.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast import kernels
from ivcl_fast.config import IVCLConfig
from ivcl_fast.models import backbone, reference, slot_autoencoder, supervised
from ivcl_fast.models.hub import PretrainedModel
from ivcl_fast.models.layers import (
    Branch,
    arange,
    flat_index,
    frame_positions,
    is_bare,
    slot_positions,
)
from ivcl_fast.models.reference import take_rows
from ivcl_fast.models.slot_attention import SlotAttention
from ivcl_fast.models.transformer import (
    Attention,
    Block,
    Decoder,
    Encoder,
    MixtureDecoder,
    Mlp,
    Temporal,
)


class FastModel(PretrainedModel):
    """Base of the fast models: compiling and checkpointing of blocks, saving and loading."""

    def compile_blocks(self, **options: Any) -> None:
        """Compile in place each transformer block, slot attention, and the layers of its decoder;
        blocks of one shape share a graph.

        ``options`` go to ``torch.compile``.
        """
        from torch._dynamo import config as dynamo  # takes a second to import

        # All blocks share one code object, and pretraining, finetuning and evaluation at several
        # shapes need more graphs than the default limit.
        dynamo.recompile_limit = max(64, dynamo.recompile_limit)
        # DDP overlaps communication between blocks; its graph splitting would cut them in two.
        dynamo.optimize_ddp = False
        options = {"fullgraph": True, "dynamic": False, **options}
        for part in self.modules():  # type: ignore[attr-defined]
            if isinstance(part, reference.Block | SlotAttention):
                part.compile(**options)
            elif isinstance(part, slot_autoencoder.MixtureDecoder):
                # Not the mixture: a compiled backward gets zero gradients of frames and shares that
                # are not in the loss, for which the fused op has no kernel.
                part.draw = torch.compile(part.draw, **options)  # type: ignore[method-assign]

    def checkpoint_blocks(self) -> None:
        """Recompute the blocks' activations in the backward pass, to save memory."""
        for part in self.modules():  # type: ignore[attr-defined]
            if isinstance(part, Block):
                part.forward = part.recomputed  # type: ignore[method-assign]


class IVCL(FastModel, reference.IVCL, tags=["self-supervised-learning"]):
    """Pretraining model on fused kernels, with the reference's arguments, keys and results.

    ``forward(video, ids_keep=None, query=None, seed=None)`` returns a named tuple: ``loss``
    (float32 scalar), ``pred`` ``[B, Q, N-K, 3*P*P]``, ``ids_keep`` ``[B, T, K]``, ``ids_mask``
    ``[B, T, N-K]`` and ``query`` ``[B, Q]`` (int64). ``video``: frames ``[B, T, 3, H, W]``, uint8
    RGB or float in [0, 1], or uint8 patch rows ``[B, T, N, 3*P*P]``. Missing masks are drawn on the
    device from ``seed``, int64 ``[B]``, and are bitwise equal to the reference's.

    ``reconstruct(video, out=None)`` returns whole query frames, float32 ``[B, Q, 3, H, W]`` in [0,
    1], from ``out``, the result of a forward pass on ``video``, or from a new one.
    ``encode(video)`` returns the slots of every frame, ``[B, T, S, D]``.

    Raises ``ValueError``, naming the invalid argument or config field.
    :class:`ivcl_fast.reference.IVCL` defines the computation.

    Example::

        model = ivcl_fast.IVCL(ivcl_fast.IVCLConfig.preset("tiny"))
        model(video, seed=torch.arange(len(video))).loss.backward()
    """

    kind = "IVCL"
    encoder: Encoder
    temporal: Temporal
    stream = staticmethod(kernels.hash_seeds)
    sample_masks = staticmethod(kernels.sample_masks)

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__(cfg)
        use_fast_parts(self)

    def context(self, rows: Tensor, ids_keep: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        bare = self.cfg.objective == "ivcl" and is_bare(self.encoder, Encoder)
        if not (bare and is_bare(self.temporal, Temporal)):
            return super().context(rows, ids_keep, query)
        (clips, frames, keep), slots = ids_keep.shape, self.cfg.num_slots
        # The temporal transformer sees all slots, and the patches of the context frames.
        patches = frames * slots  # position of the first patch, after the slots
        if self.cfg.context_tokens == "slots":
            context_frames = query
            read_patches = arange(query.shape[1] * keep, rows, patches).expand(clips, -1)
        else:
            context_frames = arange(frames, rows).expand(clips, -1)
            read_patches = frame_positions(query, keep, keep, first=patches)
        width = slots + keep
        seen = torch.cat(
            [
                slot_positions(frames, width, slots, rows).expand(clips, -1),
                frame_positions(context_frames, width, keep, first=slots),
            ],
            dim=1,
        )
        x = self.encoder.tokens(rows, ids_keep, flat_index(seen, frames * width))
        # Not one embedding of all tokens: a GPU would accumulate its gradients serially.
        embed = self.temporal.time_embed
        times = [embed.repeat_interleave(slots, 0).expand(clips, -1, -1)]
        times.append(F.embedding(context_frames, embed).repeat_interleave(keep, 1))
        # The decoder reads only the tokens of the query frames.
        read = torch.cat([frame_positions(query, slots, slots), read_patches], dim=1)
        x = self.temporal.transform(torch.cat(times, 1), flat_index(read, x.shape[1]), Branch(x))
        slot_tokens, patch_tokens = x.split([query.shape[1] * n for n in (slots, keep)], dim=1)
        return slot_tokens.unflatten(1, (-1, slots)), patch_tokens.unflatten(1, (-1, keep))

    def loss(self, pred: Tensor, rows: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        if rows.dtype != torch.uint8:
            return super().loss(pred, rows, mask, query)
        pred, rows, mask = (x.flatten(0, 1) for x in (pred, take_rows(rows, query), mask))
        cfg = self.cfg
        return kernels.patch_loss(pred, rows, mask, cfg.norm_pix, cfg.pixel_mean, cfg.pixel_std)


class IVCLClassifier(FastModel, reference.IVCLClassifier, pipeline_tag="video-classification"):
    """Finetuning model on fused kernels, with the reference's arguments, keys and results.

    ``forward(video, frame_index=None)`` returns logits ``[B, num_classes]`` of a video (see
    :class:`IVCL`). Clips may share frames: with ``frame_index``, int64 ``[B, C, T]``, a video may
    have any number of frames, each is encoded once, and logits are ``[B*C, num_classes]``. With
    ``every_frame=True`` logits are ``[B, T, num_classes]``, an answer for every frame (for
    ``readout="last"``).

    ``slots(video, frame_index=None)`` returns the encoder's slots of each frame, ``[B, T, S, D]``
    (not for a joint encoder). ``forward`` accepts them instead of a video, so that repeated clips
    are encoded only once.

    The attribute ``class_names``, one string per class or None, is saved by ``save_pretrained`` and
    restored by ``from_pretrained``.

    Raises ``ValueError``, naming the invalid argument or config field.
    :class:`ivcl_fast.reference.IVCLClassifier` defines the computation.

    Example::

        classifier = ivcl_fast.IVCLClassifier(cfg, num_classes=2, class_names=["no", "yes"])
        classifier.load_pretrained("runs/RUN")
        answers = [classifier.class_names[n] for n in classifier(video).argmax(dim=1).tolist()]
    """

    kind = "IVCLClassifier"
    encoder: Encoder
    temporal: Temporal

    def __init__(
        self, cfg: IVCLConfig, num_classes: int = 36, class_names: list[str] | None = None
    ) -> None:
        super().__init__(cfg, num_classes, class_names)
        use_fast_parts(self)

    def features(
        self, video: Tensor, frame_index: Tensor | None = None, every_frame: bool = False
    ) -> Tensor:
        cfg = self.cfg
        if cfg.objective == "joint" or not is_bare(self.temporal, Temporal):
            return super().features(video, frame_index, every_frame)
        cfg.check_readout(every_frame)
        x = self.slots(video, frame_index).flatten(1, 2)
        x = x + self.temporal.time_embed.repeat_interleave(cfg.num_slots, 0)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.to(x).expand(x.shape[0], -1, -1), x], dim=1)
        if every_frame:
            return self.temporal.transform(x).unflatten(1, (-1, cfg.num_slots)).mean(dim=2)
        readouts = {"cls": slice(1), "last": slice(-cfg.num_slots, None), "mean": slice(None)}
        read = arange(x.shape[1], x)[readouts[cfg.readout]].expand(x.shape[0], -1)
        return self.temporal.transform(x, flat_index(read, x.shape[1])).mean(dim=1)

    def load_pretrained(self, source: str | os.PathLike | Mapping[str, Tensor]) -> list[str]:
        """Load a pretrained model's weights into the encoder and the temporal transformer.

        ``source``: a folder of ``save_pretrained``; a run's folder, for its pretrained model; a
        packaged model such as ``ivcl_fast/tiny-pretrained``; a ``.safetensors`` file; a state
        dict; or a timm ViT, ``timm:NAME`` or ``timm:PATH``, for the encoder only. Returns the
        loaded keys. Raises :class:`~ivcl_fast.errors.UserError`, a one-line ``ValueError``, if the
        weights cannot be found, or naming the first key that does not fit and the sizes that would.
        """
        return backbone.load_backbone(self, source)

    def arguments(self) -> dict[str, Any]:
        names = {} if self.class_names is None else {"class_names": self.class_names}
        return super().arguments() | {"num_classes": self.head.out_features} | names


class Supervised(FastModel, supervised.Supervised):
    """Supervised pretraining on fused kernels, with the plain model's arguments, keys and results.

    ``forward(video)`` returns logits of a video (see :class:`IVCL`), with last dimension
    ``num_classes``: ``[B, T, ...]`` for ``objective="classification"``, ``[B, T, N, ...]`` for
    "detection", ``[B, T, S, ...]`` for "objects". Raises ``ValueError``, naming the invalid
    argument or config field. :class:`ivcl_fast.supervised.Supervised` defines the computation.

    Example::

        cfg = ivcl_fast.IVCLConfig.preset("tiny", objective="classification")
        logits = ivcl_fast.Supervised(cfg, num_classes=20)(video)
    """

    kind = "Supervised"
    encoder: Encoder

    def __init__(self, cfg: IVCLConfig, num_classes: int) -> None:
        super().__init__(cfg, num_classes)
        use_fast_parts(self)

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"num_classes": self.num_classes}


class SlotAutoencoder(
    FastModel, slot_autoencoder.SlotAutoencoder, tags=["self-supervised-learning"]
):
    """Pretraining by slot attention, with the plain model's arguments, keys and results.

    ``forward(video)`` decodes the frames of a video (see :class:`IVCL`) from their slots and a
    background, and returns a named tuple: ``loss`` (float32 scalar), ``pred`` ``[B, T, N, 3*P*P]``
    and ``shares`` ``[B, T, S+1, N, P*P]``, the share of each slot and, last, of the background in
    every pixel. ``draw(video)`` returns both as images, ``[B, T, 3, H, W]`` in [0, 1] and
    ``[B, T, S+1, H, W]``; ``encode(video)`` the slots, ``[B, T, S, D]``. Raises ``ValueError``,
    naming the invalid argument or config field. :class:`ivcl_fast.slot_autoencoder.SlotAutoencoder`
    defines the computation.

    Example::

        cfg = ivcl_fast.IVCLConfig(objective="slot_attention", num_slots=11, patch_size=4, depth=2)
        ivcl_fast.SlotAutoencoder(cfg)(video).loss.backward()
    """

    kind = "SlotAutoencoder"
    encoder: Encoder

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__(cfg)
        use_fast_parts(self)


PretrainingModel = IVCL | SlotAutoencoder | Supervised


def pretraining_class(cfg: IVCLConfig) -> type[PretrainingModel]:
    """Return the model class for the objective of ``cfg``."""
    if cfg.objective == "slot_attention":
        return SlotAutoencoder
    return Supervised if cfg.supervised else IVCL


FAST: dict[type[nn.Module], type[nn.Module]] = {
    reference.Attention: Attention,
    reference.Mlp: Mlp,
    reference.Block: Block,
    reference.Encoder: Encoder,
    reference.Temporal: Temporal,
    reference.Decoder: Decoder,
    slot_autoencoder.MixtureDecoder: MixtureDecoder,
    reference.IVCL: IVCL,
    reference.IVCLClassifier: IVCLClassifier,
    supervised.Supervised: Supervised,
    slot_autoencoder.SlotAutoencoder: SlotAutoencoder,
}
"""Fast class of each reference class."""


def use_fast_parts(model: PretrainingModel | IVCLClassifier) -> None:
    """Change each part of a new model to its fast class."""
    for part in model.modules():
        part.__class__ = FAST.get(type(part), type(part))
    set_attention_backend(model, model.cfg.attention)


def set_attention_backend(model: nn.Module, backend: str) -> None:
    """Set the attention backend of all modules in ``model``."""
    for part in model.modules():
        if isinstance(part, Attention):
            part.attention_backend = backend
