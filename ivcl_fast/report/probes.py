"""What linear probes found: a table, a figure, and the scores as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

from ivcl_fast.analysis.cater_probes import GUESS, PROBES, Scores
from ivcl_fast.analysis.linear_probes import PLACES
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.files import write_json, write_text
from ivcl_fast.report.figures import new_figure, save
from ivcl_fast.report.run import markdown, plain

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
UNITS = {
    "top-1": "top-1 (%)",
    "mAP": "mean average precision (%)",
    "distance": "distance (units)\nlower is better",
}


def kinds_in(scores: Scores) -> list[str]:
    """All kinds of features and guesses, in the order they came."""
    return list(
        dict.fromkeys(
            kind for groups in scores.values() for of_group in groups.values() for kind in of_group
        )
    )


def table(scores: Scores) -> tuple[list[str], list[list[str]]]:
    """Header and cells: a line per probe and group of frames."""
    kinds = kinds_in(scores)
    lines = []
    for name, groups in scores.items():
        for group, of_group in groups.items():
            any_score = next(iter(of_group.values()))
            cells = [str(of_group[kind]) if kind in of_group else "" for kind in kinds]
            chance = any_score.format(any_score.chance)
            lines.append([name, PROBES[name].kind.measure, group, chance, *cells])
    return ["probe", "score", "frames", "chance", *kinds], lines


def write(
    folder: Path, run_name: str, about_run: str, scores: Scores, clips: tuple[int, int]
) -> None:
    """``probes.md``, ``probes.png`` and ``probes.json``; the table also on the terminal.

    ``about_run``: which models they are; ``clips``: how many the probes were fitted and scored on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    header, lines = table(scores)
    drawn = Table(*header, title="linear probes of frozen slots, 95 % intervals in brackets")
    for line in lines:
        drawn.add_row(*line)
    Console(width=None if Console().is_terminal else 220).print(drawn)
    draw(folder / "probes.png", scores)
    json = {name: plain(groups) for name, groups in scores.items()}
    head = {"about": about_run, "train_clips": clips[0], "eval_clips": clips[1]}
    write_json(folder / "probes.json", head | {"scores": json})
    page = [
        f"# What can be read off the slots of {run_name}",
        "",
        f"Linear probes of frozen slots, fitted on frames of {clips[0]} training clips, scored on "
        f"those of {clips[1]} validation clips; 95 % intervals in brackets, drawing whole clips. "
        "Beside the slots every probe is told which of the clip's frames it is asked about; *time "
        "alone* is told nothing else. *Frame alone*: slots of the image encoder, which sees no "
        "other frame; *all frames*: of the temporal transformer. *Hidden*: inside a cone. *None in "
        "sight*: of the frames in which nothing of a shape or color is to be seen, in which is one "
        f"inside a cone? *{GUESS.capitalize()}*: guessing so, one of them at random. A distance is "
        "in world units, of which a cell is one wide.",
        "",
        *([MEMORISED, ""] if any(kind.startswith("finetuned") for kind in header) else []),
        markdown(header),
        "|" + "---|" * len(header),
        *map(markdown, lines),
        "",
        "![probes](probes.png)",
        "",
        about_run,
        "",
    ]
    write_text(folder / "probes.md", "\n".join(page))
    print(f"report: {folder / 'probes.md'}")


def draw(path: Path, scores: Scores) -> None:
    """A panel per probe: scores with their intervals by group of frames, chance dashed."""
    kinds = kinds_in(scores)
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
                draw_group(axes, at, of_group, kinds)
            axes.set(title=name, ylabel=UNITS[PROBES[name].kind.measure])
            ticks = [group.replace(" at", "\nat") for group in groups]
            axes.set(xticks=range(len(groups)), xticklabels=ticks)
            axes.set_xlim(-0.5, len(groups) - 0.5)
            if PROBES[name].kind is not PLACES:
                axes.set_ylim(0, None)
            axes.grid(axis="y", color="0.92")
    handles = [Line2D([], [], ls="--", color="k", lw=1, label="chance")]
    handles += [Line2D([], [], ls="", label=kind, **mark(kind)) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle("Linear probes of frozen slots, 95 % intervals", fontsize=12)
    save(figure, path)


def mark(kind: str) -> dict[str, Any]:
    """How a kind is marked: hollow where it sees one frame alone."""
    model, _, frames = kind.partition(", ")
    color = COLORS.get(model, "tab:green")
    shape = "o" if frames else "D"
    return dict(marker=shape, color=color, mfc="white" if "alone" in frames else color, ms=5)


def draw_group(axes: Axes, at: int, scores: dict[str, Score], kinds: list[str]) -> None:
    """The marks of one group of frames around x = ``at``, and its chance."""
    for number, kind in enumerate(kinds):
        if kind in scores:
            score = scores[kind]
            value, low, high = (
                (100 if score.percent else 1) * v for v in (score.value, score.low, score.high)
            )
            x = at + 0.7 * ((number + 0.5) / len(kinds) - 0.5)
            errors = [[max(value - low, 0)], [max(high - value, 0)]]
            axes.errorbar(x, value, errors, elinewidth=1.2, capsize=2, **mark(kind))
    score = next(iter(scores.values()))
    chance = (100 if score.percent else 1) * score.chance
    axes.plot([at - 0.42, at + 0.42], [chance] * 2, "--", color="k", lw=1, zorder=0)
