"""Files of other people in folders of ours, which no command may delete or change."""

from __future__ import annotations

from pathlib import Path

NAMES = ("thesis.md", "model.pt", "notes.tmp", "x.123.tmp", "step-1", "shard-me.json", "mine.lock")


def strange_files(folder: Path) -> dict[Path, str]:
    """Write files that no command writes into a folder and all folders below it."""
    made = {}
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in NAMES:
            (place / name).write_text(f"{place} {name}")
            made[place / name] = f"{place} {name}"
    return made


def check_strange(files: dict[Path, str]) -> None:
    """Raise ``AssertionError`` if one of these files, by path and content, is gone or changed."""
    assert {path: path.read_text() for path in files} == files
