"""The results of linear probes: tables, and the scores as JSON."""

from __future__ import annotations

from pathlib import Path

from ivcl_fast.analysis.linear_probes import PROBES, Scores
from ivcl_fast.analysis.segments import SegmentScores
from ivcl_fast.evaluation.baselines import CONE
from ivcl_fast.evaluation.evaluate import scores_as_json
from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.files import write_json, write_text
from ivcl_fast.report.tables import Table

ABOUT = (
    "Besides the slots, every probe reads the number of the frame in its clip; *time alone* reads "
    "nothing else. *Frame alone*: slots of the image encoder, which sees no other frame; *all "
    "frames*: slots of the temporal transformer. Frames are *hidden* if the snitch is inside a "
    "cone. *None in sight*: whether an object of a shape or color is inside a cone, in frames "
    f"without a visible object of that kind. *{CONE.capitalize()}*: guess the cell of a random "
    "visible cone. Distances are in world units; a cell is 1 unit wide. The finetuned model was "
    "trained on the clips that probes are fitted on, so its scores may be too low compared with "
    "the pretrained model's."
)
ABOUT_SEGMENTS = (
    "Segments are the pixels in which a slot, or the background, has the largest share; for models "
    "that do not decode slots, the patches to which each slot attends most. *FG-ARI*: adjusted "
    "Rand index over the pixels of objects; *ARI*: over all pixels; *mBO*: intersection over union "
    "of each object with its best segment; *video*: all frames as one picture. "
    "*Re-identification*: occlusions after which an object is in the same slot as before, by "
    "length in frames of CATER's timeline of 301; chance is a random slot. *Hidden positions*: the "
    "slot that last had an object goes on drawing while the object is hidden, and the box of what "
    "it draws is compared with the object's true box: *mAP* at overlaps of 0.1 to 0.3, and the "
    "*distance* of the centres in widths of the picture."
)


def probe_table(groups: dict[str, dict[str, Score]]) -> Table:
    """Return a table of one probe's scores: a row per feature set, a column per group, chance
    last."""
    names = dict.fromkeys(name for of_group in groups.values() for name in of_group)
    rows = [
        [name, *(str(of_group.get(name, "")) for of_group in groups.values())] for name in names
    ]
    any_score = [next(iter(of_group.values())) for of_group in groups.values()]
    chance = ["chance", *(score.format(score.chance) for score in any_score)]
    return Table(["features", *(f"frames: {group}" for group in groups)], [*rows, chance])


def segment_table(rows: dict[str, dict[str, Score]]) -> Table:
    """Return a table with a row per model and a column per measure, without empty columns."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    cells = [
        [name, *(str(row.get(column, "")) for column in columns)] for name, row in rows.items()
    ]
    return Table(["model", *columns], cells)


def write(
    folder: Path,
    run_name: str,
    about_run: str,
    scores: Scores,
    clips: tuple[int, int],
    segments: SegmentScores,
) -> None:
    """Write ``probes.md`` and ``probes.json`` to ``folder``; print the tables.

    ``about_run``: description of the models; ``clips``: numbers of clips for fitting and scoring;
    ``segments``: scores of the slots' segments.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json = {name: scores_as_json(groups) for name, groups in scores.items()}
    head = {"about": about_run, "train_clips": clips[0], "eval_clips": clips[1]}
    if segments:
        head["segments"] = {table: scores_as_json(of) for table, of in segments.items()}
    write_json(folder / "probes.json", head | {"scores": json})
    parts = [
        f"# Linear probes of the slots of {run_name}",
        f"Linear probes of frozen slots, fitted on frames of {clips[0]} training clips and scored "
        f"on those of {clips[1]} validation clips; 95 % intervals in brackets (whole clips are "
        f"drawn). {ABOUT}",
    ]
    tables = {
        f"{name} ({PROBES[name].metric})": probe_table(groups) for name, groups in scores.items()
    }
    tables |= {name: segment_table(rows) for name, rows in segments.items()}
    for title, table in tables.items():
        table.print(f"{title} on {clips[1]} clips, 95 % intervals in brackets")
        parts += [f"## {title}", str(table)]
    parts += [ABOUT_SEGMENTS] * bool(segments) + [about_run]
    write_text(folder / "probes.md", "\n\n".join(parts) + "\n")
    print(f"report: {folder / 'probes.md'}")
