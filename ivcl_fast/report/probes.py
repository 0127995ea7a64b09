"""The results of linear probes: tables, and the scores as JSON."""

from __future__ import annotations

from pathlib import Path

from ivcl_fast.analysis.cater_probes import GUESS, PROBES, Scores
from ivcl_fast.evaluation.evaluate import scores_as_json
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.files import write_json, write_text
from ivcl_fast.report.tables import Table

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
    """Write ``probes.md`` and ``probes.json`` to ``folder``; print the tables.

    ``about_run``: which models they are; ``clips``: how many the probes were fitted and scored on;
    ``segments``: how well what slots draw divides frames into objects, by model and metric.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json = {name: scores_as_json(groups) for name, groups in scores.items()}
    head = {"about": about_run, "train_clips": clips[0], "eval_clips": clips[1]}
    if segments:
        head["segments"] = scores_as_json(segments)
    write_json(folder / "probes.json", head | {"scores": json})
    features = {n for groups in scores.values() for of_group in groups.values() for n in of_group}
    finetuned = any(name.startswith("finetuned") for name in features)
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
    if segments:
        metrics = next(iter(segments.values()))
        rows = [[name, *map(str, of_model.values())] for name, of_model in segments.items()]
        table = Table(["model", *metrics], rows)
        table.print("objects in slots, 95 % intervals in brackets")
        parts += ["## Objects in slots", ABOUT_SEGMENTS, str(table)]
    parts += [about_run]
    write_text(folder / "probes.md", "\n\n".join(parts) + "\n")
    print(f"report: {folder / 'probes.md'}")
