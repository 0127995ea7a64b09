"""What a store knows about the files that it was made from: only changed ones are read again.

``sources.json`` has two digests for each of the media: one of the sizes and times of its files,
which tells whether they may have changed, and one of their content, which decides it. The times are
the modification and the inode change; the latter moves when a file is completed, replaced or
restored, even if its size and modification time stay the same.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ivcl_fast.data.dataset import Media
from ivcl_fast.errors import UserError
from ivcl_fast.files import read_bytes, write_text
from ivcl_fast.manifest import check_signed, signed

SOURCES = "sources.json"
GONE = "gone"
"""State of media of which a file is missing."""


class Source(NamedTuple):
    """The state of the files of media."""

    state: str
    """See :func:`state_of`."""
    content: str = ""
    """See :func:`content_of`; empty if it was not read."""


def state_of(media: Media) -> str:
    """Return a digest of the sizes and times of the files; :data:`GONE` if one is missing.

    Raises :class:`UserError` for a file that the system cannot look at, which may be intact.
    """
    digest = hashlib.blake2b(digest_size=12)
    for path in media.files:
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte
            return GONE
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):  # it leads to no file
                return GONE
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        digest.update(f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0".encode())
    return digest.hexdigest() if media.files else GONE


def content_of(media: Media) -> str:
    """Return a digest of the content of the files; empty if one cannot be read."""
    digest = hashlib.blake2b(digest_size=12)
    try:
        for path in media.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    except (OSError, ValueError):
        return ""
    return digest.hexdigest()


def source_of(media: Media) -> Source:
    """Read the files; the state is that from before reading."""
    return Source(state_of(media), content_of(media))


def digest_of(values: Mapping[str, object]) -> str:
    """Compute a digest of the names of all media, in order, and of a value for each."""
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(f"{name}\0{value}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def same_content(store: Path, names: Iterable[str], others: Iterable[str]) -> list[tuple[str, str]]:
    """Pair those media whose files have the content of one of ``others`` with that one.

    None where a store does not know the content, and in a damaged ``sources.json``, which the next
    change of the store reports.
    """
    try:
        sources = read_sources(store)
    except ValueError:
        return []
    by_content = {sources[name].content: name for name in others if name in sources}
    found = ((name, sources[name].content) for name in names if name in sources)
    return [
        (name, by_content[content]) for name, content in found if content in by_content and content
    ]


def write_sources(store: Path, sources: Mapping[str, Source]) -> None:
    """Write ``sources.json`` of a store."""
    write_text(store / SOURCES, signed({"media": dict(sorted(sources.items()))}))


def read_sources(store: Path) -> dict[str, Source]:
    """Read ``sources.json``; empty in a store of an older version.

    Raises ``ValueError`` if it is damaged.
    """
    try:
        found = check_signed(read_bytes(store / SOURCES))["media"]
        return {name: Source(*of_media) for name, of_media in found.items()}
    except FileNotFoundError:
        return {}
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(repr(error)) from None
