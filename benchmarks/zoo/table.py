"""The tables of ``docs/models.md``, made of committed rows; see :mod:`benchmarks.zoo.measure`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator

from benchmarks.results import Row
from benchmarks.summary import lined_up
from benchmarks.zoo.catalogue import GRIDS


def tables(rows: list[Row], kind: str) -> list[str]:
    """Return the lines of one table: ``answers``, ``training``, ``inference`` or ``summary``."""
    whole = [row for row in rows if "error" not in row]
    if kind == "answers":
        head = ("package", "model", "replaced", "fused calls", "float32", "bfloat16")
        return list(lined_up(head, map(answers, whole)))
    if kind == "summary":
        return list(summary(whole))
    head = ("package", "model", *(f"{tokens} tokens" for tokens in GRIDS))
    return list(lined_up(head, (speeds(row, kind) for row in whole if row.get(kind))))


def answers(row: Row) -> Iterator[str]:
    """Yield the cells that say what is replaced, and the errors of ours and of its own."""
    yield from named(row)
    yield ", ".join(f"{count} {what}" for what, count in row["replaced"].items()) or "nothing"
    yield str(row["fused_calls"])
    for dtype in ("float32", "bfloat16"):
        ours, own = (max(pair) for pair in zip(*row["errors"][dtype].values(), strict=True))
        yield f"{ours:.1e} ({own:.1e})"


def speeds(row: Row, mode: str) -> Iterator[str]:
    """Yield the cells that say how many times as fast it becomes; in brackets, by one line."""
    yield from named(row)
    for tokens in GRIDS:
        race = row[mode].get(str(tokens), {})
        cells = [f"{statistics.median(race[key]):.2f}" for key in ("ours", "rival") if key in race]
        yield f"{cells[0]} ({cells[1]})" if len(cells) == 2 else "".join(cells)


def named(row: Row) -> Iterator[str]:
    yield f"{row['package']} {row['version']}"
    yield row["name"]


def gains(rows: Iterable[Row], mode: str, tokens: int) -> list[float]:
    """Return how many times as fast each model becomes, where that was measured."""
    races = [row.get(mode, {}).get(str(tokens), {}) for row in rows]
    return [statistics.median(race["ours"]) for race in races if "ours" in race]


def summary(rows: list[Row]) -> Iterator[str]:
    """Yield a table of how many models gain how much, by mode and number of tokens."""
    head = ("", "models", "slowest", "median", "fastest", "at least 1.2x", "below 0.98x")
    body = []
    for mode in ("training", "inference"):
        for tokens in GRIDS:
            if found := gains(rows, mode, tokens):
                ends = (min(found), statistics.median(found), max(found))
                above, below = sum(g >= 1.2 for g in found), sum(g < 0.98 for g in found)
                counts = (str(above), str(below))
                cells = (str(len(found)), *(f"{g:.2f}" for g in ends), *counts)
                body.append((f"{mode}, {tokens} tokens", *cells))
    yield from lined_up(head, body)
