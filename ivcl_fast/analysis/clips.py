"""Clips of a run's data set or of a user's video, and where a model sees the snitch in them.

The classifier answers for the end of a video. To follow the snitch over time, its input is the
video cut off after each frame: evenly spaced frames up to and including that frame, so that no
prediction depends on later frames. Videos cut off early are shorter and slower than any training
video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.data.clip import find_media
from ivcl_fast.data.dataset import Clip, Media, VideoError, describe_label
from ivcl_fast.data.decode.decoder import make_decoder, open_media, resolve_decoder
from ivcl_fast.data.formats import cater_frames
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.formats.cater_labels import Scene, hidden_at_end
from ivcl_fast.data.frame_labels import SHAPES, visible_centres
from ivcl_fast.data.registry import clip_frames
from ivcl_fast.data.sampling import clip_stride, frame_ids
from ivcl_fast.data.synthetic.cater.write import spec_of
from ivcl_fast.data.synthetic.drawn import Drawn, drawn_media
from ivcl_fast.errors import UserError
from ivcl_fast.models import reference
from ivcl_fast.text import printable


@dataclass(frozen=True)
class DecodedClip:
    """The frames of a clip and their metadata."""

    name: str
    frame_index: list[int]
    """Numbers, from 0, of the video frames that models see."""
    decoded: dict[int, Tensor]
    """uint8 ``[3, H, W]`` by number: those frames, and others requested from the reader."""
    fps: float
    """Frames per second; 0 if unknown."""
    labels: tuple[str, ...] = ()
    """Names of the correct classes, if known."""
    scene: Scene | None = None
    panels: bool = False
    """Whether the frames are separate images, the last of which is a question (ACRE)."""
    video: str = ""
    """Name of the media, which clips may share."""
    snitch: tuple[int | None, ...] = ()
    """The patch of the visible snitch's centre in each frame; empty if unknown."""

    def take(self, ids: Sequence[int]) -> Tensor:
        """Return frames by number: uint8 ``[len(ids), 3, H, W]``."""
        return torch.stack([self.decoded[i] for i in ids])

    @property
    def frames(self) -> Tensor:
        """Model input, uint8 ``[T, 3, H, W]``."""
        return self.take(self.frame_index)

    @property
    def aligned_scene(self) -> Scene | None:
        """The scene, if its number of frames equals the video's."""
        aligned = self.scene and cater_frames.frame_count(self.scene) == self.frame_index[-1] + 1
        return self.scene if aligned else None

    @property
    def titles(self) -> list[str]:
        """A title for each frame; frames of a video are numbered from 1."""
        if self.panels:
            return [*(f"panel {i + 1}" for i in self.frame_index[:-1]), "query"]
        return [
            f"frame {i + 1}" + (f", {i / self.fps:.1f} s" if self.fps else "")
            for i in self.frame_index
        ]


