"""``python -m ivcl_fast.visualize RUN``: see where a run's slots look, and what it answers.

Before and after finetuning: slot attention of every frame, reconstructions, for CATER the place the
model believes the snitch to be in as the video goes on, and how alike the slots have become.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from . import pictures
from .animation import PER_SECOND, attention_frames, write_gif, write_mp4
from .attention_figures import attention_figure, how_measured
from .data.cater import Cater
from .data.cater_labels import Scene, hidden_at_end
from .data.dataset import Clip, Dataset, Media, VideoError
from .data.decode import choose_decoder, make_decoder
from .data.probe import probe
from .data.sampling import frame_ids
from .data.source import open_dataset
from .errors import UserError, run_command
from .figures import save, spread
from .files import write_text
from .html import Page
from .model import IVCL, IVCLClassifier
from .run import Run
from .settings import as_json, load_settings
from .slot_attention import Model, slot_attention, slot_collapse
from .snitch_path import SnitchPath, follow_snitch, path_figure

MEASURED_CLIPS = 32
"""Clips that slot collapse is measured on."""
SHOWN_ANSWERS = 3


@dataclass(frozen=True)
class VisualizeConfig:
    """What to show."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run made by ivcl_fast.train."""
    clips: int = 4
    """Validation clips; of CATER localisation, half of them end with the snitch hidden."""
    clip: tuple[str, ...] = ()
    """These clips instead, by name, of any split."""
    video: Path | None = None
    """This one video file instead."""
    out: Path | None = None
    """Where to write; by default the folder visualize in the run."""
    per_head: bool = False
    """Also a picture for each head of the last block."""
    rollout: bool = False
    """Follow attention through all blocks (Abnar and Zuidema, 2020), not the last one alone."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise UserError(f"--clips: {self.clips} is not a whole number of at least 1")


@dataclass(frozen=True)
class Shown:
    """A clip that was read."""

    name: str
    video: Tensor
    """uint8 ``[F, 3, H, W]``: every frame."""
    ids: list[int]
    """The frames among them that the models are shown."""
    fps: float
    """0 where it is unknown."""
    truth: str = ""
    """The right answer in words, if known."""
    scene: Scene | None = None

    @property
    def frames(self) -> Tensor:
        """uint8 ``[T, 3, H, W]``: what the models are shown."""
        return self.video[self.ids]

    @property
    def titles(self) -> list[str]:
        """A title per frame."""
        return [
            f"frame {i + 1}" + (f", {i / self.fps:.1f} s" if self.fps else "") for i in self.ids
        ]


def visualize(config: VisualizeConfig) -> Path:
    """Write pictures of every clip and ``index.html``, which holds them all; returns its path."""
    run = Run(load_settings(config.run, device=config.device))
    models = load_models(run)
    reader = Reader(run)
    out = config.out or run.folder / "visualize"
    page = Page(f"{run.folder.name}: what its slots see")
    page.text(
        f"{run.config.task} on {run.config.data}, preset {run.config.preset}, seed "
        f"{run.config.seed}; {run.config.pretrain_clips} clips of pretraining, "
        f"{run.config.finetune_clips} of finetuning."
    )
    if config.video is not None:
        shown: Iterator[Shown] = iter([reader.file(config.video)])
    else:
        shown = reader.named(config.clip) if config.clip else reader.spread(config.clips)
        measure_collapse(page, run, reader, models, config.rollout)
    for clip in shown:
        show_clip(page, run, clip, models, out / clip.name, config)
        print(f"{clip.name}: {out / clip.name}")
    page.heading("Settings of the run")
    page.table(["setting", "value"], settings_rows(as_json(run.config)))
    index = out / "index.html"
    write_text(index, str(page))
    return index


def load_models(run: Run) -> dict[str, Model]:
    """The run's finished models, before and after finetuning. Raises :class:`UserError` if none."""
    models: dict[str, Model] = {}
    if run.finished("pretrain"):
        models["pretrained"] = run.load_pretrained()
    if run.finished("finetune"):
        models["finetuned"] = run.load_classifier("finetune")
    if not models:
        raise UserError(
            f"{run.folder}: holds no finished model; a stage of ivcl_fast.train must end"
        )
    return models


