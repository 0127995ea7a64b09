"""The model's transformers on fused kernels.

Each class subclasses the reference's class of the same name and overrides some methods, so
parameters, keys, initial weights and arguments are the same.

* Tokens stay packed, ``[F, N, D]``: there are no permutes and no copies between heads and tokens.
* Video stays uint8: patches are embedded from, and compared with, uint8 patch rows.
* On a CPU one op computes a whole block, from its first norm to its last sum, in cache.
* Elsewhere a block hands its last residual sum to the norm that follows, which does both at once.
* Unused outputs are not computed. After its attention, the last block of each stack processes only
  the tokens that are used later: masked patches in the decoder, slots and the patches of query
  frames in the encoder.

Dtypes: the residual stream (``x`` below) has the parameters' dtype, float32 under autocast as in
the reference; inputs and outputs of matrix products have autocast's dtype. A model converted to
bfloat16 keeps its stream in bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ivcl_fast import kernels
from ivcl_fast.kernels.attention import attention
from ivcl_fast.kernels.transformer_block import unsupported_reason as block_unsupported_reason
from ivcl_fast.models import reference, slot_autoencoder
from ivcl_fast.models.layers import (
    Branch,
    add_norm,
    compute_dtype,
    flat_index,
    has_hooks,
    has_own_hooks,
    is_bare,
    is_plain,
    linear,
    linear_gelu,
    linear_of_parts,
    run_branch,
    runs,
    select_tokens,
    slot_positions,
)
from ivcl_fast.models.reference import all_patches


class Attention(reference.Attention):
    """Attention that reads packed qkv in place, with a backend chosen by shape."""

    attention_backend = "auto"
    """One of :data:`ivcl_fast.config.AttentionBackend`."""

    def forward(
        self, x: Tensor, token_index: Tensor | None = None, with_bias: bool = True
    ) -> Tensor:  # [F, N, D]
        x = attention(linear(self.qkv, x), self.num_heads, self.attention_backend)
        x = x if token_index is None else select_tokens(x, token_index)
        return linear(self.proj, x, with_bias)


class Mlp(reference.Mlp):
    """MLP with bias and GELU in one pass."""

    def forward(self, x: Tensor, with_bias: bool = True) -> Tensor:
        return linear(self.fc2, linear_gelu(self.fc1, x), with_bias)


class Block(reference.Block):
    """Block that runs as one op on a CPU, and elsewhere fuses residual sums into the next norms."""

    def can_fuse(self, x: Tensor) -> bool:
        """Return whether ``transformer_block`` computes the block on ``x``."""
        attn, mlp = self.attn, self.mlp
        return (
            is_plain(attn, Attention)
            and is_plain(mlp, Mlp)
            and all(is_plain(norm, nn.LayerNorm) for norm in (self.norm1, self.norm2))
            and all(is_plain(p, nn.Linear) for p in (attn.qkv, attn.proj, mlp.fc1, mlp.fc2))
            and attn.attention_backend in ("auto", "short")
            and all(p is not None for p in self.parameter_list())
            and self.norm1.eps == self.norm2.eps
            and block_unsupported_reason(
                x, self.parameter_list(), attn.num_heads, compute_dtype(attn.qkv.weight)
            )
            is None
        )

    def parameter_list(self) -> list[Tensor]:
        """Return the parameters in the order of ``transformer_block``."""
        attn, mlp = self.attn, self.mlp
        layers = (self.norm1, attn.qkv, attn.proj, self.norm2, mlp.fc1, mlp.fc2)
        return [p for layer in layers for p in (layer.weight, layer.bias)]

    def forward(
        self, x: Tensor, branch: Branch | None = None, token_index: Tensor | None = None,
        defer: bool = False,
    ) -> Any:  # fmt: skip
        """Run the block on ``x + branch``; with ``defer``, return ``(x, branch)``, not yet added.

        ``token_index``: the tokens to process after attention, by default all.
        """
        if self.can_fuse(x):
            x = x if branch is None else x + branch.total()
            parameters, heads = self.parameter_list(), self.attn.num_heads
            x = kernels.transformer_block(x, parameters, heads, self.norm1.eps, token_index)
            return (x, None) if defer else x
        x, y = add_norm(x, branch, self.norm1)
        index = () if token_index is None else (token_index,)
        branch = run_branch(self.attn, Attention, "proj", y, *index)
        x = x if token_index is None else select_tokens(x, token_index)
        x, y = add_norm(x, branch, self.norm2)
        if not defer:
            return x + self.mlp(y)
        # FSDP's hooks free the parameters of a block when it ends.
        return x, Branch(self.mlp(y)) if has_hooks(self) else run_branch(self.mlp, Mlp, "fc2", y)

    def recomputed(self, *args: Any, **kwargs: Any) -> Any:
        """``forward`` with activation checkpointing: backward calls it again.

        RNG state is not preserved, because blocks draw no random numbers and a CUDA graph cannot
        save it.
        """
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return checkpoint(type(self).forward, self, *args, **options, **kwargs)


class Transformer(reference.Transformer):
    """Stack of blocks whose last block processes only the tokens that are read."""

    def transform(
        self, x: Tensor, token_index: Tensor | None = None, branch: Branch | None = None
    ) -> Tensor:
        """Apply blocks and norm to ``x + branch``, ``[F, N, D]``; return all tokens or those at
        ``token_index``."""
        x, last = x.to(self.residual_dtype(x)), len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            index = token_index if i == last else None
            # Hooks get a block's whole input and output, except FSDP's, which do not need them.
            is_hooked = type(block) is Block and has_own_hooks(block)
            if runs(block, Block) and runs(block.attn, Attention) and not is_hooked:
                x, branch = block(x, branch, index, defer=True)
            else:  # or a user-defined block
                x, branch = block(x if branch is None else x + branch.total()), None
                x = x if index is None else select_tokens(x, index)
        return add_norm(x, branch, self.norm)[1]


class Encoder(Transformer, reference.Encoder):
    """Image encoder that reads uint8 patch rows."""

    def tokens(self, rows: Tensor, ids_keep: Tensor, token_index: Tensor) -> Tensor:
        """Return the tokens at ``token_index``, ``[*index.shape, D]``; a frame has slots, then
        patches."""
        patches = self.embed(rows, ids_keep)
        slots = self.slot_tokens.to(patches).expand(*ids_keep.shape[:2], -1, -1)
        return self.transform(torch.cat([slots, patches], dim=2).flatten(0, 1), token_index)

    def slots(self, rows: Tensor) -> Tensor:
        if self.joint or self.competing or not is_bare(self, Encoder):
            return super().slots(rows)
        (clips, frames, patches, _), slots = rows.shape, self.slot_tokens.shape[1]
        width = slots + patches
        positions = slot_positions(frames, width, slots, rows).expand(clips, -1)
        index = flat_index(positions, frames * width)
        return self.tokens(rows, all_patches(rows), index).unflatten(1, (frames, slots))

    def embed(self, rows: Tensor, ids: Tensor) -> Tensor:
        proj: Any = self.patch_embed["proj"]
        if rows.dtype != torch.uint8 or proj.bias is None:
            return super().embed(rows, ids)
        x = kernels.embed_patches(
            rows.flatten(0, 1), ids.flatten(0, 1), proj.weight.flatten(1), proj.bias,
            self.pos_embed.squeeze(0),
            self.mean, self.std, compute_dtype(proj.weight),
        )  # fmt: skip
        return x.unflatten(0, ids.shape[:2]).to(self.pos_embed.dtype)


class Temporal(Transformer, reference.Temporal):
    """Temporal transformer on fused blocks."""


class Decoder(Transformer, reference.Decoder):
    """Decoder that predicts only the masked patches."""

    def forward(self, slots: Tensor, visible: Tensor, ids_keep: Tensor, ids_mask: Tensor) -> Tensor:
        pos, parts = self.pos_embed.squeeze(0), [slots, visible] if self.use_slots else [visible]
        *prefix, visible = linear_of_parts(self.embed, parts)
        x = kernels.restore_tokens(
            visible.to(pos.dtype), ids_keep, self.mask_token.flatten(), pos, *prefix
        )
        length = x.shape[1]
        masked = flat_index(ids_mask, length, first=length - len(pos))  # patches follow the slots
        return linear(self.pred, self.transform(x, masked))


class MixtureDecoder(slot_autoencoder.MixtureDecoder):
    """Decoder whose tokens, one per slot and patch, have autocast's dtype throughout."""

    def draw(self, slots: Tensor, centers: Tensor) -> Tensor:
        x = linear(self.embed, slots)
        row, column = (part.to(x.dtype) for part in self.distances(centers))
        x = F.gelu(((x.unsqueeze(2) + row).unsqueeze(3) + column.unsqueeze(2)).flatten(2, 3))
        for layer in self.layers:
            x = linear_gelu(layer, x)
        return self.fade(linear(self.pred, x), centers)

    def mix(self, drawn: Tensor, true: Tensor) -> slot_autoencoder.Drawn:
        if self.channels != 3:  # features, not colors
            return super().mix(drawn, true)
        return slot_autoencoder.Drawn(
            *kernels.mixture_loss(
                drawn, true, self.background, slot_autoencoder.BACKGROUND_LOGIT,
                slot_autoencoder.SPREAD_WEIGHT, slot_autoencoder.BACKGROUND_WEIGHT,
            )
        )  # fmt: skip