class ClipReader:
    """Reads clips for a run's models from the media instead of the run's store.

    ``trajectories``: also decode the frames for :func:`follow_snitch`. ``num_frames``: frames per
    clip, by default as in the run's settings; a last-frame model takes one.
    """

    def __init__(
        self, run: FinishedRun, trajectories: bool = False, num_frames: int | None = None
    ) -> None:
        self.run, self.trajectories = run, trajectories
        self.num_frames = num_frames or run.config.model.num_frames
        self.panels = clip_frames(run.config.data.source)
        """Frames per clip, if the data set fixes the number."""

    @cached_property
    def media(self) -> dict[str, Media]:
        """The data set's media by name."""
        return {media.name: media for media in self.run.dataset.media()}

    @cached_property
    def drawn(self) -> Drawn | None:
        """The data set's media, if they are rendered instead of decoded."""
        return drawn_media(self.run.dataset)

    def file(self, path: Path, flag: str) -> DecodedClip:
        """Read a video file or a folder of images, without a data set.

        Raises :class:`UserError`, naming ``flag``, if it is unusable.
        """
        try:
            return self._decode(find_media(path, self.panels))
        except VideoError as error:
            raise UserError(f"{flag} {path}: {error}") from None

    def read(self, clip: Clip) -> DecodedClip:
        """Read a clip of the data set; raises :class:`VideoError` if its media cannot be used."""
        described = describe_label(self.run.dataset, clip)
        scenes = self.scenes([clip])
        if self.drawn:
            decoded = self._draw(self.drawn, clip)
        else:
            decoded = self._decode(self.media[clip.media], clip.frames)
        scene = scenes.scene(clip.name) if scenes else None
        decoded = replace(decoded, name=clip.name, labels=described, scene=scene)
        return replace(decoded, snitch=self.snitch_patches(decoded))

    def snitch_patches(self, clip: DecodedClip) -> tuple[int | None, ...]:
        """Return ``clip.snitch``, which needs the camera of a synthetic data set."""
        scene, grid = clip.aligned_scene, self.run.config.model.grid
        spec = spec_of(self.run.dataset.root) if scene and self.trajectories else None
        crop = self.run.config.data.crop
        if scene is None or spec is None or crop != "none":
            return ()
        number = [thing["shape"] for thing in scene["objects"]].index("spl")
        visible = np.zeros((cater_frames.frame_count(scene), len(scene["objects"])), dtype=bool)
        for frame in clip.frame_index:
            visible[frame, number] = not cater_frames.snitch_hidden(scene, frame)
        centres = visible_centres(scene, visible, grid, spec)[clip.frame_index, number]
        patches = (centres // len(SHAPES)).astype(int).tolist()
        return tuple(patch if patch < grid**2 else None for patch in patches)

    def scenes(self, clips: Sequence[Clip]) -> Cater | None:
        """Return the data set if each clip has a scene with the snitch's place."""
        dataset = self.run.dataset
        if not self.run.localizes or not isinstance(dataset, Cater):
            return None
        return dataset if dataset.has_scenes([clip.name for clip in clips]) else None

    def named(self, names: Sequence[str]) -> Iterator[DecodedClip]:
        """Read clips by name. Raises :class:`UserError` if one is missing or unusable."""
        dataset = self.run.dataset
        known = {clip.name: clip for split in dataset.splits[:2] for clip in dataset.clips(split)}
        if missing := [name for name in names if name not in known]:
            raise UserError(
                f"--clip: expected a clip of the training or evaluation split such as "
                f"{next(iter(known))}, got {missing[0]}"
            )
        for name in names:
            try:
                yield self.read(known[name])
            except VideoError as error:
                raise UserError(f"--clip {name}: {error}") from None

    def mixed(self, count: int, clips: Sequence[Clip] | None = None) -> Iterator[DecodedClip]:
        """Read the first ``count`` usable clips of ``clips``, by default the evaluation split.

        In the evaluation split, clips that end with a visible and with a hidden snitch alternate if
        scenes are known. Clips that cannot be decoded are printed and skipped. Raises
        :class:`UserError` if none can be decoded.
        """
        dataset = self.run.dataset
        chosen: Iterable[Clip] = dataset.clips(dataset.splits[1]) if clips is None else clips
        if clips is None and (scenes := self.scenes(list(chosen))):
            ends = tee((clip, hidden_at_end(scenes.scene(clip.name))) for clip in chosen)
            visible = (clip for clip, is_hidden in ends[0] if not is_hidden)
            hidden = (clip for clip, is_hidden in ends[1] if is_hidden)
            chosen = (clip for pair in zip_longest(visible, hidden) for clip in pair if clip)
        read = 0
        for clip in chosen:
            if read == count:
                return
            try:
                decoded = self.read(clip)
            except VideoError as error:
                print(printable(f"{clip.name} left out: {error}"))
                continue
            read += 1
            yield decoded
        if not read:
            raise UserError(f"{dataset.root}: no clip of the evaluation split can be decoded")

    def _draw(self, drawn: Drawn, clip: Clip) -> DecodedClip:
        """Render the frames of a synthetic clip that has no video file."""
        frames = torch.cat([*drawn.frames(clip.media, self.run.config.model.image_size)])
        index, needed = self._frames_of(len(frames), drawn.spec.fps, clip.frames)
        return self._clip(clip.media, index, needed, frames[needed], drawn.spec.fps)

    def _decode(self, media: Media, ids: Sequence[int] | None = None) -> DecodedClip:
        """Decode the frames ``ids``, by default evenly spaced."""
        opened = open_media(media)
        info = opened.info
        index, needed = self._frames_of(info.frames, info.fps, ids)
        name = resolve_decoder(self.run.config.data.decoder)
        crop, size = self.run.config.data.crop, self.run.config.model.image_size
        frames = make_decoder(name, size).decode_open(opened, needed, crop)
        return self._clip(media.name, index, needed, frames, info.fps)

    def _frames_of(
        self, count: int, fps: float, ids: Sequence[int] | None
    ) -> tuple[list[int], list[int]]:
        """Return the frames for models, by default evenly spaced, and all frames to decode."""
        data = self.run.config.data
        stride = clip_stride(data.frame_stride, data.clip_seconds, fps, self.num_frames)
        chosen = frame_ids(count, self.num_frames, stride=stride)
        index = list(ids or chosen.tolist())[-self.num_frames :]  # one frame: the last
        needed = set(index)
        if self.trajectories:
            length = self.run.config.model.num_frames
            needed.update(i for end in index for i in frames_up_to(end, length))
        return index, sorted(needed)

    def _clip(
        self, name: str, index: list[int], needed: list[int], frames: Tensor, fps: float
    ) -> DecodedClip:
        decoded = dict(zip(needed, frames.to(self.run.device), strict=True))
        return DecodedClip(name, index, decoded, fps, panels=self.panels is not None, video=name)


# --- The snitch over time ------------------------------------------------------------------------


class SnitchTrajectory(NamedTuple):
    """Predictions for a video cut off after each of E frames; cells of an n x n floor."""

    n: int
    belief: list[list[float]]
    """``[E][n * n]``: the predicted probability of each cell."""
    true: list[int] | None = None
    """``[E]``: the snitch's true cell; None without a scene."""
    hidden: list[bool] | None = None
    """``[E]``: whether the snitch is inside a cone; None without a scene."""

    def right_frames(self) -> list[tuple[str, int, int]]:
        """Count the frames whose likeliest cell is the true one, and all frames, by visibility."""
        counts = {"visible": [0, 0], "hidden": [0, 0]}
        cells = zip(self.belief, self.true or [], self.hidden or [], strict=False)
        for row, cell, is_hidden in cells:
            of = counts["hidden" if is_hidden else "visible"]
            of[0] += row.index(max(row)) == cell
            of[1] += 1
        return [(end, right, frames) for end, (right, frames) in counts.items() if frames]


def frames_up_to(end: int, num_frames: int) -> list[int]:
    """Return the sampled frames of a video cut off after frame ``end``."""
    return frame_ids(end + 1, num_frames).tolist()


@torch.inference_mode()
def follow_snitch(
    model: reference.IVCLClassifier,
    take: Callable[[Sequence[int]], Tensor],
    ends: list[int],
    scene: Scene | None = None,
) -> SnitchTrajectory:
    """Predict the snitch's cell after each of the frames ``ends``, numbered from 0.

    ``take(ids)`` returns frames of the video, uint8 ``[len(ids), 3, H, W]`` on the model's device;
    the ids are those of :func:`frames_up_to`. ``scene`` gives the true cells.
    """
    parts = [frames_up_to(end, model.cfg.num_frames) for end in ends]
    shared = sorted({i for ids in parts for i in ids})  # each is encoded once
    video = take(shared)[None]
    frame_index = torch.tensor([[[shared.index(i) for i in ids] for ids in parts]])
    logits = model(video, frame_index.to(video.device)).float()
    n, belief = round(logits.shape[1] ** 0.5), logits.softmax(dim=-1).tolist()
    if scene is None:
        return SnitchTrajectory(n, belief)
    cells = [cater_frames.snitch_cell(scene, end, n) for end in ends]
    hidden = [cater_frames.snitch_hidden(scene, end) for end in ends]
    return SnitchTrajectory(n, belief, cells, hidden)
