"""IV-CL on fused kernels: the reference's modules with other forward passes.

Each class here is the reference's class of the same name with some methods replaced, so parameters,
keys, initial weights and arguments are the reference's own, and an instance can change from one to
the other in place (``accelerate.py``).

* Tokens stay packed, ``[F, N, D]``: no permutes, no copies between heads and tokens.
* Bytes stay bytes: video is embedded, and compared with, as uint8 patch rows.
* A block leaves its last residual sum to the norm that follows, which does both in one pass.
* What nothing reads is not computed: past its attention, the last block of each stack goes on
  with the tokens alone that are asked for (the decoder with the masked patches, the encoder
  without the patches of frames that are no query, or of any frame in a classifier).

Dtypes: the residual stream (``x`` below) has the parameters' dtype, float32 under autocast as in
the reference; what flows through the matrix products has autocast's. A model cast to bfloat16 keeps
its stream in bfloat16.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpoint_call

from ivcl_fast import kernels
from ivcl_fast.config import IVCLConfig
from ivcl_fast.errors import UserError
from ivcl_fast.kernels.attention import attention
from ivcl_fast.models import backbone, reference, supervised, weights
from ivcl_fast.models import hub_card as model_card
from ivcl_fast.models.reference import all_patches, patch_rows, select_frames, take_rows


def compute_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where autocast is on, else the tensor's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def add_norm(x: Tensor, branch: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """The residual stream with ``branch`` added, and its norm in the compute dtype."""
    if branch is None:
        return x, kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, compute_dtype(x))
    return kernels.add_layer_norm(branch, x, norm.weight, norm.bias, norm.eps)


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, by the fused op where a layer is a plain one."""
    if type(layer) is not nn.Linear or any(getattr(layer, hooks) for hooks in HOOKS):
        return layer(x)
    return kernels.linear(x, layer.weight, layer.bias)


def count(n: int, like: Tensor) -> Tensor:
    """0..n-1 where ``like`` is."""
    return torch.arange(n, device=like.device)


def spans(frame: Tensor, width: int, tokens: int, start: int = 0) -> Tensor:
    """Numbers within a clip of the first ``tokens`` tokens of frames, int64 ``[B, any]``.

    A frame takes up ``width`` tokens; the first one's start at ``start``.
    """
    return (frame.unsqueeze(-1) * width + start + count(tokens, frame)).flatten(1)


def through_clips(numbers: Sequence[Tensor], length: int) -> Tensor:
    """Numbers ``[B, any]`` within clips of ``length`` tokens, side by side, through all clips."""
    joined = torch.cat(list(numbers), dim=1)
    return joined + count(len(joined), joined)[:, None] * length


def pick(x: Tensor, wanted: Tensor) -> Tensor:
    """Tokens of ``[F, N, D]`` by their numbers, counted through all sequences."""
    return x.flatten(0, 1).index_select(0, wanted.flatten()).unflatten(0, wanted.shape)


class Attention(reference.Attention):
    attention_backend = "auto"
    """As :func:`ivcl_fast.kernels.attention.attention` takes it."""

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:  # [F, N, D]
        x = attention(linear(self.qkv, x), self.num_heads, self.attention_backend)
        return linear(self.proj, x if wanted is None else pick(x, wanted))


class Mlp(reference.Mlp):
    def forward(self, x: Tensor) -> Tensor:
        x = kernels.bias_gelu(kernels.linear(x, self.fc1.weight), self.fc1.bias)
        return linear(self.fc2, x)


class Block(reference.Block):
    def forward(
        self, x: Tensor, branch: Tensor | None = None, wanted: Tensor | None = None,
        defer: bool = False,
    ) -> Any:  # fmt: skip
        """The block of ``x + branch``; with ``defer``, as ``(x, branch)`` still to be added.

        ``wanted``: the tokens to go on with after attention, as :func:`pick` takes them.
        """
        x, y = add_norm(x, branch, self.norm1)
        branch = self.attn(y, wanted)
        x, y = add_norm(x if wanted is None else pick(x, wanted), branch, self.norm2)
        branch = self.mlp(y)
        return (x, branch) if defer else x + branch


