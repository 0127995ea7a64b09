"""Tables: one content, written as Markdown, as HTML or to a terminal of any width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from ivcl_fast.evaluation.evaluate import Result
from ivcl_fast.text import markdown_table

METRIC_NAMES = {
    "top1": "top-1", "top5": "top-5", "class_mean": "mean class", "l1": "L1 (cells)", "map": "mAP",
    "query": "query", "problem": "problem", "direct": "direct", "indirect": "indirect",
    "screen_off": "screened-off", "potential": "backward-blocked",
}  # fmt: skip
"""Names of metrics in tables, by their names in ``scores.json``."""
PLAIN_WIDTH = 100
"""Characters per line where the output is not a terminal."""
NAME_WIDTH = 26
"""Characters that the names of rows may take in a table that is too wide."""
COLUMNS = 4
"""Columns of values in each part of a table that is too wide."""
PADDING = 3
"""Characters between two columns."""


@dataclass(frozen=True)
class Table:
    """Cells of text under a header; the first ``names`` columns say what a row is."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1

    def markdown(self) -> list[str]:
        """Return the lines of a Markdown table."""
        return markdown_table(self.header, self.rows)

    def __str__(self) -> str:
        """Return the Markdown table as one text."""
        return "\n".join(self.markdown())

    def html(self) -> str:
        """Return an HTML table; texts are escaped."""
        lines = [("th", self.header), *(("td", row) for row in self.rows)]
        body = (
            f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in cells)}</tr>"
            for tag, cells in lines
        )
        return "\n".join(["<table>", *body, "</table>"])

    def print(self, title: str = "") -> None:
        """Print the table, within the terminal's width or :data:`PLAIN_WIDTH` characters.

        In a table that is too wide, intervals move to lines of their own, and columns are dealt out
        to several tables below each other. A name is not repeated in the rows that follow.
        """
        terminal = Console()
        console = terminal if terminal.is_terminal else Console(width=PLAIN_WIDTH)
        console.print(Text(title))
        columns = [list(column) for column in zip(self.header, *self.rows, strict=True)]
        first = columns[0]
        columns[0] = ["" if i and first[i - 1] == text else text for i, text in enumerate(first)]
        names, values = columns[: self.names], columns[self.names :]
        at_once = len(values)
        if sum(max(map(len, column)) + PADDING for column in columns) > console.width:
            names = [[textwrap.fill(text, NAME_WIDTH) for text in column] for column in names]
            values = [[text.replace(" [", "\n[") for text in column] for column in values]
            at_once = COLUMNS
        for start in range(0, len(values), at_once):
            drawn = TerminalTable(box=box.SIMPLE_HEAD, pad_edge=False)
            shown = [*names, *values[start : start + at_once]]
            for head, *_ in shown:
                drawn.add_column(Text(head))
            for cells in zip(*(column[1:] for column in shown), strict=True):
                drawn.add_row(*map(Text, cells))
            console.print(drawn)


def results_table(results: Sequence[Result]) -> Table:
    """Return a run's table of results: a row for each result and group of clips, chance last."""
    chances = results[0].scores["all"]
    header = ["model", "clips", *(METRIC_NAMES[name] for name in chances)]
    rows = [
        [result.title, group, *(str(scores.get(name, "")) for name in chances)]
        for result in results
        for group, scores in result.scores.items()
    ]
    chance = [score.format(score.chance) for score in chances.values()]
    return Table(header, [*rows, ["chance", "all", *chance]], names=2)
