"""``--targets timm:NAME``: frozen features of a ViT, decoded by slot attention instead of pixels.

As in "Bridging the Gap to Real-World Object-Centric Learning" (Seitzer et al., ICLR 2023), a target
is the ViT's output for a patch. Frames are enlarged so that the ViT has as many patches as the
model. Features are computed once per frame and kept next to the frame store.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.store.table import decoded, encoded
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_write, sha256
from ivcl_fast.models.reference import as_pixels, unpatchify
from ivcl_fast.models.timm_weights import PREFIX, import_timm, local_path
from ivcl_fast.models.weights import weights_file
from ivcl_fast.progress import Bar
from ivcl_fast.text import first_line

BATCH = 64
"""Frames per forward pass of the ViT."""


def create_vit(source: str, **options: Any) -> Any:
    """Create the ViT of ``timm:NAME`` or ``timm:PATH``, which accepts any number of patches."""
    path = local_path(source)
    name = f"local-dir:{path}" if path else source.removeprefix(PREFIX)
    timm = import_timm(source)
    try:
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
    except (RuntimeError, ValueError, OSError, TypeError) as error:
        raise UserError(f"{source}: timm cannot load this ViT: {first_line(error)}") from None
    return model.eval()


def feature_dim(source: str) -> int:
    """Return the width of a ViT's features, without loading its weights."""
    with torch.device("meta"):
        return create_vit(source).num_features


class FrozenFeatures:
    """Features of the frames of a store; called like frame labels."""

    def __init__(self, source: str, folder: Path, device: torch.device | None = None) -> None:
        """Open the features of the store in ``folder``, or compute them on ``device``."""
        store = FrameStore(folder)
        self._index = store.index
        self._first = np.cumsum(store.index.frames) - store.index.frames
        path = local_path(source)
        made_of = [source, sha256(weights_file(path)) if path else "", store.index.about["shards"]]
        key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
        file = folder / f"features-{key}.f16"
        if not file.is_file():
            compute_features(source, store, file, device)
        shape = int(store.index.frames.sum()), store.num_patches, -1
        self._features = np.memmap(file, np.float16, "r").reshape(shape)

    def __call__(self, clip: Clip, frames: np.ndarray, frames_in_video: int) -> Tensor:
        """Return the features of frames of a clip: float16 ``[T, N, D]``."""
        (row,) = self._index.find(encoded([clip.media]))
        return torch.from_numpy(self._features[self._first[row] + frames])


@torch.inference_mode()
def compute_features(
    source: str, store: FrameStore, file: Path, device: torch.device | None
) -> None:
    """Write the features of all frames of a store, by video in the order of its index."""
    model = create_vit(source, pretrained=True).to(device)
    grid = store.image_size // store.patch_size
    height, width = (grid * side for side in model.patch_embed.patch_size)
    statistics = (torch.tensor(model.pretrained_cfg[name]) for name in ("mean", "std"))
    mean, std = (x.to(device)[:, None, None] for x in statistics)
    with atomic_write(file) as out, Bar("features", len(store.index), "videos") as bar:
        for number, name in enumerate(store.index.names, 1):
            frames = np.arange(store.index.frames[number - 1])
            for start in range(0, len(frames), BATCH):
                rows = torch.from_numpy(store.rows(decoded(name), frames[start : start + BATCH]))
                images = unpatchify(as_pixels(rows.to(device)), store.patch_size)
                images = F.interpolate(images, (height, width), mode="bilinear")
                tokens = model.forward_features((images - mean) / std)
                features = tokens[:, model.num_prefix_tokens :]
                # Equal scales for all ViTs and patches.
                features = F.layer_norm(features, features.shape[-1:])
                out.write(features.half().cpu().numpy().tobytes())
            bar(number)
