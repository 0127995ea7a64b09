"""What came of a run, for a person: a table, pictures, and ``report.md`` that holds them."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ivcl_fast.evaluation.evaluate import Evaluation
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.evaluation.published import published
from ivcl_fast.files import write_json, write_text
from ivcl_fast.models.ivcl import IVCL
from ivcl_fast.models.reference import unpatchify
from ivcl_fast.report import plots as pictures

if TYPE_CHECKING:
    from ivcl_fast.data.dataset import Dataset
    from ivcl_fast.training.run import Run

METRIC_NAMES = {
    "top1": "top-1", "top5": "top-5", "l1": "L1 (cells)", "map": "mAP", "query": "query",
    "problem": "problem", "direct": "direct", "indirect": "indirect", "screen_off": "screened-off",
    "potential": "backward-blocked",
}  # fmt: skip
SHOWN_CLIPS = 4
SCORES = "scores.json"
"""Name of the file in a run's folder that holds its table of results."""
CLIPS = "clips.json"
"""Name of the one that says how the finetuned model answers each clip."""


@dataclass(frozen=True)
class Row:
    """One model, or one guess, in the table of results."""

    title: str
    scores: dict[str, dict[str, Score]]
    """By group of clips and metric, as :attr:`Evaluation.scores`."""
    right: Tensor | None = None
    """Per clip, as :attr:`Evaluation.right`; of a guess at random, how likely it is right."""


def table(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: a line per row and group of clips, chance last."""
    names = list(rows[0].scores["all"])
    header = ["model", "clips", *(METRIC_NAMES[n] for n in names)]
    cells = [
        [row.title, group, *(str(scores[n]) if n in scores else "" for n in names)]
        for row in rows
        for group, scores in row.scores.items()
    ]
    chance = [rows[0].scores["all"][n].format(rows[0].scores["all"][n].chance) for n in names]
    return header, [*cells, ["chance", "all", *chance]]


def print_rows(rows: list[Row]) -> None:
    """The table on the terminal; intervals are 95 %."""
    header, cells = table(rows)
    drawn = Table(*header, title="95 % intervals in brackets")
    for line in cells:
        drawn.add_row(*line)
    Console(width=None if Console().is_terminal else 120).print(drawn)


def write_report(run: Run, rows: list[Row], evaluation: Evaluation | None) -> None:
    """Draw the pictures that the run's models allow and write ``report.md``."""
    config, data, stages = run.config, run.config.data, run.config.stages
    lines = [
        f"# {run.folder.name}",
        "",
        f"{data.task} on `{data.source}`, preset `{config.preset}`, seed {config.seed}; "
        f"{stages.pretrain_clips} clips of pretraining, {stages.finetune_clips} of finetuning. "
        "Settings: [config.json](config.json), records: [metrics.jsonl](metrics.jsonl).",
        "",
    ]
    if config.quick:
        lines += ["A `--quick` run: it shows that everything runs, the scores mean nothing.", ""]
    if rows:
        header, cells = table(rows)
        split = run.data.eval_split
        lines += ["## Results", "", f"On `{split}`; 95 % intervals in brackets.", ""]
        lines += [markdown(header), "|" + "---|" * len(header), *map(markdown, cells), ""]
        lines += beside(run.data.dataset, rows[0].scores["all"])
    if bad := run.data.bad_files:
        name, reason = next(iter(bad.items()))
        lines += [f"{len(bad)} videos could not be used, such as {name}: {reason}.", ""]
    if config.output.pictures:
        lines += draw_all(run, evaluation)
    lines += [f"torch {torch.__version__}, {run.device}, {platform.machine()}.", ""]
    write_text(run.folder / "report.md", "\n".join(lines))
    if evaluation is not None:
        write_json(run.folder / CLIPS, by_clip(rows, evaluation))
    if rows:  # last: it says that the run is done
        write_json(run.folder / SCORES, {row.title: plain(row.scores) for row in rows})


def by_clip(rows: list[Row], evaluation: Evaluation) -> list[dict[str, Any]]:
    """The finetuned model's answers, and how ``right`` every row's are, where there is one each."""
    clips = evaluation.by_clip()
    for row in rows:
        if row.right is not None:
            for clip, right in zip(clips, row.right.tolist(), strict=True):
                clip.setdefault("right", {})[row.title] = right
    return clips


def beside(dataset: Dataset, ours: dict[str, Score]) -> list[str]:
    """The report's lines with what others publish on the data set, where something is known."""
    others = published(dataset)
    if not others:
        return []
    names = [name for name in ours if any(name in row.scores for row in others)]
    header = ["published", *(METRIC_NAMES[name] for name in names), "read in"]
    lines = [
        "Others' scores, as published; not measured here.",
        "",
        markdown(header),
        "|" + "---|" * len(header),
    ]
    for row in others:
        cells = [ours[n].format(row.scores[n]) if n in row.scores else "" for n in names]
        lines.append(markdown([row.model, *cells, row.source]))
    return [*lines, ""]


def plain(scores: dict[str, dict[str, Score]]) -> dict[str, dict[str, Any]]:
    """Scores as JSON takes them."""
    return {
        group: {name: asdict(score) for name, score in by_metric.items()}
        for group, by_metric in scores.items()
    }


def draw_all(run: Run, evaluation: Evaluation | None) -> list[str]:
    """Draw what the run's models allow; returns the report's lines about it."""
    chance = (
        {f"val_{k}": s.chance for k, s in evaluation.scores["all"].items()} if evaluation else {}
    )
    pictures.curves_picture(run.folder / "curves.png", run.metrics.read(), chance)
    lines = ["## Curves", "", "![curves](curves.png)", ""]
    if run.finished("pretrain") and isinstance(model := run.load_pretrained(), IVCL):
        reconstruction(run, model)
        lines += [
            "## What pretraining rebuilds",
            "",
            "![reconstruction](reconstruction.png)",
            "",
        ]
    if evaluation is not None:
        answers(run, evaluation)
        if run.data.localizes:
            lines += ["## What the model answers", "", "![answers](answers.png)", ""]
        lines += ["## Where its slots look", "", "![slot attention](slot_attention.png)", ""]
    return lines


def markdown(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def reconstruction(run: Run, model: IVCL) -> None:
    """``reconstruction.png`` from the finished pretraining model and validation clips."""
    video = run.clips(run.clip_names()[:SHOWN_CLIPS])
    path = run.folder / "reconstruction.png"
    pictures.reconstruction_picture(model, video, path, run.config.seed)


def answers(run: Run, evaluation: Evaluation) -> None:
    """``slot_attention.png`` and, for localisation, ``answers.png`` of the finetuned model."""
    names = evaluation.names
    shown = list(range(min(SHOWN_CLIPS, len(names))))
    hidden = evaluation.hidden
    if hidden is not None:
        half = SHOWN_CLIPS // 2
        shown = [*(~hidden).nonzero()[:half, 0].tolist(), *hidden.nonzero()[:half, 0].tolist()]
    video = run.clips([names[i] for i in shown])
    model = run.load_classifier("finetune")
    pictures.slot_attention_picture(model, video, run.folder / "slot_attention.png")
    if run.data.localizes:
        pictures.answers_picture(
            run.folder / "answers.png",
            unpatchify(video, run.config.model.patch_size),
            evaluation.labels[shown],
            evaluation.logits[shown],
            None if hidden is None else hidden[shown],
            run.data.grid,
        )
