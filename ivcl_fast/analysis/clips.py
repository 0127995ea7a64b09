"""Clips of a run's data set, or a user's own, decoded from their media."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.analysis.trajectory import frames_up_to
from ivcl_fast.data.clip import find_media
from ivcl_fast.data.dataset import Clip, Media, VideoError
from ivcl_fast.data.decode.decoder import make_decoder, resolve_decoder
from ivcl_fast.data.decode.media import open_media
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.formats.cater_frames import frame_count
from ivcl_fast.data.formats.cater_labels import Scene, hidden_at_end
from ivcl_fast.data.registry import clip_frames
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.data.synthetic.drawn import Drawn, drawn_media
from ivcl_fast.errors import UserError
from ivcl_fast.text import printable


@dataclass(frozen=True)
class DecodedClip:
    """A clip's frames, with what is known about it."""

    name: str
    frame_index: list[int]
    """The frames of the video that models are given, numbered from 0."""
    decoded: dict[int, Tensor]
    """uint8 ``[3, H, W]`` by number: those frames, and what else the reader was asked for."""
    fps: float
    """Frames per second; 0 where unknown."""
    truth: str = ""
    """The correct answer in words, if known."""
    scene: Scene | None = None
    panels: bool = False
    """Whether the frames are separate images, the last of them a question (ACRE)."""

    def take(self, ids: Sequence[int]) -> Tensor:
        """Return frames by number: uint8 ``[len(ids), 3, H, W]``."""
        return torch.stack([self.decoded[i] for i in ids])

    @property
    def frames(self) -> Tensor:
        """uint8 ``[T, 3, H, W]``: what models are given."""
        return self.take(self.frame_index)

    @property
    def hidden(self) -> bool | None:
        """Whether the snitch ends inside a cone; None without a scene."""
        return None if self.scene is None else hidden_at_end(self.scene)

    @property
    def aligned_scene(self) -> Scene | None:
        """The scene, if it has the same number of frames as the video."""
        aligned = self.scene and frame_count(self.scene) == self.frame_index[-1] + 1
        return self.scene if aligned else None

    @property
    def titles(self) -> list[str]:
        """A title for each frame."""
        if self.panels:
            return [*(f"panel {i + 1}" for i in self.frame_index[:-1]), "query"]
        return [
            f"frame {i + 1}" + (f", {i / self.fps:.1f} s" if self.fps else "")
            for i in self.frame_index
        ]


