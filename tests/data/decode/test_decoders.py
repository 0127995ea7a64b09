"""Both decoders return exactly the requested frames, resized correctly, and agree."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ivcl_fast.data.dataset import Media, VideoError
from ivcl_fast.data.decode.decoder import TOLERANCE, make_decoder, open_media, probe
from ivcl_fast.data.decode.media import Square, with_huffman_tables
from ivcl_fast.data.sampling import frame_ids
from tests.support.marks import DALI, NEEDS_DALI
from tests.support.painted import (
    VP9,
    media,
    numbers,
    picture,
    read_images,
    scenes,
    write_avi,
    write_blender_avi,
    write_video,
)

WRITERS = [write_avi, write_blender_avi]


def assert_agree(one: Media, size: int, square: Square = "none") -> None:
    """The decoders agree within the tolerance."""
    dali, pyav = (make_decoder(name, size).decode(one, square=square) for name in ("dali", "pyav"))
    difference = (dali.int() - pyav.int()).abs()
    assert difference.float().mean() <= TOLERANCE["mean"]
    assert difference.max() <= TOLERANCE["maximum"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["pyav", DALI])
def test_exactly_the_frames_asked_for(tmp_path, name, write, monkeypatch):
    """The video has more frames than one of DALI's batches."""
    count = 150
    path = write(tmp_path / "a.avi", [picture(7, frame) for frame in range(count)])
    decoder = make_decoder(name, 32)
    everything = decoder.decode(media(path)).numpy()
    assert everything.shape == (count, 3, 32, 32) and everything.dtype == np.uint8
    assert numbers(everything) == [(7, frame) for frame in range(count)]
    for ids in ([0], [count - 1], range(0, count, 7), [5, 5, 3], frame_ids(count, 16), []):
        some = decoder.decode(media(path), np.array(ids, np.int64)).numpy()
        assert numbers(some) == [(7, frame) for frame in ids]
        np.testing.assert_array_equal(some, everything[np.array(ids, np.int64)])
    with pytest.raises(IndexError):
        decoder.decode(media(path), [count])
    monkeypatch.setattr(type(decoder), "part_bytes", 100 * 3 * 32**2)
    parts = [part.numpy() for part in decoder.parts(media(path))]
    assert [len(part) for part in parts] == [100, 50]
    np.testing.assert_array_equal(np.concatenate(parts), everything)


@NEEDS_DALI
@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_the_decoders_agree(tmp_path, device):
    """Motion-JPEG, VP9 and PNG; on a GPU by nvJPEG and NVDEC, with H.264 too."""
    frames = scenes(4)
    for write, size, square in ((write_avi, 224, "none"), (write_blender_avi, 64, "center")):
        assert_agree(media(write(tmp_path / f"{size}.avi", frames)), size, square)
    web = media(write_video(tmp_path / "a.webm", frames, "libvpx-vp9", **VP9))
    assert_agree(web, 64)
    assert_agree(web, 64, "center")
    for number, pixels in enumerate(frames):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    assert_agree(Media("png", tuple(tmp_path / f"{i}.png" for i in range(4))), 64, "center")
    if device == "gpu":
        assert_agree(media(write_video(tmp_path / "c.mp4", frames, "libx264")), 64, "center")


@pytest.mark.parametrize("name", ["pyav", DALI])
def test_the_whole_frame_antialiased(tmp_path, name):
    """Compare with Pillow's JPEG decoder and its triangle filter over the entire picture."""
    size = 64
    path = write_blender_avi(tmp_path / "a.avi", scenes(2))
    decoded = make_decoder(name, size).decode(media(path)).numpy().astype(int)
    for frame, jpeg in zip(decoded, read_images(media(path)), strict=True):
        image = Image.open(io.BytesIO(with_huffman_tables(jpeg))).convert("RGB")
        expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), int)
        difference = abs(frame - expected.transpose(2, 0, 1))
        assert difference.mean() <= TOLERANCE["mean"]
        assert difference.max() <= TOLERANCE["maximum"]


@pytest.mark.parametrize("name", ["pyav", DALI])
def test_an_undecodable_frame(tmp_path, name):
    """The file is refused, and the decoder still decodes the next one."""
    good = write_avi(tmp_path / "good.avi", [picture(0, frame) for frame in range(4)])
    contents = bytearray(good.read_bytes())
    at = contents.index(b"\xff\xdb")
    contents[at : at + 200] = bytes(200)
    (bad := tmp_path / "bad.avi").write_bytes(contents)
    decoder = make_decoder(name, 32)
    with pytest.raises(VideoError, match="cannot decode"):
        decoder.decode(media(bad))
    assert numbers(decoder.decode(media(good)).numpy()) == [(0, frame) for frame in range(4)]