def untrained(run: Run) -> IVCL:
    """A model of the run's sizes as training starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.config.seed)
        return IVCL(run.config.model).to(run.device).eval()


# --- Clips ---------------------------------------------------------------------------------------


class Reader:
    """Reads whole clips of a run's data set from its media."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.device = run.device
        self.cfg = run.config.model
        self._dataset: Dataset | None = None
        self._media: dict[str, Media] = {}

    @property
    def dataset(self) -> Dataset:
        """Opened when it is first needed: a file from elsewhere can be shown without it."""
        if self._dataset is None:
            self._dataset = open_dataset(self.run.config)
            self._media = {media.name: media for media in self._dataset.media()}
        return self._dataset

    @property
    def localizes(self) -> bool:
        """Whether the answers are cells of CATER's floor."""
        return self.run.config.task.startswith("localize")

    def eval_clips(self) -> list[Clip]:
        """The clips that results are reported on."""
        return self.dataset.clips(self.dataset.splits[1])

    def scene(self, clip: Clip) -> Scene | None:
        """The clip's scene, if its data set has such."""
        return self.dataset.scene(clip.name) if isinstance(self.dataset, Cater) else None

    def file(self, path: Path) -> Shown:
        """A video file, without its answer. Raises :class:`UserError` if it cannot be used."""
        try:
            video, fps = self._decode(Media(path.stem, (path,)))
        except VideoError as error:
            raise UserError(f"--video {path}: {error}") from None
        ids = frame_ids(len(video), self.cfg.num_frames).tolist()
        return Shown(path.stem, video, ids, fps)

    def read(self, clip: Clip) -> Shown:
        """A clip of the data set; raises :class:`VideoError` if its media cannot be used."""
        video, fps = self._decode(self._media[clip.media])
        ids = list(clip.frames or frame_ids(len(video), self.cfg.num_frames).tolist())
        labels = clip.label if isinstance(clip.label, tuple) else (clip.label,)
        truth = "; ".join(self.dataset.describe(label) for label in labels)
        return Shown(clip.name, video, ids, fps, truth, self.scene(clip))

    def named(self, names: tuple[str, ...]) -> Iterator[Shown]:
        """Clips by name. Raises :class:`UserError` for one that is missing or cannot be used."""
        splits = (self.dataset.clips(split) for split in self.dataset.splits[:2])
        known = {clip.name: clip for clips in splits for clip in clips}
        for name in names:
            if name not in known:
                raise UserError(
                    f"--clip {name}: no such clip in {self.dataset.root}; accepted: e.g. "
                    f"{next(iter(known))}"
                )
        for name in names:
            try:
                yield self.read(known[name])
            except VideoError as error:
                raise UserError(f"--clip {name}: {error}") from None

    def spread(self, count: int) -> Iterator[Shown]:
        """The first clips for results that can be used; if they localise, every other is hidden."""
        clips = self.eval_clips()
        if self.localizes:
            parts: dict[bool, list[Clip]] = {False: [], True: []}
            for clip in clips:
                scene = self.scene(clip)
                parts[scene is not None and hidden_at_end(scene)].append(clip)
                if min(map(len, parts.values())) == count:
                    break
            few = min(map(len, parts.values()))
            pairs = zip(*(part[:few] for part in parts.values()), strict=True)
            clips = [clip for pair in pairs for clip in pair]
            clips += [clip for part in parts.values() for clip in part[few:]]
        yield from self.usable(clips, count)

    def usable(self, clips: list[Clip], count: int) -> Iterator[Shown]:
        """The first ``count`` clips that can be read; one that cannot is named and left out."""
        for clip in clips:
            if count == 0:
                return
            try:
                shown = self.read(clip)
            except VideoError as error:
                print(f"{clip.name} left out: {error}")
                continue
            count -= 1
            yield shown

    def _decode(self, media: Media) -> tuple[Tensor, float]:
        info = probe(media)
        name, _ = choose_decoder(info, self.run.config.decoder)
        video = make_decoder(name, self.cfg.image_size).decode(media)
        return video.to(self.device), info.fps


# --- Parts of the page ---------------------------------------------------------------------------


def measure_collapse(
    page: Page, run: Run, reader: Reader, models: dict[str, Model], rollout: bool
) -> None:
    """How alike the slots look, for each model and for an untrained one; printed, and on a page."""
    clips = list(reader.usable(reader.eval_clips(), MEASURED_CLIPS))
    rows = []
    for name, model in {"untrained": untrained(run), **models}.items():
        maps = [slot_attention(model, clip.frames[None], rollout=rollout).cpu() for clip in clips]
        scores = slot_collapse(torch.cat(maps))
        rows.append(
            [name, *(str(scores[m]) if m in scores else "" for m in ("overlap", "entropy"))]
        )
    header = ["model", "overlap of the slots", "entropy of a slot's map"]
    for row in [header, *rows]:
        print("{:<12}{:<24}{}".format(*row))
    page.heading("Have the slots collapsed?")
    page.table(header, rows)
    page.text(
        f"Overlap: 1 minus the Jensen-Shannon divergence (bits) of two slots' attention maps on a "
        f"frame, mean over pairs, frames and {len(clips)} clips of the evaluation split: 0 where "
        "slots share nothing, 1 where they look at the same (collapse). Entropy: 0 where a slot "
        "looks at one patch, 1 where at all alike; maps with an entropy near 1 overlap because "
        f"they tell nothing. 95 % intervals in brackets. {how_measured(None, rollout)}."
    )


