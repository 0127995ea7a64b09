"""Shared code of the writers of the three synthetic data sets.

A data set consists of many small items. Each depends only on the spec and the item's number, and
its files are renamed into place when they are complete. A folder with the index (CATER's ``lists``,
for example) is written last. So the same call continues after a kill and produces the same bytes.
One process at a time writes a folder.

CATER and ACRE need no media: their pictures can be rendered on demand
(:mod:`~ivcl_fast.data.synthetic.drawn`).
"""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ivcl_fast.data.synthetic.render import Renderer
from ivcl_fast.data.workers import WorkerPool, usable_cpus
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_folder, locked, read_bytes, remove_temporaries, write_text

Size = Literal["small", "embedded", "full"]

log = logging.getLogger(__name__)

_MARKER = "synthetic.json"


@dataclass(frozen=True)
class SyntheticSpec(ABC):
    """Describes a synthetic data set of many items; the fields of a subclass are its settings."""

    format_version: ClassVar[int]
    """Changes when the same settings produce different bytes."""
    name: ClassVar[str]
    """Template of the default folder name, with settings in braces."""
    unit: ClassVar[str]
    """Plural noun for the items; the property of this name is their number."""
    folders: ClassVar[tuple[str, ...]]
    """Folders of the items' files, created if missing."""
    index: ClassVar[str]
    """Folder that is written once all items are complete."""

    @property
    def default_name(self) -> str:
        """Default name of the folder, without settings at their defaults."""
        settings = asdict(self)
        ends = f"-seed{settings['seed']}" if settings["seed"] else ""
        if settings.get("renderer") == "blender":
            samples = settings["samples"]
            ends += f"-blender{samples}" if samples else "-blender"
        return self.name.format(**settings) + ends

    @abstractmethod
    def write_item(self, out: Path, media: bool, number: int) -> None:
        """Write the files of an item below ``out``, in a worker process."""

    @abstractmethod
    def item_files(self, number: int, media: bool) -> tuple[str, ...]:
        """Return the files that show that an item is complete, with or without its media."""

    @abstractmethod
    def index_files(self, out: Path) -> Mapping[str, str]:
        """Return the text of each file of the index, by its path in the index folder."""


class DrawnSpec(SyntheticSpec):
    """Describes a synthetic data set whose media can be rendered at any size."""

    renderer: Renderer

    @property
    @abstractmethod
    def fps(self) -> float:
        """Frames per second; 0 if the frames are not a video."""

    @abstractmethod
    def media_names(self) -> dict[str, int]:
        """Return the index of the video or problem that each media file shows, by name."""

    @abstractmethod
    def draw_item(self, out: Path, number: int, width: int, height: int) -> Iterator[np.ndarray]:
        """Render an item, some frames at a time: uint8 RGB ``[F, height, width, 3]``.

        Writes the scene of the item if it is missing in ``out``.
        """


def write_dataset(
    out: Path,
    spec: SyntheticSpec,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    media: bool = True,
) -> Path:
    """Write a data set to the folder ``out``, or continue an interrupted call; return ``out``.

    Args:
        out: the folder, created if missing.
        spec: what to write; a folder begun with another spec is an error.
        workers: number of single-threaded processes; default one per CPU.
        progress: called with (items done, items in total), including those found complete.
        media: whether to write the media, which can be rendered on demand for a ``DrawnSpec``.

    Raises:
        UserError: the folder contains other files.
        KeyboardInterrupt: stopped by the user; the message says how to continue.

    Example::

        >>> write_dataset(Path("data/cater"), SyntheticCater(train=100, val=20))
    """
    if is_complete(out, spec, media):
        return out  # without a lock: the folder may be read-only
    begin(out, spec)
    with locked(out, busy="written"):
        if is_complete(out, spec, media):
            return out
        for folder in spec.folders:
            remove_temporaries(out / folder, ["*"])
        missing, items = missing_items(out, spec, media), number_of_items(spec)
        done = found = items - len(missing)
        progress = progress or (lambda *_: None)
        if missing:
            progress(done, items)
            log.info("writing %d of %d %s into %s", len(missing), items, spec.unit, out)
        try:
            with WorkerPool(min(workers or usable_cpus(), len(missing))) as pool:
                written = pool.run(partial(spec.write_item, out, media), missing)
                for done, _ in enumerate(written, found + 1):
                    progress(done, items)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped after {done} of {items} {spec.unit}; the same command continues"
            ) from None
        if not (out / spec.index).is_dir():
            _write_index(out, spec)
    return out


def begin(out: Path, spec: SyntheticSpec) -> None:
    """Create the folder of a data set; raises :class:`UserError` if it contains other files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    with locked(out, busy="written"):
        if not _is_begun(out, spec):
            remove_temporaries(out, [_MARKER])
            write_text(out / _MARKER, json.dumps(_content(spec), indent=1) + "\n", durable=False)
        for folder in spec.folders:
            (out / folder).mkdir(exist_ok=True)


def is_complete(out: Path, spec: SyntheticSpec, media: bool) -> bool:
    """Whether a folder is the complete data set; raises :class:`UserError` for another one."""
    is_indexed = _is_begun(out, spec) and (out / spec.index).is_dir()
    return is_indexed and not missing_items(out, spec, media)


def number_of_items(spec: SyntheticSpec) -> int:
    return getattr(spec, spec.unit)


def missing_items(
    out: Path, spec: SyntheticSpec, media: bool, folders: Sequence[str] = ()
) -> list[int]:
    """Return the numbers of the items with missing files; ``folders``: check only these."""
    present = {
        f"{folder}/{name}"
        for folder in folders or spec.folders
        if (out / folder).is_dir()
        for name in os.listdir(out / folder)
    }
    return [
        number
        for number in range(number_of_items(spec))
        if not present.issuperset(
            file
            for file in spec.item_files(number, media)
            if not folders or file.partition("/")[0] in folders
        )
    ]


def _write_index(out: Path, spec: SyntheticSpec) -> None:
    """Write the folder that marks the data set as complete."""
    files = spec.index_files(out)
    with atomic_folder(out / spec.index) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def _content(spec: SyntheticSpec) -> dict[str, Any]:
    return {"format_version": spec.format_version, "spec": asdict(spec)}


def _is_begun(out: Path, spec: SyntheticSpec) -> bool:
    """Whether a call with this spec has begun to write the folder.

    Raises :class:`UserError` if it contains other files.
    """
    marker, content = out / _MARKER, _content(spec)
    # Before the marker: another process may write the marker, and then folders, at any time.
    names = (*spec.folders, spec.index)
    has_files = out.exists() and (not out.is_dir() or any((out / name).exists() for name in names))
    if marker.is_file():
        try:
            found = json.loads(read_bytes(marker))
        except ValueError:
            found = None
        if found != content:
            raise UserError(
                f"{out} was begun with other settings, or by another version of ivcl_fast (see "
                f"{marker.name}); delete it or choose another folder"
            )
        return True
    if has_files:
        raise UserError(f"{out}: expected a new or empty folder, got other files")
    return False


def read_spec(folder: Path, version: int | None = None) -> dict[str, Any] | None:
    """Read the fields of the spec that a data set was written with; None if it is not synthetic.

    Raises :class:`UserError` if the file that holds them is damaged, or is not of this ``version``.
    """
    try:
        found = json.loads(read_bytes(folder / _MARKER))
        spec, written = found["spec"], found["format_version"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / _MARKER}: expected settings of a synthetic data set") from None
    if version not in (None, written):
        raise UserError(
            f"{folder}: written by another version of ivcl_fast, whose videos are different; "
            "delete it or choose another folder"
        )
    return spec