@pytest.mark.parametrize("write", WRITERS)
def test_damage_inside_an_image_is_refused(tmp_path, write):
    """By default, FFmpeg would decode what comes before it and leave the rest grey."""
    path = write(tmp_path / "a.avi", scenes(1))
    contents = bytearray(path.read_bytes())
    at = contents.index(b"\xff\xda") + 500  # behind the start of the scan
    contents[at : at + 64] = bytes(64)
    path.write_bytes(contents)
    with pytest.raises(VideoError, match="cannot decode one of its frames, frame 0"):
        make_decoder("pyav", 32).decode(media(path))


@pytest.mark.parametrize("name", ["pyav", DALI])
def test_odd_sizes_and_variable_frame_rate(tmp_path, name):
    pictures = [np.pad(picture(2, i, 240, 424), ((0, 1), (0, 3), (0, 0))) for i in range(8)]
    times = [0, 1, 2, 9, 10, 40, 41, 60]
    path = write_video(tmp_path / "a.webm", pictures, "libvpx-vp9", times=times, **VP9)
    decoded = make_decoder(name, 32).decode(media(path))
    assert numbers(decoded.numpy()) == [(2, i) for i in range(8)]
    assert probe(media(path)).frames == 8


@pytest.mark.parametrize("name", ["pyav", DALI])
def test_transparency_is_dropped_and_colours_are_rgb(tmp_path, name):
    pixels = np.zeros((60, 80, 4), np.uint8)
    pixels[:] = (200, 100, 50, 0)
    pixels[:30, :, 3] = 128
    Image.fromarray(pixels).save(tmp_path / "a.png")
    decoded = make_decoder(name, 32).decode(media(tmp_path / "a.png"))
    assert decoded[0].amax((1, 2)).tolist() == decoded[0].amin((1, 2)).tolist() == [200, 100, 50]


def test_png_after_png_is_not_added_to_it(tmp_path):
    """FFmpeg's decoder takes an image for a difference to the one before."""
    rng = np.random.default_rng(0)
    paths = tuple(tmp_path / f"{i}.png" for i in range(3))
    pixels = [np.cumsum(rng.integers(0, 3, (64, 64, 4)), 0).astype(np.uint8) for _ in paths]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    decoded = make_decoder("pyav", 64).decode(Media("a", paths), [2, 0, 1, 0])
    for frame, number in zip(decoded.numpy(), [2, 0, 1, 0], strict=True):
        np.testing.assert_array_equal(frame.transpose(1, 2, 0), pixels[number][..., :3])


class FailingPipeline:
    """Takes the place of a pipeline of DALI, and fails as one."""

    def __init__(self, encountered: str) -> None:
        self.encountered = encountered

    def feed_input(self, name, samples):
        pass

    def run(self):
        raise RuntimeError(f"Critical error in pipeline:\nencountered:\n\n{self.encountered}")


@NEEDS_DALI
@pytest.mark.parametrize(
    ("encountered", "said"),
    [
        ("nvImageCodec failure: '#3'\nC++ context: x", "nvImageCodec failure"),
        ("CUDA driver API error CUDA_ERROR_NOT_SUPPORTED (801):\n", "NOT_SUPPORTED"),
    ],
)
def test_errors_of_dali_are_video_errors(tmp_path, encountered, said):
    decoder = make_decoder("dali", 32)
    decoder._pipelines["images"] = FailingPipeline(encountered)
    path = media(write_avi(tmp_path / "a.avi", [picture(0, 0)]))
    with pytest.raises(VideoError, match=said):
        decoder.decode_by_dali(open_media(path))
    assert numbers(decoder.decode(path).numpy()) == [(0, 0)], "with a pipeline made anew"


@NEEDS_DALI
def test_frames_that_dali_does_not_find_are_not_black(tmp_path):
    """DALI counts the frames of a video itself."""
    one = media(write_video(tmp_path / "a.webm", [picture(0, 0)] * 3, "libvpx-vp9", **VP9))
    decoder = make_decoder("dali", 32)
    opened = open_media(one)
    opened.info = replace(opened.info, frames=5)
    assert len(decoder.decode_by_dali(opened, [0, 2])) == 2
    with pytest.raises(VideoError, match="out-of-bounds frame index 4"):
        decoder.decode_by_dali(opened, [0, 4])