@torch.inference_mode()
def show_clip(
    page: Page, run: Run, clip: Shown, models: dict[str, Model], out: Path, config: VisualizeConfig
) -> None:
    """All pictures of one clip, in the folder ``out`` and on the page."""
    out.mkdir(parents=True, exist_ok=True)
    page.heading(clip.name)
    names = " and ".join(models)
    path = None
    if classifier := models.get("finetuned"):
        assert isinstance(classifier, IVCLClassifier)
        page.text(answer_of(run, classifier, clip))
        if run.config.task.startswith("localize"):
            path = follow_snitch(classifier, clip.video, clip.ids, clip.scene)
            save(path_figure(path, clip.frames / 255, clip.titles), out / "path.png")
            page.picture(out / "path.png", path_caption(path))

    video, frames = clip.frames[None], clip.frames / 255
    chosen = spread(pictures.COLUMNS, len(clip.ids))
    titles = [clip.titles[t].replace(", ", "\n") for t in chosen]
    heads = list(range(run.config.model.num_heads)) if config.per_head else []
    for head in [None, *heads]:
        rollout = config.rollout and head is None
        maps = {n: slot_attention(m, video, head, rollout)[0].cpu() for n, m in models.items()}
        picture = out / ("attention.png" if head is None else f"attention-head-{head + 1}.png")
        shown = {name: of_model[chosen] for name, of_model in maps.items()}
        measured = how_measured(head, rollout)
        save(attention_figure(frames[chosen], shown, titles, measured), picture)
        page.picture(picture, f"Where the slots look, {names}: {measured}.")
        if head is None:
            images = list(attention_frames(frames, maps, clip.titles, path))
            write_gif(images, out / "slots.gif")
            write_mp4(images, out / "slots.mp4")
            page.picture(
                out / "slots.gif",
                f"All {len(clip.ids)} frames that the model is shown, {PER_SECOND} a second; "
                "slots.mp4 beside this page's pictures can be stopped.",
            )

    if isinstance(pretrained := models.get("pretrained"), IVCL):
        picture = out / "reconstruction.png"
        pictures.reconstruction_picture(pretrained, video, picture, run.config.seed)
        page.picture(picture, "What the pretrained model rebuilds of query frames.")


def answer_of(run: Run, classifier: IVCLClassifier, clip: Shown) -> str:
    """The classifier's likeliest answers, and the truth where it is known."""
    logits = classifier(clip.frames[None]).float()[0]
    scores = logits.sigmoid() if run.task.multi_label else logits.softmax(-1)
    best = zip(*scores.topk(min(SHOWN_ANSWERS, len(scores))), strict=True)
    answers = ", ".join(f"{run.task.names[int(label)]} ({score:.0%})" for score, label in best)
    return f"Answer: {answers}." + (f" Truth: {clip.truth}." if clip.truth else "")


def path_caption(path: SnitchPath) -> str:
    """What ``path.png`` shows, with its numbers."""
    caption = (
        "Where the finetuned model believes the snitch to be. It answers for the end of a video, "
        "so it is asked about the video cut off after each frame: no answer knows what comes later."
    )
    if path.distance is None or path.hidden is None:
        return caption
    for name, frames in (("visible", ~path.hidden), ("hidden", path.hidden)):
        if frames.any():
            right = int((path.distance[frames] == 0).sum())
            caption += (
                f" Snitch {name}: right after {right} of {frames.sum()} frames, "
                f"{path.distance[frames].mean():.1f} cells off on average."
            )
    return caption


def settings_rows(plain: dict) -> list[list[str]]:
    """A run's settings, those of the model by their own names."""
    flat = {key: value for key, value in plain.items() if key != "model"} | plain["model"]
    return [[key, str(value)] for key, value in flat.items()]


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    index = visualize(
        tyro.cli(VisualizeConfig, prog="python -m ivcl_fast.visualize", description=__doc__)
    )
    print(f"open: {index}")


if __name__ == "__main__":
    run_command(main)
