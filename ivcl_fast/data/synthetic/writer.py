"""What the writers of the three synthetic data sets share.

A data set consists of many small items. Each depends on the spec and its own number only, and its
files take their names when they are complete. A folder with the index (CATER's ``lists``, for
example) is written last. So the same call continues after a kill and produces the same bytes, and
a data set that has its index is complete. One process at a time writes a folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from ivcl_fast.data.workers import Report, WorkerPool, usable_cpus
from ivcl_fast.errors import UserError
from ivcl_fast.files import atomic_folder, locked, read_bytes, remove_temporaries, write_text
from ivcl_fast.manifest import MANIFEST, Manifest

Size = Literal["embedded", "full"]

log = logging.getLogger(__name__)

_MARKER = "synthetic.json"


def check_spec(spec: Any, minima: Mapping[str, int], choices: Mapping[str, Any]) -> None:
    """Check fields of a spec: whole numbers of at least a minimum, and values of Literal types.

    Raises :class:`UserError`, which names the field.
    """
    for name, minimum in minima.items():
        value = getattr(spec, name)
        if type(value) is not int or value < minimum:
            raise UserError(f"{name}={value!r} must be a whole number, at least {minimum}")
    for name, literal in choices.items():
        if (value := getattr(spec, name)) not in get_args(literal):
            raise UserError(f"{name}={value!r} is not one of {', '.join(get_args(literal))}")


def folder_name(*parts: object, seed: int) -> str:
    """Name the default folder of a data set; a seed of 0 is left out."""
    return "-".join(map(str, ("synthetic", *parts))) + (f"-seed{seed}" if seed else "")


def write_dataset(
    out: Path,
    spec: Any,
    *,
    format_version: int,
    folders: Sequence[str],
    items: int,
    unit: str,
    write_item: Callable[[int, Report], None],
    last_file: Callable[[int], Path],
    own_files: Callable[[], Iterable[str]],
    index: str,
    index_files: Callable[[], Mapping[str, str]],
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> Path:
    """Write a data set to the folder ``out``, or complete what an earlier call left there.

    Other arguments, and errors: see :func:`~ivcl_fast.data.synthetic.cater.write.write_cater`.

    Args:
        spec: a dataclass; a folder that was begun with another spec is refused.
        format_version: changes when the same spec gives other bytes.
        folders: folders of the items' files, made if they are missing.
        items: number of items, called ``unit`` (a plural) in messages.
        write_item: called as ``write_item(i, report)`` in worker processes, for the items whose
            ``last_file(i)`` does not exist; writes it last. It has to be picklable.
        own_files: names all files in ``out`` that the items consist of and that stay.
        index: folder that is written when all items are complete.
        index_files: gives the text of each file of the index, by its path in that folder.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers} must be at least 1")
    content = {"format_version": format_version, "spec": asdict(spec)}
    if _is_begun(out, content, (*folders, index)) and (out / index).is_dir():
        return out  # without a lock, which a read-only folder may not have
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    with locked(out, busy="written"):
        remove_temporaries(out, (_MARKER, MANIFEST))
        if not _is_begun(out, content, (*folders, index)):
            write_text(out / _MARKER, json.dumps(content, indent=1) + "\n", durable=False)
        if (out / index).is_dir():
            return out
        for folder in folders:
            (out / folder).mkdir(exist_ok=True)
            remove_temporaries(out / folder, ["*"])
        missing = [i for i in range(items) if not last_file(i).is_file()]
        done = items - len(missing)

        def report(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, items)

        if missing:
            log.info("writing %d of %d %s into %s", len(missing), items, unit, out)
        report(0)
        try:
            with WorkerPool(min(workers or usable_cpus(), len(missing))) as pool:
                for _ in pool.run(write_item, missing, report):
                    pass
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped after {done} of {items} {unit}; the same command continues"
            ) from None
        _write_index(out, index, index_files(), own_files())
    return out


def _write_index(out: Path, index: str, files: Mapping[str, str], own_files: Iterable[str]) -> None:
    """Write the manifest, then the folder that marks the data set as complete."""
    manifest = Manifest(out)
    for name, text in files.items():
        manifest.add(f"{index}/{name}", text.encode())
    for name in (_MARKER, *own_files):  # not all that lie there: a user may keep files of theirs
        manifest.add(name, read_bytes(out / name))
    manifest.write()
    with atomic_folder(out / index, files) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def _is_begun(out: Path, content: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether a call with this ``content`` of the marker has begun to write the folder.

    Raises :class:`UserError` if it holds something else.
    """
    marker = out / _MARKER
    if marker.is_file():
        try:
            found = json.loads(read_bytes(marker))
        except ValueError:
            found = None
        if found != content:
            raise UserError(
                f"{out} was begun with other settings (see {marker.name}); choose another folder"
            )
        return True
    if out.exists() and (not out.is_dir() or any((out / name).exists() for name in names)):
        raise UserError(f"{out} holds something else; choose a new or empty folder")
    return False


def read_spec(folder: Path) -> dict[str, Any] | None:
    """Read the fields of the spec that a data set was written with; None if it is not synthetic.

    Raises :class:`UserError` if the file that holds them is damaged.
    """
    try:
        content = read_bytes(folder / _MARKER)
        Manifest.read(folder).check(_MARKER, content)
        return json.loads(content)["spec"]
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / _MARKER}: not the settings of a synthetic data set") from None
