"""Both decoders: exactly the frames asked for, resized as promised, in agreement."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ivcl_fast.data import decode
from ivcl_fast.data.decode import TOLERANCE, make_decoder, resolve_decoder
from ivcl_fast.data.index import VideoError, read_jpegs
from ivcl_fast.data.jpeg import STANDARD_HUFFMAN_TABLES, with_huffman_tables
from ivcl_fast.data.patches import patchify, unpatchify
from ivcl_fast.data.sampling import frame_ids
from ivcl_fast.errors import UserError

from .painted import blender_jpeg, numbers, picture, write_avi, write_blender_avi

DALI = pytest.param(
    "dali",
    marks=pytest.mark.skipif(not decode._dali_installed(), reason="DALI is not installed"),
)
WRITERS = [write_avi, write_blender_avi]


def scenes(count: int) -> list[np.ndarray]:
    """CATER-like pictures, uint8 [240, 320, 3]: shaded saturated discs on a lit grey floor."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :320].astype(np.float32)
    pictures = []
    for _ in range(count):
        light = 1 - ((x - 160) ** 2 + (y - 120) ** 2) / 130_000
        pixels = np.repeat((130 * light)[..., None], 3, -1)
        for colour in rng.integers(0, 256, (8, 3)):
            cx, cy, radius = rng.integers(20, 300), rng.integers(20, 220), rng.integers(8, 32)
            distance = np.hypot(x - cx, y - cy)
            shade = 1 - 0.5 * np.hypot(x - cx + radius / 3, y - cy + radius / 3) / (1.4 * radius)
            pixels = np.where((distance < radius)[..., None], colour * shade[..., None], pixels)
        pictures.append(pixels.clip(0, 255).astype(np.uint8))
    return pictures


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["pyav", DALI])
def test_exactly_the_frames_asked_for(tmp_path, name, write):
    """Enough frames for more than one of DALI's batches."""
    count = 150
    path = write(tmp_path / "a.avi", [picture(7, frame) for frame in range(count)])
    decoder = make_decoder(name, 32)
    everything = decoder.decode(path)
    assert everything.shape == (count, 3, 32, 32)
    assert everything.dtype == np.uint8
    assert numbers(everything) == [(7, frame) for frame in range(count)]
    for ids in ([0], [count - 1], range(0, count, 7), [5, 5, 3], frame_ids(count, 16), []):
        some = decoder.decode(path, np.array(ids, np.int64))
        assert numbers(some) == [(7, frame) for frame in ids]
        np.testing.assert_array_equal(some, everything[np.array(ids, np.int64)])
    with pytest.raises(IndexError):
        decoder.decode(path, [count])


@pytest.mark.skipif(not decode._dali_installed(), reason="DALI is not installed")
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("write", WRITERS)
def test_the_decoders_agree(tmp_path, write, size):
    path = write(tmp_path / "a.avi", scenes(8))
    frames = {name: make_decoder(name, size).decode(path).astype(int) for name in ("dali", "pyav")}
    difference = abs(frames["dali"] - frames["pyav"])
    assert difference.mean() <= TOLERANCE.mean
    assert difference.max() <= TOLERANCE.maximum


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", ["pyav", DALI])
def test_the_whole_frame_antialiased(tmp_path, name, size):
    """Against Pillow: its own JPEG decoder, then its triangle filter over the whole picture."""
    path = write_blender_avi(tmp_path / "a.avi", scenes(4))
    decoded = make_decoder(name, size).decode(path).astype(int)
    for frame, jpeg in zip(decoded, read_jpegs(path), strict=True):
        image = Image.open(io.BytesIO(with_huffman_tables(jpeg))).convert("RGB")
        expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), int)
        difference = abs(frame - expected.transpose(2, 0, 1))
        assert difference.mean() <= TOLERANCE.mean
        assert difference.max() <= TOLERANCE.maximum