class Transformer(reference.Transformer):
    def transform(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Blocks and norm of ``[F, N, D]``: all tokens, or those ``wanted``."""
        branch, last = None, len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            picked = wanted if i == last else None
            if isinstance(block, Block):
                x, branch = block(x, branch, picked, defer=True)
            else:  # a user's own
                x, branch = block(x if branch is None else x + branch), None
                x = x if picked is None else pick(x, picked)
        return add_norm(x, branch, self.norm)[1]


class Encoder(Transformer, reference.Encoder):
    def tokens(self, rows: Tensor, ids_keep: Tensor, wanted: Tensor) -> Tensor:
        """Some tokens of some frames, ``[*wanted.shape, D]``.

        ``wanted``: numbers of tokens, counted through all frames: slots first, then patches.
        """
        patches = self.embed(rows, ids_keep)
        slots = self.slot_tokens.to(patches).expand(*ids_keep.shape[:2], -1, -1)
        return self.transform(torch.cat([slots, patches], dim=2).flatten(0, 1), wanted)

    def slots(self, rows: Tensor) -> Tensor:
        """Slots of all frames of patch rows, ``[B, T * S, D]``; not for a joint encoder."""
        (clips, frames, patches, _), slots = rows.shape, self.slot_tokens.shape[1]
        width, every = slots + patches, count(frames, rows).expand(clips, -1)
        wanted = through_clips([spans(every, width, slots)], frames * width)
        return self.tokens(rows, all_patches(rows), wanted)

    def embed(self, rows: Tensor, ids: Tensor) -> Tensor:
        if rows.dtype != torch.uint8:
            return super().embed(rows, ids)
        weight, bias = self.patch_embed["proj"].parameters()
        x = kernels.embed_patches(
            rows.flatten(0, 1), ids.flatten(0, 1), weight.flatten(1), bias, self.pos_embed[0],
            self.mean, self.std,
        )  # fmt: skip
        return x.unflatten(0, ids.shape[:2]).to(self.pos_embed.dtype)


class Temporal(Transformer, reference.Temporal):
    pass


class Decoder(Transformer, reference.Decoder):
    def forward(self, slots: Tensor, visible: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        pos, prefix = self.pos_embed[0], self.embed(slots) if self.see_slots else None
        visible = self.embed(visible).to(pos.dtype)
        x = kernels.restore_tokens(visible, ids_keep, self.mask_token[0, 0], pos, prefix)
        frames, length, _ = x.shape
        hidden = ids_mask + (length - len(pos))  # behind the slots
        return self.pred(self.transform(x, hidden + count(frames, x)[:, None] * length))


def recomputed(function: Callable) -> Callable:
    """``function``, which backward calls again instead of having kept what it computed.

    It draws no random numbers, whose state cannot be kept in a CUDA graph.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}

    def run(*args: Any, **kwargs: Any) -> Any:  # the compiler passes over a functools.partial
        return checkpoint_call(function, *args, **options, **kwargs)

    return run


