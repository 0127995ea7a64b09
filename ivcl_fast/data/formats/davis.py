"""``davis:DIR``: folders of frames and of masks, as in DAVIS, to evaluate segments.

Source: davischallenge.org. Layouts; ``480p`` (or another resolution) may be missing::

    JPEGImages/480p/<video>/00000.jpg
    Annotations/480p/<video>/00000.png
    ImageSets/2017/{train,val}.txt            names of videos; others are for training

Masks of DAVIS 2017 are PNGs with a palette: pixels are numbers of objects, 0 is the background and
255 is void. Those of DAVIS 2016 have one object, 255 in grey. Some data sets in this layout, such
as YouTube-VOS, have masks for some frames only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ivcl_fast.data.formats.custom.labelled import (
    SPLIT_NAMES,
    TASK,
    TRAIN,
    Item,
    LabelledVideos,
)
from ivcl_fast.data.formats.custom.video_folder import find_videos
from ivcl_fast.errors import UserError

VOID = 255


class Davis(LabelledVideos):
    """Videos with masks, without classes; a :class:`~ivcl_fast.data.dataset.Dataset`.

    Example::

        >>> dataset = Davis(Path("DAVIS"))
        >>> name = dataset.clips("val")[0].name
        >>> masks = dataset.masks(name, dataset.annotated_frames(name))  # [F, height, width]
    """

    def __init__(self, root: Path, task: str = TASK) -> None:
        """List the videos; raises :class:`UserError` if there are none."""
        root = Path(root)
        frames, self._masks = (self._deepest(root / n) for n in ("JPEGImages", "Annotations"))
        lists = sorted((root / "ImageSets").glob("*/*.txt"))
        split = {
            line.strip(): SPLIT_NAMES[path.stem]
            for path in lists
            if path.stem in SPLIT_NAMES
            for line in path.read_text().splitlines()
        }
        items = [Item(media, (), split.get(media.name, TRAIN)) for media in find_videos(frames)]
        super().__init__(root, items)

    @staticmethod
    def _deepest(folder: Path) -> Path:
        """Return a folder of videos, which may be in a folder named by its resolution."""
        if not folder.is_dir():
            raise UserError(f"davis:{folder.parent}: expected {folder.name}/, got no such folder")
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
        is_resolution = len(inside) == 1 and not any(p.is_file() for p in inside[0].iterdir())
        return inside[0] if is_resolution else folder

    def annotated_frames(self, name: str) -> list[int]:
        """Return the numbers of the frames of a video that have a mask."""
        stems = {path.stem for path in (self._masks / name).glob("*.png")}
        files = self._media[name].files
        return [number for number, file in enumerate(files) if file.stem in stems]

    def masks(self, name: str, frames: Sequence[int]) -> np.ndarray:
        """Read the masks of some frames: int64 ``[F, height, width]``, the object of each pixel.

        Objects are numbered from 0; -1 is the background or void. Raises :class:`UserError` for a
        frame without a mask.
        """
        from PIL import Image  # late: training needs no Pillow

        files, found = self._media[name].files, []
        for number in frames:
            path = self._masks / name / f"{files[number].stem}.png"
            if not path.is_file():
                raise UserError(f"{path}: expected the mask of a frame, got no such file")
            with Image.open(path) as image:  # not as RGB: the pixels are numbers, not colors
                pixels, is_palette = np.array(image).astype(np.int64), image.mode == "P"
            if pixels.ndim != 2:
                raise UserError(f"{path}: expected a mask with a palette or in grey, got colors")
            void = 0 if is_palette else 1  # in grey, 255 is the only object
            found.append(np.where(pixels == VOID, void, pixels) - 1)
        return np.stack(found)
