"""What the writers of synthetic data sets share: claiming a folder, filling it, checking a spec.

A data set is many small items, each a function of the spec and its number alone, that appear under
their names only when whole, and an index that comes last. So a run that was killed is continued by
the same call, with the same bytes, and a folder that has its index is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivcl_fast.data.workers import Report, run_tasks, usable_cpus
from ivcl_fast.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MARKER = "synthetic.json"


def check_choice(spec: Any, name: str, accepted: Sequence[str]) -> None:
    """Raises :class:`UserError` unless a field of the spec has one of these values."""
    value = getattr(spec, name)
    if value not in accepted:
        raise UserError(f"{name}={value!r} is not one of {', '.join(accepted)}")


def check_counts(spec: Any, least: Mapping[str, int]) -> None:
    """Raises :class:`UserError` unless these fields are whole numbers of at least so much."""
    for name, bound in least.items():
        value = getattr(spec, name)
        if type(value) is not int or value < bound:
            raise UserError(f"{name}={value!r} must be a whole number, at least {bound}")


def claim(
    out: Path, spec: DataclassInstance, format_version: int, folders: Sequence[str], index: str
) -> bool:
    """Mark a folder as this spec's and make ``folders`` in it; whether its ``index`` is there.

    Raises:
        UserError: the folder was begun with another spec, or holds something else.
    """
    marker = out / _MARKER
    wanted = {"format_version": format_version, "spec": asdict(spec)}
    if marker.is_file():
        try:
            found = json.loads(marker.read_text())
        except ValueError:
            found = None
        if found != wanted:
            raise UserError(
                f"{out} was begun with other settings (see {marker.name}); choose another folder"
            )
    elif out.exists() and (
        not out.is_dir() or any((out / name).exists() for name in (*folders, index))
    ):
        raise UserError(f"{out} holds something else; choose a new or empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not marker.is_file():
            with whole(marker) as part:
                part.write_text(json.dumps(wanted, indent=1) + "\n")
        for folder in folders:
            (out / folder).mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    return (out / index).is_dir()


def claimed_by(folder: Path) -> dict[str, Any] | None:
    """The fields of the spec that a folder was begun with; None if :func:`claim` never saw it."""
    try:
        return json.loads((folder / _MARKER).read_text())["spec"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / _MARKER}: not the settings of a synthetic data set") from None


def write_items(
    write: Callable[[int, Report], None],
    last_file: Callable[[int], Path],
    total: int,
    noun: str,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Call ``write(i, report)`` for every item that is not there yet, in worker processes.

    Args:
        write: writes an item, its ``last_file(i)`` last, and calls ``report(1)``; can be pickled.
        last_file: the file whose presence says that the item is whole.
        total: number of items.
        noun: what the items are, in the plural.
        workers: processes; default one per CPU.
        progress: called with (items done, items in all), also for those found done.

    Raises:
        KeyboardInterrupt: stopped by the user; its message says how to go on.
    """
    missing = [i for i in range(total) if not last_file(i).is_file()]
    done = total - len(missing)

    def report(items: int) -> None:
        nonlocal done
        done += items
        if progress is not None:
            progress(done, total)

    report(0)
    try:
        for _ in run_tasks(write, missing, workers or usable_cpus(), report):
            pass
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped after {done} of {total} {noun}; the same command continues"
        ) from None


def check_workers(workers: int | None) -> None:
    """Raises :class:`UserError` for a number of processes below one."""
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers} must be at least 1")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write so that ``path`` appears when the block has ended.

    Always the same name, so that what a kill leaves behind is overwritten when continuing; and
    without waiting for the disk, which would take longer than making these thousands of files.
    """
    part = path.with_suffix(".part")
    yield part
    os.replace(part, path)