@pytest.mark.parametrize("name", ["pyav", DALI])
def test_a_frame_of_nonsense(tmp_path, name):
    """The file is refused, and the decoder still decodes the next one."""
    good = write_avi(tmp_path / "good.avi", [picture(0, frame) for frame in range(4)])
    contents = bytearray(good.read_bytes())
    at = contents.index(b"\xff\xdb")
    contents[at : at + 200] = bytes(200)
    (bad := tmp_path / "bad.avi").write_bytes(contents)
    decoder = make_decoder(name, 32)
    with pytest.raises(VideoError, match="cannot decode"):
        decoder.decode(bad)
    assert numbers(decoder.decode(good)) == [(0, frame) for frame in range(4)]


def test_huffman_tables_are_put_in_only_where_missing():
    pixels = picture(1, 2)
    bare = blender_jpeg(pixels)
    full = with_huffman_tables(bare)
    assert STANDARD_HUFFMAN_TABLES in full
    assert full.replace(STANDARD_HUFFMAN_TABLES, b"") == bare
    assert with_huffman_tables(full) == full
    assert with_huffman_tables(b"\xff\xd8\xff\xd9") == b"\xff\xd8\xff\xd9"
    # libjpeg writes the standard tables by default, one segment each.
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    at, tables = 2, set()
    while (marker := buffer.getvalue()[at + 1]) != 0xDA:
        end = at + 2 + int.from_bytes(buffer.getvalue()[at + 2 : at + 4], "big")
        if marker == 0xC4:
            tables.add(buffer.getvalue()[at + 4 : end])
        at = end
    assert len(tables) == 4
    assert all(table in STANDARD_HUFFMAN_TABLES for table in tables)
    assert sum(map(len, tables)) + 4 == len(STANDARD_HUFFMAN_TABLES)


def test_which_decoder(monkeypatch):
    with pytest.raises(UserError, match="'opencv' is not one of auto, dali, pyav"):
        resolve_decoder("opencv")  # type: ignore[arg-type]
    monkeypatch.setattr(decode, "_dali_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_decoder("auto") == resolve_decoder("dali") == "dali"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_decoder("auto") == "pyav" and resolve_decoder("dali") == "dali"
    monkeypatch.setattr(decode, "_dali_installed", lambda: False)
    assert resolve_decoder("auto") == resolve_decoder("pyav") == "pyav"
    with pytest.raises(UserError, match="dali is not installed"):
        resolve_decoder("dali")


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_patch_rows(kind):
    """A row times the flattened kernel is the convolution, and the way back is exact."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 3, 24, 24), np.uint8)
    rows = patchify(kind(frames), 8)
    assert rows.shape == (2, 5, 9, 192)
    assert (unpatchify(rows, 8) == kind(frames)).all()
    weight = torch.randn(4, 3, 8, 8)
    expected = torch.nn.functional.conv2d(
        torch.as_tensor(frames).flatten(0, 1).float(), weight, stride=8
    )
    found = torch.as_tensor(rows).flatten(0, 1).float() @ weight.flatten(1).T
    torch.testing.assert_close(found.mT.unflatten(2, (3, 3)), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("frames", [1, 2, 7, 16, 38, 301])
@pytest.mark.parametrize("count", [1, 2, 7, 16, 32])
def test_frame_sampling(frames, count):
    plain = frame_ids(frames, count)
    assert len(plain) == count
    assert plain[-1] == frames - 1
    if count == 1:
        return
    assert plain[0] == 0
    np.testing.assert_allclose(plain, np.linspace(0, frames - 1, count), atol=0.5)
    jittered = [frame_ids(frames, count, np.random.default_rng(seed)) for seed in range(200)]
    for ids in jittered:
        assert ids[-1] == frames - 1
        assert (ids[:-1] >= plain[:-1]).all()
        assert (ids[:-1] < np.maximum(plain[1:], plain[:-1] + 1)).all()
    if frames >= 4 * count:  # every frame but those behind the last interval's start is drawn
        assert len(np.unique(jittered)) > 2 * count


def test_frame_sampling_refuses_nothing_to_sample():
    for frames, count in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            frame_ids(frames, count)
