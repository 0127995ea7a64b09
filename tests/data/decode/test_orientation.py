"""Frames are turned upright by flags and EXIF data; videos of PNG images."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ivcl_fast.data.dataset import Media
from ivcl_fast.data.decode.decoder import TOLERANCE, make_decoder, probe
from ivcl_fast.data.decode.media import Square, square_place
from tests.support.marks import DALI
from tests.support.painted import VP9, media, scenes


def write_turned(
    path: Path, upright: Sequence[np.ndarray], codec: str, degrees: int, mirrored: bool
) -> Path:
    """Write a video whose flags turn the stored frames counter-clockwise, then mirror them."""
    flipped = [pixels[:, ::-1] if mirrored else pixels for pixels in upright]
    stored = [np.rot90(pixels, -degrees // 90) for pixels in flipped]
    with av.open(str(path), "w") as container:
        options = VP9 if codec == "libvpx-vp9" else {}
        stream = container.add_stream(codec, rate=24, options={"threads": "1", **options})
        stream.height, stream.width, _ = stored[0].shape
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.set_display_rotation(degrees, hflip=mirrored)
        for pixels in stored:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


TURNS = [*itertools.product((".mov",), ("mjpeg",), (0, 90, 180, 270), (False, True))]


@pytest.mark.parametrize("name", ["pyav", DALI])
@pytest.mark.parametrize(
    ("suffix", "codec", "degrees", "mirrored"), [*TURNS, (".mp4", "libvpx-vp9", 90, True)]
)
def test_flags_that_turn_and_mirror_are_followed(tmp_path, name, suffix, codec, degrees, mirrored):
    """The square is a part of the upright frame."""
    turned = media(write_turned(tmp_path / f"a{suffix}", scenes(1), codec, degrees, mirrored))
    plain = media(write_turned(tmp_path / f"b{suffix}", scenes(1), codec, 0, False))
    decoder = make_decoder(name, 64)
    for square in ("none", "center"):
        found, expected = (decoder.decode(one, square=square).int() for one in (turned, plain))
        assert (found - expected).abs().float().mean() < 5  # compressed anew
        assert (found - expected.flip(-1)).abs().float().mean() > 8
    (part,) = decoder.parts(turned)
    assert torch.equal(part, decoder.decode(turned))


def encoded(pixels: np.ndarray, kind: str, orientation: int = 1) -> bytes:
    """Encode an image, with an EXIF orientation."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def write_packets(path: Path, images: Sequence[bytes], codec: str) -> Path:
    """Write a video of encoded images."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width, stream.height = Image.open(io.BytesIO(images[0])).size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
        for number, image in enumerate(images):
            packet = av.Packet(image)
            packet.stream, packet.time_base = stream, Fraction(1, 24)
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
    return path


def assert_as_by_pillow(decoded: torch.Tensor, images: Sequence[bytes], square: Square) -> None:
    """Compare with Pillow, which makes the images upright before they are resized and cropped."""
    size = decoded.shape[-1]
    for frame, image in zip(decoded.cpu().numpy().astype(int), images, strict=True):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
        height, width, top, left = square_place(square, size, upright.height, upright.width)
        resized = upright.resize((width, height), Image.Resampling.BILINEAR)
        expected = np.asarray(resized, int)[top : top + size, left : left + size]
        difference = abs(frame - expected.transpose(2, 0, 1))
        assert difference.mean() <= TOLERANCE["mean"] and difference.max() <= TOLERANCE["maximum"]


@pytest.mark.parametrize("name", ["pyav", DALI])
@pytest.mark.parametrize(
    ("suffix", "orientation"),
    [*((".jpg", n) for n in (1, 3, 6, 8)), (".png", 6), (".avi", 6), (".mov", 8)],
)
def test_exif_orientations_are_followed(tmp_path, name, suffix, orientation):
    """Of image files and of the images of Motion-JPEG."""
    kind = "PNG" if suffix == ".png" else "JPEG"
    images = [encoded(pixels, kind, orientation) for pixels in scenes(2)]
    if suffix in (".avi", ".mov"):
        one = media(write_packets(tmp_path / f"a{suffix}", images, "mjpeg"))
    else:
        one = Media("a", tuple(tmp_path / f"{i}{suffix}" for i in range(2)))
        for path, image in zip(one.files, images, strict=True):
            path.write_bytes(image)
    decoder = make_decoder(name, 64)
    for square in ("none", "center"):
        assert_as_by_pillow(decoder.decode(one, square=square), images, square)
        assert_as_by_pillow(torch.cat([*decoder.parts(one, square)]), images, square)


@pytest.mark.parametrize("name", ["pyav", DALI])
def test_png_videos(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    images = [encoded(one, "PNG") for one in pixels]
    one = media(write_packets(tmp_path / "a.mov", images, "png"))
    assert (probe(one).frames, probe(one).codec) == (5, "png")
    decoder = make_decoder(name, 64)
    for ids in (None, [4, 0, 4, 2]):
        expected = pixels if ids is None else pixels[ids]
        decoded = decoder.decode(one, ids).cpu().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(decoded, expected)
    (part,) = decoder.parts(one)
    np.testing.assert_array_equal(part.cpu().numpy().transpose(0, 2, 3, 1), pixels)
