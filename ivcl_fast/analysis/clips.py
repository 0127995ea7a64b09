"""Clips to look at: frames decoded from their media, with what is known about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ivcl_fast.analysis.trajectory import frames_asked_about
from ivcl_fast.data.clip import find_media
from ivcl_fast.data.datamodule import open_dataset
from ivcl_fast.data.dataset import Clip, Dataset, Media, VideoError
from ivcl_fast.data.decode.decoder import choose_decoder, make_decoder
from ivcl_fast.data.decode.media import open_media
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.formats.cater_labels import Scene, hidden_at_end
from ivcl_fast.data.registry import clip_frames
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.errors import UserError
from ivcl_fast.training.run import Run


@dataclass(frozen=True)
class Shown:
    """A clip that was read."""

    name: str
    ids: list[int]
    """The frames of the video that the models are shown, numbered from 0."""
    decoded: dict[int, Tensor]
    """uint8 ``[3, H, W]`` by number: those frames, and what it takes to follow the snitch."""
    fps: float
    """0 where it is unknown."""
    truth: str = ""
    """The right answer in words, if known."""
    scene: Scene | None = None
    panels: bool = False
    """Whether these are pictures by themselves, the last of them a question (ACRE)."""

    def take(self, ids: Sequence[int]) -> Tensor:
        """uint8 ``[len(ids), 3, H, W]``."""
        return torch.stack([self.decoded[i] for i in ids])

    @property
    def frames(self) -> Tensor:
        """uint8 ``[T, 3, H, W]``: what the models are shown."""
        return self.take(self.ids)

    @property
    def titles(self) -> list[str]:
        """A title per frame."""
        if self.panels:
            return [*(f"panel {i + 1}" for i in self.ids[:-1]), "query"]
        return [
            f"frame {i + 1}" + (f", {i / self.fps:.1f} s" if self.fps else "") for i in self.ids
        ]


class Reader:
    """Reads clips of a run's data set, not from its store but from the media themselves."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.localizes = run.config.data.task.startswith("localize")
        self.panels = clip_frames(run.config.data.source) is not None
        """Whether the answers are cells of CATER's floor."""

    @cached_property
    def dataset(self) -> Dataset:
        """Opened when it is first needed: a file from elsewhere can be shown without it."""
        return open_dataset(self.run.config.data, read_only=True)

    @cached_property
    def media(self) -> dict[str, Media]:
        """The data set's media by name."""
        return {media.name: media for media in self.dataset.media()}

    @property
    def cater(self) -> Cater | None:
        """The data set, where its scenes tell where the snitch is."""
        return self.dataset if self.localizes and isinstance(self.dataset, Cater) else None

    def eval_clips(self) -> list[Clip]:
        """The clips that results are reported on."""
        return self.dataset.clips(self.dataset.splits[1])

    def file(self, path: Path) -> Shown:
        """A video file, or a folder of images, without its answer.

        Raises :class:`UserError` if it cannot be used.
        """
        try:
            media = find_media(path, clip_frames(self.run.config.data.source))
            return Shown(media.name, *self._decode(media), panels=self.panels)
        except VideoError as error:
            raise UserError(f"--video {path}: {error}") from None

    def read(self, clip: Clip) -> Shown:
        """A clip of the data set; raises :class:`VideoError` if its media cannot be used."""
        labels = clip.label if isinstance(clip.label, tuple) else (clip.label,)
        truth = "; ".join(self.dataset.describe(label) for label in labels)
        decoded = self._decode(self.media[clip.media], clip.frames)
        return Shown(clip.name, *decoded, truth, self._scene(clip), self.panels)

    def named(self, names: Sequence[str]) -> Iterator[Shown]:
        """Clips by name. Raises :class:`UserError` for one that is missing or cannot be used."""
        splits = (self.dataset.clips(split) for split in self.dataset.splits[:2])
        known = {clip.name: clip for clips in splits for clip in clips}
        for name in names:
            if name not in known:
                raise UserError(
                    f"--clip {name}: no such clip to train or to measure on in "
                    f"{self.dataset.root}; accepted: e.g. {next(iter(known))}"
                )
        return (self._read_named(known[name]) for name in names)

    def mixed(self, count: int) -> Iterator[Shown]:
        """:meth:`usable` clips for results; if they localise, every other ends hidden."""
        clips = self.eval_clips()
        if self.cater and self.cater.has_scenes([clip.name for clip in clips]):
            return self.usable(self._alternating(), count)
        return self.usable(clips, count)

    def usable(self, clips: Iterable[Clip], count: int) -> Iterator[Shown]:
        """The first ``count`` clips that can be read; one that cannot is named and left out.

        Raises :class:`UserError` if none can.
        """
        left = count
        for clip in clips:
            if left == 0:
                return
            try:
                shown = self.read(clip)
            except VideoError as error:
                print(f"{clip.name} left out: {error}")
                continue
            left -= 1
            yield shown
        if left == count:
            raise UserError(f"{self.dataset.root}: none of the clips to measure on can be read")

    def _alternating(self) -> Iterator[Clip]:
        """Clips that end with the snitch visible and hidden by turns, as long as there are both."""
        waiting: dict[bool, list[Clip]] = {False: [], True: []}
        clips, hidden = iter(self.eval_clips()), False
        while True:
            while not waiting[hidden]:
                if (clip := next(clips, None)) is None:
                    yield from waiting[not hidden]
                    return
                scene = self._scene(clip)
                waiting[scene is not None and hidden_at_end(scene)].append(clip)
            yield waiting[hidden].pop(0)
            hidden = not hidden

    def _read_named(self, clip: Clip) -> Shown:
        try:
            return self.read(clip)
        except VideoError as error:
            raise UserError(f"--clip {clip.name}: {error}") from None

    def _scene(self, clip: Clip) -> Scene | None:
        """The clip's scene, if it is needed and there."""
        if self.cater and self.cater.has_scenes([clip.name]):
            return self.cater.scene(clip.name)
        return None

    def _decode(
        self, media: Media, ids: Sequence[int] | None = None
    ) -> tuple[list[int], dict[int, Tensor], float]:
        """``ids`` or else evenly spaced ones, the frames that are needed, frames per second."""
        cfg = self.run.config.model
        with open_media(media) as opened:
            info = opened.info
            shown = list(ids or frame_ids(info.frames, cfg.num_frames).tolist())
            needed = set(shown)
            if self.localizes:
                needed.update(i for end in shown for i in frames_asked_about(end, cfg.num_frames))
            name, _ = choose_decoder(info, self.run.config.data.decoder)
            frames = make_decoder(name, cfg.image_size).decode_open(opened, sorted(needed))
        decoded = zip(sorted(needed), frames.to(self.run.device), strict=True)
        return shown, dict(decoded), info.fps
