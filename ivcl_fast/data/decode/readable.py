"""Tells media that are damaged from media that the system cannot read at the moment."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.errors import UserError
from ivcl_fast.files import errors_name

T = TypeVar("T")
ABSENT = (FileNotFoundError, NotADirectoryError)
NO_FILE = (errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of paths that lead to no file."""
CHUNK = 2**20


def if_damaged_twice(media: Media, attempt: Callable[[], T]) -> T:
    """Return what ``attempt`` returns; one that fails is repeated if the files can be read.

    A decoder does not say whether the file or the disk is at fault. Raises :class:`VideoError` for
    damage, and :class:`UserError` for a file that the system cannot read, which may be intact.
    """
    try:
        return attempt()
    except VideoError:
        check_readable(media)
        return attempt()


def check_readable(media: Media) -> None:
    """Read all files of media that exist; raises :class:`UserError` if the system cannot."""
    for path in media.files:
        try:
            if not path.is_file():  # opening a pipe would wait for a writer
                continue
            with errors_name(path), path.open("rb") as file:
                while file.read(CHUNK):
                    pass
        except (*ABSENT, ValueError):  # ValueError: a zero byte in its name
            continue
        except OSError as error:
            raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> UserError:
    """Return the error for a file that the system cannot read."""
    return UserError(
        f"{path}: cannot be read: {error.strerror}; make it readable, and the same command "
        "continues; or delete it to continue without it"
    )