class ClipReader:
    """Reads clips for the models of a run from the media themselves, not from the run's store.

    ``trajectories``: also decode the frames that
    :func:`~ivcl_fast.analysis.trajectory.follow_snitch` asks for. ``num_frames``: the frames of a
    clip, by default those of the run's settings; a model of last frames alone takes one.
    """

    def __init__(
        self, run: FinishedRun, trajectories: bool = False, num_frames: int | None = None
    ) -> None:
        self.run, self.trajectories = run, trajectories
        self.num_frames = num_frames or run.config.model.num_frames

    @cached_property
    def media(self) -> dict[str, Media]:
        """The data set's media by name."""
        return {media.name: media for media in self.run.dataset.media()}

    @cached_property
    def eval_clips(self) -> Sequence[Clip]:
        """The clips that results are reported on."""
        return self.run.dataset.clips(self.run.dataset.splits[1])

    def file(self, path: Path, flag: str) -> DecodedClip:
        """Read a video file, or a folder of images, which needs no data set.

        Raises :class:`UserError`, naming ``flag``, if it cannot be used.
        """
        try:
            return self._decode(find_media(path, self._panels))
        except VideoError as error:
            raise UserError(f"{flag} {path}: {error}") from None

    def read(self, clip: Clip) -> DecodedClip:
        """Read a clip of the data set; raises :class:`VideoError` if its media cannot be used."""
        labels = clip.label if isinstance(clip.label, tuple) else (clip.label,)
        truth = "; ".join(self.run.dataset.describe(label) for label in labels)
        decoded = self._draw(clip) if self._drawn else self._decode(self.media[clip.media], clip)
        scene = None
        if self._scenes and self._scenes.has_scenes([clip.name]):
            scene = self._scenes.scene(clip.name)
        return replace(decoded, name=clip.name, truth=truth, scene=scene)

    def named(self, names: Sequence[str]) -> Iterator[DecodedClip]:
        """Read clips by name. Raises :class:`UserError` for one that is missing or unusable."""
        dataset = self.run.dataset
        known = {clip.name: clip for split in dataset.splits[:2] for clip in dataset.clips(split)}
        if missing := [name for name in names if name not in known]:
            raise UserError(
                f"--clip {missing[0]}: no such clip in the training or evaluation split of "
                f"{dataset.root}; expected a name such as {next(iter(known))}"
            )

        def read(name: str) -> DecodedClip:
            try:
                return self.read(known[name])
            except VideoError as error:
                raise UserError(f"--clip {name}: {error}") from None

        return map(read, names)

    def mixed(self, count: int, clips: Sequence[Clip] | None = None) -> Iterator[DecodedClip]:
        """Read the first ``count`` usable clips of ``clips``, by default of :attr:`eval_clips`.

        For a localisation task with scenes, clips that end with the snitch visible and hidden take
        turns.
        """
        clips = self.eval_clips if clips is None else clips
        scenes = self._scenes
        if scenes is None or not scenes.has_scenes([clip.name for clip in clips]):
            return self.usable(clips, count)
        ends = tee((clip, hidden_at_end(scenes.scene(clip.name))) for clip in clips)
        visible = (clip for clip, is_hidden in ends[0] if not is_hidden)
        hidden = (clip for clip, is_hidden in ends[1] if is_hidden)
        pairs = zip_longest(visible, hidden)  # in turn, as long as there are both
        return self.usable((clip for pair in pairs for clip in pair if clip), count)

    def usable(self, clips: Iterable[Clip], count: int) -> Iterator[DecodedClip]:
        """Read the first ``count`` clips that can be decoded; others are named and left out.

        Raises :class:`UserError` if none can.
        """
        left = count
        for clip in clips:
            if left == 0:
                return
            try:
                decoded = self.read(clip)
            except VideoError as error:
                print(printable(f"{clip.name} left out: {error}"))
                continue
            left -= 1
            yield decoded
        if left == count:
            raise UserError(
                f"{self.run.dataset.root}: no clip of the evaluation split can be decoded"
            )

    @property
    def _panels(self) -> int | None:
        """Frames of every clip where the data set fixes them."""
        return clip_frames(self.run.config.data.source)

    @property
    def _scenes(self) -> Cater | None:
        """The data set, if its scenes say where the snitch is."""
        dataset = self.run.dataset if self.run.localizes else None
        return dataset if isinstance(dataset, Cater) else None

    @cached_property
    def _drawn(self) -> Drawn | None:
        """The media, if they are drawn instead of decoded."""
        return drawn_media(self.run.dataset)

    def _draw(self, clip: Clip) -> DecodedClip:
        assert self._drawn
        frames = torch.cat([*self._drawn.frames(clip.media, self.run.config.model.image_size)])
        index, needed = self._frames_of(len(frames), clip)
        return self._clip(clip.media, index, needed, frames[needed], self._drawn.spec.fps)

    def _decode(self, media: Media, clip: Clip | None = None) -> DecodedClip:
        with open_media(media) as opened:
            info = opened.info
            index, needed = self._frames_of(info.frames, clip)
            name = resolve_decoder(self.run.config.data.decoder)
            crop, size = info.square(self.run.config.data.crop), self.run.config.model.image_size
            frames = make_decoder(name, size).decode_open(opened, needed, crop)
        return self._clip(media.name, index, needed, frames, info.fps)

    def _frames_of(self, count: int, clip: Clip | None) -> tuple[list[int], list[int]]:
        """Return the frames for models, by default evenly spaced ones, and all that are needed."""
        chosen = frame_ids(count, self.num_frames, stride=self.run.config.data.frame_stride)
        ids = clip.frames if clip else None
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
        return DecodedClip(name, index, decoded, fps, panels=self._panels is not None)
