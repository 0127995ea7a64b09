"""Render the frames of synthetic CATER and ACRE on demand.

A frame store can then be built without encoding and decoding videos; the data set has scenes and
lists only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing import parent_process
from pathlib import Path

import torch

from ivcl_fast.data.dataset import Dataset, VideoError
from ivcl_fast.data.decode.media import Square
from ivcl_fast.data.formats.acre import Acre
from ivcl_fast.data.formats.cater import Cater
from ivcl_fast.data.store.shards import squares
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.render import warn_if_slow
from ivcl_fast.data.synthetic.writer import DrawnSpec, missing_items, read_spec


class Drawn:
    """The media of a synthetic data set as a :class:`~ivcl_fast.data.store.shards.Source`."""

    decoder = "drawn"
    crop: Square = "none"

    def __init__(
        self,
        root: Path,
        spec: DrawnSpec,
        names: Sequence[str] | None = None,
    ) -> None:
        """``names``: names of the media to render; by default all."""
        if parent_process() is None:
            warn_if_slow()
        self.root, self.spec = root, spec
        self._state = f"{self.spec!r} {self.spec.format_version}"
        numbers = spec.media_names()
        self.names = sorted(numbers) if names is None else names
        self.numbers = {name: numbers[name] for name in self.names if name in numbers}

    def only(self, names: Sequence[str]) -> Drawn:
        return Drawn(self.root, self.spec, names)

    def state(self, name: str) -> str:
        return self._state

    def fps(self, name: str) -> float:
        return self.spec.fps

    def frames(self, name: str, image_size: int) -> Iterator[torch.Tensor]:
        if name not in self.numbers:
            raise VideoError("the settings of the data set describe no such video")
        if parent_process() is not None:  # there is a process for each CPU
            torch.set_num_threads(1)
        number, size = self.numbers[name], (image_size, image_size)
        for drawn in self.spec.draw_item(self.root, number, *size):
            yield squares(drawn, image_size)


def drawn_media(dataset: Dataset) -> Drawn | None:
    """Return the media of a synthetic CATER or ACRE that was written without them, else None."""
    kinds: dict[type, type[DrawnSpec]] = {Cater: SyntheticCater, Acre: SyntheticAcre}
    kind = kinds.get(type(dataset))
    if kind is None or (fields := read_spec(dataset.root, kind.format_version)) is None:
        return None
    spec = kind(**fields)
    media = spec.folders[:1]
    if spec.renderer != "fast" or not missing_items(dataset.root, spec, True, media):
        return None
    return Drawn(dataset.root, spec)