class Pretrained(
    PyTorchModelHubMixin,
    library_name="ivcl_fast",
    license="apache-2.0",
    tags=["video", "visual-reasoning"],
    paper_url="https://arxiv.org/abs/2307.08506",
    model_card_template=model_card.CARD,
):
    """Construction, compiling, and folders with ``model.safetensors`` and ``config.json``."""

    cfg: IVCLConfig

    def compile_blocks(self, **options: Any) -> None:
        """Compile every transformer block in place; blocks of one shape share their graph.

        ``options`` go to ``torch.compile``.
        """
        from torch._dynamo import config as dynamo  # takes a second to import

        # One code object serves all blocks of the process: pretraining, finetuning and evaluation
        # at several shapes are more graphs than the default allows.
        dynamo.recompile_limit = max(64, dynamo.recompile_limit)
        for part in self.modules():  # type: ignore[attr-defined]
            if isinstance(part, reference.Block):
                part.compile(fullgraph=True, dynamic=False, **options)

    def checkpoint_blocks(self) -> None:
        """Keep no activations inside blocks: backward computes them again, saving memory."""
        for part in self.modules():  # type: ignore[attr-defined]
            if isinstance(part, reference.Block):
                part.forward = recomputed(part.forward)  # type: ignore[method-assign]

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write ``model.safetensors``, ``SHA256SUMS``, ``config.json`` and a model card."""
        kwargs.setdefault("config", self._arguments())
        return super().save_pretrained(save_directory, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Behind ``save_pretrained``: the weights and their checksum."""
        (save_directory / weights.CHECKSUMS).unlink(missing_ok=True)
        super()._save_pretrained(save_directory)
        weights.write_checksums(save_directory, [weights.MODEL])

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """``README.md`` of the folder: what the model is, its sizes, and how to use it."""
        return super().generate_model_card(*args, **model_card.card_fields(self) | kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """A model in evaluation mode, from a folder of ``save_pretrained`` or the Hugging Face hub.

        Raises :class:`UserError` where there is none, and where config or weights do not fit.
        """
        place = pretrained_model_name_or_path
        with nullcontext() if weights.is_local(place) else weights.from_hub(place):
            return super().from_pretrained(place, **kwargs)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, cfg: Any = None, map_location: str = "cpu", **kwargs: Any
    ) -> Self:
        """Behind ``from_pretrained``: builds the model and gives it its weights."""
        hub = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        where = {name: kwargs.pop(name) for name in hub}
        if cfg is None:
            raise UserError(f"{model_id}: no config.json there; give a folder of save_pretrained")
        try:
            cfg = IVCLConfig.from_dict(cfg) if isinstance(cfg, dict) else cfg
        except ValueError as error:
            raise UserError(f"{model_id}: config.json: {error}") from None
        model: Any = cls(cfg, **kwargs)
        file = model_id
        if not os.path.isdir(model_id):
            file = hf_hub_download(model_id, weights.MODEL, **where)
        state = weights.read_weights(file)
        if reason := weights.misfit(model, state):
            raise UserError(f"{model_id}: {reason}")
        model.load_state_dict(state)
        return model.to(map_location).eval()

    def _arguments(self) -> dict[str, Any]:
        """What builds this model, for ``config.json``."""
        return {"cfg": vars(self.cfg)}


