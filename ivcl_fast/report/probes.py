"""The results of linear probes: tables, a figure, and the scores as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ivcl_fast.analysis.cater_probes import GUESS, PROBES, Scores
from ivcl_fast.analysis.linear_probes import REGRESSION
from ivcl_fast.evaluation.evaluate import scores_as_json
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.files import write_json, write_text
from ivcl_fast.report.figures import new_figure, save
from ivcl_fast.report.tables import Table

COLORS = {
    "time alone": "tab:orange",
    "untrained": "0.45",
    "pretrained": "tab:purple",
    "finetuned": "tab:blue",
}
MEMORISED = (
    "The probes are fitted on clips that the finetuned model was finetuned on. Its slots of clips "
    "that it has memorised differ from its slots of unseen ones, more than a pretrained model's "
    "do; so the scores of *finetuned* may be too low beside those of *pretrained*."
)
ABOUT_SEGMENTS = (
    "How well what slots and background draw divides frames into objects, each pixel with the one "
    "that has the largest share of it. FG-ARI is the adjusted Rand index over the pixels of "
    "objects: 1 if two of these pixels are together exactly if they are of the same object, and 0 "
    "on average for segments at random. ARI is that over all pixels, where the floor is one more "
    "object. Frames with fewer than two objects in view are left out."
)
UNITS = {
    "top-1": "top-1 (%)",
    "mAP": "mean average precision (%)",
    "distance": "distance (units)\nlower is better",
}


def feature_names(scores: Scores) -> list[str]:
    """Return the names of all features and guesses, in the order they came."""
    groups = (of_group for by_group in scores.values() for of_group in by_group.values())
    return list(dict.fromkeys(name for of_group in groups for name in of_group))


def probe_table(groups: dict[str, dict[str, Score]]) -> Table:
    """Return one probe's scores: a row per features, a column per group of frames, chance last."""
    names = dict.fromkeys(name for of_group in groups.values() for name in of_group)
    rows = [
        [name, *(str(of_group.get(name, "")) for of_group in groups.values())] for name in names
    ]
    any_score = [next(iter(of_group.values())) for of_group in groups.values()]
    chance = ["chance", *(score.format(score.chance) for score in any_score)]
    return Table(["features", *(f"frames: {group}" for group in groups)], [*rows, chance])


def write(
    folder: Path,
    run_name: str,
    about_run: str,
    scores: Scores,
    clips: tuple[int, int],
    segments: dict[str, dict[str, Score]],
) -> None:
    """Write ``probes.md``, ``probes.png`` and ``probes.json`` to ``folder``; print the tables.

    ``about_run``: which models they are; ``clips``: how many the probes were fitted and scored on;
    ``segments``: how well what slots draw divides frames into objects, by model and metric.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw(folder / "probes.png", scores)
    json = {name: scores_as_json(groups) for name, groups in scores.items()}
    head = {"about": about_run, "train_clips": clips[0], "eval_clips": clips[1]}
    if segments:
        head["segments"] = scores_as_json(segments)
    write_json(folder / "probes.json", head | {"scores": json})
    finetuned = any(name.startswith("finetuned") for name in feature_names(scores))
    parts = [
        f"# Linear probes of the slots of {run_name}",
        f"Linear probes of frozen slots, fitted on frames of {clips[0]} training clips and scored "
        f"on those of {clips[1]} validation clips; 95 % intervals in brackets (whole clips are "
        "drawn). Beside the slots, every probe is given the number of the frame within its clip; "
        "*time alone* is given nothing else. *Frame alone*: slots of the image encoder, which sees "
        "no other frame; *all frames*: slots of the temporal transformer. Frames are *hidden* "
        "where the snitch is inside a cone. *None in sight*: is an object of a shape or color "
        "inside a cone, in frames where no object of it can be seen? "
        f"*{GUESS.capitalize()}*: the guess that the snitch is there, in the cell of one of them "
        "at random. A distance is in world units, of which a cell is one wide.",
        *([MEMORISED] if finetuned else []),
    ]
    for name, groups in scores.items():
        title, table = f"{name} ({PROBES[name].target.metric})", probe_table(groups)
        table.print(f"{title}, 95 % intervals in brackets")
        parts += [f"## {title}", str(table)]
    parts += ["![probes](probes.png)"]
    if segments:
        metrics = next(iter(segments.values()))
        rows = [[name, *map(str, of_model.values())] for name, of_model in segments.items()]
        table = Table(["model", *metrics], rows)
        table.print("objects in slots, 95 % intervals in brackets")
        parts += ["## Objects in slots", ABOUT_SEGMENTS, str(table)]
    parts += [about_run]
    write_text(folder / "probes.md", "\n\n".join(parts) + "\n")
    print(f"report: {folder / 'probes.md'}")


def draw(path: Path, scores: Scores) -> None:
    """Draw a panel per probe: scores with their intervals by group of frames; dashed: chance."""
    names = feature_names(scores)
    filled = [(name, groups) for name, groups in scores.items() if groups]
    figure = new_figure(11, 7.4)
    rows = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for row, of_row in zip(rows, (filled[:2], filled[2:]), strict=True):
        if not of_row:
            continue
        widths = [len(groups) for _, groups in of_row]
        panels = row.subplots(1, len(of_row), squeeze=False, width_ratios=widths)[0]
        for axes, (name, groups) in zip(panels, of_row, strict=True):
            for at, of_group in enumerate(groups.values()):
                draw_group(axes, at, of_group, names)
            axes.set(title=name, ylabel=UNITS[PROBES[name].target.metric])
            ticks = [group.replace(" at", "\nat") for group in groups]
            axes.set(xticks=range(len(groups)), xticklabels=ticks)
            axes.set_xlim(-0.5, len(groups) - 0.5)
            if PROBES[name].target is not REGRESSION:
                axes.set_ylim(0, None)
            axes.grid(axis="y", color="0.92")
    handles = [Line2D([], [], ls="--", color="k", lw=1, label="chance")]
    handles += [Line2D([], [], ls="", label=name, **mark(name)) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle("Linear probes of frozen slots, with 95 % intervals", fontsize=12)
    save(figure, path)


def mark(name: str) -> dict[str, Any]:
    """Return how features are marked: hollow where they come from one frame alone."""
    model, _, frames = name.partition(", ")
    color = COLORS.get(model, "tab:green")
    shape = "o" if frames else "D"
    return dict(marker=shape, color=color, mfc="white" if "alone" in frames else color, ms=5)


def draw_group(axes: Axes, at: int, scores: dict[str, Score], names: list[str]) -> None:
    """Draw the marks of one group of frames around x = ``at``, and its chance."""
    for number, name in enumerate(names):
        if name in scores:
            score = scores[name]
            value, low, high = (
                (100 if score.percent else 1) * v for v in (score.value, score.low, score.high)
            )
            x = at + 0.7 * ((number + 0.5) / len(names) - 0.5)
            errors = [[max(value - low, 0)], [max(high - value, 0)]]
            axes.errorbar(x, value, errors, elinewidth=1.2, capsize=2, **mark(name))
    score = next(iter(scores.values()))
    chance = (100 if score.percent else 1) * score.chance
    axes.plot([at - 0.42, at + 0.42], [chance] * 2, "--", color="k", lw=1, zorder=0)
