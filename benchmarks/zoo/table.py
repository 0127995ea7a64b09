"""The tables of ``docs/guide/accelerate_models.md``, of rows of :mod:`benchmarks.zoo.measure`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.results import Row
from benchmarks.summary import lined_up
from benchmarks.zoo.catalogue import GRIDS
from ivcl_fast.models.accelerate.crossovers import LIMITS
from ivcl_fast.models.accelerate.swap import MAX_TOKENS


def tables(rows: list[Row], kind: str) -> list[str]:
    """Return the lines of one table: ``answers``, ``training``, ``inference`` or ``summary``."""
    whole = [row for row in rows if "error" not in row]
    if kind == "answers":
        head = ("package", "model", "replaced", "fused calls", "float32", "bfloat16")
        return list(lined_up(head, map(answers, whole)))
    if kind == "summary":
        return list(summary(whole))
    raced = [row for row in whole if row.get(kind)]
    lengths = [tokens for tokens in GRIDS if any(str(tokens) in row[kind] for row in raced)]
    head = ("package", "model", *(f"{tokens} tokens" for tokens in lengths))
    return list(lined_up(head, (speeds(row, kind, lengths) for row in raced)))


def answers(row: Row) -> Iterator[str]:
    """Yield the cells that say what is replaced, and the errors of ours and of its own."""
    yield from named(row)
    yield ", ".join(f"{count} {what}" for what, count in row["replaced"].items()) or "nothing"
    yield str(row["fused_calls"])
    for dtype in ("float32", "bfloat16"):
        ours, own = (max(pair) for pair in zip(*row["errors"][dtype].values(), strict=True))
        yield f"{ours:.1e} ({own:.1e})"


def speeds(row: Row, mode: str, lengths: list[int]) -> Iterator[str]:
    """Yield the cells that say how many times as fast it becomes; in brackets, by one line.

    ``own`` stands where no fused op runs.
    """
    yield from named(row)
    for tokens in lengths:
        race = row[mode].get(str(tokens), {})
        if is_own(race):
            yield "own"
            continue
        cells = [f"{statistics.median(race[key]):.2f}" for key in ("ours", "rival") if key in race]
        yield f"{cells[0]} ({cells[1]})" if len(cells) == 2 else "".join(cells)


KINDS = {
    "attention": "attention",
    "separate_attention": "attention with separate queries, keys and values",
    "mlp": "MLP",
    "block": "block with LayerNorm",
    "rms_block": "block with RMSNorm",
}
HARDWARE = {"amx": "AMX", "avx2": "AVX2", "avx512bf16": "AVX-512", "cuda": "GPU (assumed)"}
"""The names in the guide of what ``crossovers.LIMITS`` has rows for."""


def limits() -> list[str]:
    """Return the lines of the table of the longest sequences that run fused.

    None is longer than those that are tried, whatever was measured.
    """
    columns = list(dict.fromkeys((name, dtype) for name, _, dtype in LIMITS))

    def cell(kind: str, name: str, dtype: str) -> str:
        lengths = LIMITS.get((name, kind, dtype), (0, 0))
        return " / ".join(str(min(tokens, MAX_TOKENS)) if tokens else "-" for tokens in lengths)

    head = ("", *(f"{HARDWARE[name]}, {dtype}" for name, dtype in columns))
    body = [(label, *(cell(kind, *column) for column in columns)) for kind, label in KINDS.items()]
    return list(lined_up(head, body))


def is_own(race: Row) -> bool:
    """Whether a model runs its own code at a length, so that there was nothing to race."""
    return race.get("fused_calls") == 0 and "ours" not in race


def named(row: Row) -> Iterator[str]:
    yield f"{row['package']} {row['version']}"
    yield row["name"]


def summary(rows: list[Row]) -> Iterator[str]:
    """Yield a table of how many models gain how much, by mode and number of tokens.

    ``own``: models in which no fused op runs at that length, so that they are as fast as before;
    lengths at which that holds for all are left out. ``by one line``: the median of those that can
    switch to an explicit softmax by one line, with it, and in brackets by fused ops.
    """
    head = (
        "", "replaced", "own", "slowest", "median", "fastest", "at least 1.2x", "below 0.98x",
        "by one line",
    )  # fmt: skip
    body = []
    for mode in ("training", "inference"):
        for tokens in GRIDS:
            races = [row.get(mode, {}).get(str(tokens), {}) for row in rows]
            own = sum(map(is_own, races))
            found = [statistics.median(race["ours"]) for race in races if "ours" in race]
            if not found:
                continue
            ends = (min(found), statistics.median(found), max(found))
            counts = sum(gain >= 1.2 for gain in found), sum(gain < 0.98 for gain in found)
            cells = [f"{mode}, {tokens} tokens", str(len(found)), str(own)]
            cells += [*(f"{gain:.2f}" for gain in ends), *map(str, counts)]
            both = [race for race in races if "ours" in race and "rival" in race]
            one_line, ours = (
                [statistics.median(race[key]) for race in both] for key in ("rival", "ours")
            )
            medians = map(statistics.median, (one_line, ours)) if both else ()
            cells.append("{:.2f} ({:.2f})".format(*medians) if both else "")
            body.append(cells)
    yield from lined_up(head, body)