class IVCL(Pretrained, reference.IVCL, tags=["self-supervised-learning"]):
    """The pretraining model; arguments and results as :class:`ivcl_fast.reference.IVCL`.

    Masks are drawn on the device, bit for bit the reference's for the same seeds.
    """

    encoder: Encoder
    temporal: Temporal
    sample_masks = staticmethod(kernels.sample_masks)

    def __init__(self, cfg: IVCLConfig) -> None:
        super().__init__(cfg)
        use_fast_parts(self)

    def context(self, rows: Tensor, ids_keep: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        if self.cfg.objective != "ivcl":
            return super().context(rows, ids_keep, query)
        (clips, frames, keep), slots = ids_keep.shape, self.cfg.num_slots
        every, queries = (count(n, rows).expand(clips, -1) for n in (frames, query.shape[1]))
        # The temporal transformer sees all slots, and the patches of the frames `seen`, among which
        # the queries are the frames `at`.
        seen, at = (query, queries) if self.cfg.context_tokens == "slots" else (every, query)
        wanted = spans(every, slots + keep, slots), spans(seen, slots + keep, keep, slots)
        x = self.encoder.tokens(rows, ids_keep, through_clips(wanted, frames * (slots + keep)))
        time = every.repeat_interleave(slots, 1), seen.repeat_interleave(keep, 1)
        x = x + F.embedding(torch.cat(time, dim=1), self.temporal.time_embed)
        # Of its tokens the decoder is given those of the queries.
        wanted = spans(query, slots, slots), spans(at, keep, keep, frames * slots)
        x = self.temporal.transform(x, through_clips(wanted, x.shape[1]))
        given = x.split([query.shape[1] * slots, query.shape[1] * keep], dim=1)
        return given[0].unflatten(1, (-1, slots)), given[1].unflatten(1, (-1, keep))

    def loss(self, pred: Tensor, rows: Tensor, mask: Tensor, query: Tensor) -> Tensor:
        if rows.dtype != torch.uint8:
            return super().loss(pred, rows, mask, query)
        pred, rows, mask = (x.flatten(0, 1) for x in (pred, take_rows(rows, query), mask))
        cfg = self.cfg
        return kernels.patch_loss(pred, rows, mask, cfg.norm_pix, cfg.pixel_mean, cfg.pixel_std)


class IVCLClassifier(Pretrained, reference.IVCLClassifier, pipeline_tag="video-classification"):
    """The finetuned model; arguments and results as :class:`ivcl_fast.reference.IVCLClassifier`."""

    encoder: Encoder
    temporal: Temporal

    def __init__(self, cfg: IVCLConfig, num_classes: int = 36) -> None:
        super().__init__(cfg, num_classes)
        use_fast_parts(self)

    def features(self, video: Tensor, frame_index: Tensor | None = None) -> Tensor:
        cfg = self.cfg
        if cfg.objective == "joint":
            return super().features(video, frame_index)
        slots = self.encoder.slots(patch_rows(video, cfg, frame_index))
        x = select_frames(slots.unflatten(1, (-1, cfg.num_slots)), frame_index).flatten(1, 2)
        x = x + self.temporal.time_embed.repeat_interleave(cfg.num_slots, 0)
        clips = len(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.to(x).expand(clips, -1, -1), x], dim=1)
        read = {"cls": slice(1), "last": slice(-cfg.num_slots, None), "mean": slice(None)}
        wanted = count(x.shape[1], x)[read[cfg.readout]].expand(clips, -1)
        return self.temporal.transform(x, through_clips([wanted], x.shape[1])).mean(dim=1)

    def load_pretrained(self, source: str | os.PathLike | Mapping[str, Tensor]) -> list[str]:
        """Start encoder and temporal transformer from a pretrained model's.

        ``source``: a folder of ``save_pretrained``, a run's folder, a ``.safetensors`` file, a
        state dict, or a timm ViT's ``timm:NAME`` or ``timm:PATH``, which has no temporal
        transformer to give. Returns the keys taken; raises ``UserError`` where there are no such
        weights, or naming the first key that does not fit.
        """
        return backbone.load_backbone(self, source)

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"num_classes": self.head.out_features}


class Supervised(Pretrained, supervised.Supervised):
    """Supervised pretraining; arguments and results as :class:`ivcl_fast.supervised.Supervised`."""

    encoder: Encoder

    def __init__(self, cfg: IVCLConfig, num_classes: int) -> None:
        super().__init__(cfg, num_classes)
        use_fast_parts(self)

    def slots(self, rows: Tensor) -> Tensor:
        return self.encoder.slots(rows).unflatten(1, (rows.shape[1], -1))

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"num_classes": self.num_classes}


FAST: dict[type[nn.Module], type[nn.Module]] = {
    reference.Attention: Attention,
    reference.Mlp: Mlp,
    reference.Block: Block,
    reference.Encoder: Encoder,
    reference.Temporal: Temporal,
    reference.Decoder: Decoder,
    reference.IVCL: IVCL,
    reference.IVCLClassifier: IVCLClassifier,
    supervised.Supervised: Supervised,
}
"""What each of the reference's classes becomes."""


def use_fast_parts(
    model: reference.IVCL | reference.IVCLClassifier | supervised.Supervised,
) -> None:
    """Give every part of a new model its fast class."""
    for part in model.modules():
        part.__class__ = FAST.get(type(part), type(part))
    set_attention_backend(model, model.cfg.attention)


def set_attention_backend(model: nn.Module, backend: str) -> None:
    """Choose the attention backend of everything inside ``model``."""
    for part in model.modules():
        if isinstance(part, Attention):
            part.attention_backend = backend
