"""Scenes that occur more than once in a CATER package.

CATER's generator starts each of its processes with the same random seed, so different videos may
show the same objects with the same movements, possibly in training and in validation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ivcl_fast.data.formats.cater_labels import Scene
from ivcl_fast.errors import UserError
from ivcl_fast.progress import Bar

if TYPE_CHECKING:
    from ivcl_fast.data.formats.cater import Cater

_OBJECT = ("shape", "size", "color", "material", "rotation", "3d_coords", "instance")
"""Keys that identify an object; its pixels depend on the camera, which differs between videos."""


def scene_hash(scene: Scene) -> str:
    """Return a hash of the objects and movements of a scene."""
    objects = [{key: o.get(key) for key in _OBJECT} for o in scene["objects"]]
    content = json.dumps([objects, scene["movements"]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def find_repeats(dataset: Cater, splits: Iterable[str] = ("val", "train")) -> dict[str, str]:
    """Return the clips whose scene occurred in an earlier clip, and that clip, in order of splits.

    Clips without a scene are ignored.
    """
    listed = dict.fromkeys(clip.name for split in splits for clip in dataset.clips(split))
    names = [name for name in listed if (dataset.root / "scenes" / f"{name}.json").is_file()]
    first, repeats = dict[str, str](), dict[str, str]()
    with Bar("comparing scenes", len(names), "scenes") as bar:
        for number, name in enumerate(names, 1):
            found = first.setdefault(scene_hash(dataset.scene(name)), name)
            if found != name:
                repeats[name] = found
            bar(number, len(names))
    return repeats


def report_repeats(dataset: Cater) -> None:
    """Print how many scenes occur again; nothing for a package without scenes or lists."""
    if not (dataset.root / "scenes").is_dir():
        return
    try:
        repeats = find_repeats(dataset)
        val = {clip.name for clip in dataset.clips("val")}
    except UserError as error:
        print(f"scenes: not compared: {error}", flush=True)
        return
    across = {name: of for name, of in repeats.items() if (name in val) != (of in val)}
    if repeats:
        name, of = min((across or repeats).items())
        print(
            f"scenes: {len(repeats)} occur again, {len(across)} of them in train and val, such as "
            f"{name} in {of}; train --drop-duplicates leaves them out",
            flush=True,
        )
