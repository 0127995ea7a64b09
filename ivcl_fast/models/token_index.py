"""Token indices, which select tokens from all sequences.

The index of token n of sequence f of ``[F, N, D]`` is f * N + n.
"""

from __future__ import annotations

import torch
from torch import Tensor


def select_tokens(x: Tensor, token_index: Tensor) -> Tensor:
    """Gather the tokens of ``[F, N, D]`` at an int64 index of any shape: ``[*index.shape, D]``."""
    return x.flatten(0, 1).index_select(0, token_index.flatten()).unflatten(0, token_index.shape)


def flat_index(positions: Tensor, length: int, first: int = 0) -> Tensor:
    """Return the token index of positions ``[F, *]``, relative to ``first``, in sequences of
    ``length`` tokens."""
    end = first + positions.shape[0] * length
    return positions + torch.arange(first, end, length, device=positions.device)[:, None]


def frame_positions(frames: Tensor, tokens_per_frame: int, count: int, first: int = 0) -> Tensor:
    """Return positions ``[B, Q * count]`` within a clip, of ``count`` tokens of each of its frames
    ``[B, Q]``.

    Each frame has ``tokens_per_frame`` tokens, and the selected ones start at ``first``.
    """
    return (frames.unsqueeze(-1) * tokens_per_frame + arange(count, frames, first)).flatten(1)


def slot_positions(frames: int, tokens_per_frame: int, slots: int, like: Tensor) -> Tensor:
    """Return positions ``[T * S]`` within a clip of the slots of all frames; slots come first in a
    frame."""
    return arange(frames * tokens_per_frame, like).unflatten(0, (frames, -1))[:, :slots].flatten()


def arange(n: int, like: Tensor, first: int = 0) -> Tensor:
    """Return the ``n`` numbers from ``first``, on the device of ``like``."""
    return torch.arange(first, first + n, device=like.device)
