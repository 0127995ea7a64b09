"""Tables that can be written as Markdown or printed at any terminal width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from ivcl_fast.evaluation.evaluate import Result
from ivcl_fast.text import markdown_table

METRIC_NAMES = {
    "top1": "top-1", "top5": "top-5", "class_mean": "mean class", "l1": "L1 (cells)", "map": "mAP",
    "query": "query", "problem": "problem", "direct": "direct", "indirect": "indirect",
    "distance": "distance", "screen_off": "screened-off", "potential": "backward-blocked",
}  # fmt: skip
"""Titles of metrics by name in ``scores.json``."""
PLAIN_WIDTH = 100
"""Characters per line if the output is not a terminal."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """What a page says about a cell under the pointer, by row and column."""

    def __str__(self) -> str:
        """Return a Markdown table."""
        return "\n".join(markdown_table(self.header, self.rows))

    def print(self, title: str = "") -> None:
        """Print the table, within the terminal's width or :data:`PLAIN_WIDTH` characters.

        If the table is too wide, intervals move to separate lines. Names are not repeated in
        consecutive rows.
        """
        terminal = Console()
        console = terminal if terminal.is_terminal else Console(width=PLAIN_WIDTH)
        columns = [list(column) for column in zip(self.header, *self.rows, strict=True)]
        too_wide = sum(max(map(len, column)) + 3 for column in columns) > console.width
        table = TerminalTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for head in self.header:
            table.add_column(Text(head))
        for before, row in zip([[""], *self.rows], self.rows, strict=False):
            name = "" if row[0] == before[0] else row[0]
            cells = [name, *row[1:]]
            if too_wide:
                cells = [cell.replace(" [", "\n[") for cell in cells]
            table.add_row(*map(Text, cells))
        console.print(Text(title))
        console.print(table)


def results_table(results: Sequence[Result], seed: int = 0) -> Table:
    """Return a run's table of results: a row for each result and group of clips, chance last.

    Groups are shown with their numbers of clips. ``seed``: of the run, for the notes.
    """
    chances = results[0].scores["all"]
    header = ["model", "clips", *(METRIC_NAMES[name] for name in chances)]
    rows, notes = list[list[str]](), dict[tuple[int, int], str]()
    for result in results:
        for group, scores in result.scores.items():
            clips = f"{group} ({next(iter(scores.values())).n:,})"
            for column, name in enumerate(chances, 2):
                if score := scores.get(name):
                    low, high, chance = map(score.format, (score.low, score.high, score.chance))
                    notes[len(rows), column] = (
                        f"{result.title}, {clips}: 95 % interval {low} to {high}; chance {chance}; "
                        f"seed {seed}"
                    )
            rows.append([result.title, clips, *(str(scores.get(name, "")) for name in chances)])
    chance_row = [score.format(score.chance) for score in chances.values()]
    return Table(header, [*rows, ["chance", "all", *chance_row]], notes)
