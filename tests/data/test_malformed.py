"""Damaged, odd and hostile files: each is read, repaired or refused in one line; none ends a run."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen.data.decode import Unusable, decode
from imagen.data.folder import FolderRecords
from imagen.data.pictures import PictureDataset
from imagen.data.prepare import Prepare, Want

FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "NPY")
CAPTIONS = (
    b"fine",
    b"",
    b"\xff\xfe\x00",
    b"caf\xe9",
    b"\x00" * 9,
    b"one\ntwo",
    b"x" * 50_000,
    b"\xef\xbb\xbfbom",
    None,
)


def encode(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "NPY":
        np.save(stream, pixels)
    else:
        Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def damaged(rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """Cut off, overwritten, spliced, emptied and invented files of all formats."""
    for number in range(count):
        shape = tuple(int(side) for side in rng.integers(1, 40, 2))
        data = bytearray(encode(rng.integers(0, 256, (*shape, 3), np.uint8), FORMATS[number % len(FORMATS)]))
        way = int(rng.integers(6))
        if way == 0:
            del data[int(rng.integers(len(data))) :]
        elif way == 1:
            for place in rng.integers(len(data), size=int(rng.integers(1, 30))):
                data[place] = rng.integers(256)
        elif way == 2:
            for place in rng.integers(min(64, len(data)), size=4):  # headers
                data[place] = rng.integers(256)
        elif way == 3:
            start = int(rng.integers(len(data)))
            data[start : start + 40] = rng.bytes(int(rng.integers(80)))
        elif way == 4:
            data = bytearray(rng.bytes(int(rng.integers(200))))
        else:
            data = data[:8] + bytearray(rng.bytes(60))
        yield bytes(data)


def test_two_thousand_malformed_pictures_and_captions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count, good = 2000, 3
    for number, data in enumerate(damaged(rng, count)):
        suffix = ("png", "jpg", "gif", "tif", "webp", "bmp", "npy")[int(rng.integers(7))]
        path = tmp_path / f"{number:05d}.{suffix}"
        path.write_bytes(data)
        caption = CAPTIONS[number % len(CAPTIONS)]
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption)
    for number in range(good):
        path = tmp_path / f"good{number}.png"
        path.write_bytes(encode(np.full((8, 8, 3), 9, np.uint8), "PNG"))
        path.with_suffix(".txt").write_bytes(b"good")
    dataset = PictureDataset(FolderRecords(tmp_path), Prepare(Want(8)))
    assert len(dataset) == count + good
    usable = 0
    for number in range(len(dataset)):
        sample, notes = dataset.examine(number)
        assert all("\n" not in note.reason and note.reason for note in notes)
        if sample is None:
            assert [note.action for note in notes] == ["skipped"]
            continue
        usable += 1
        assert sample.image.shape == (3, 8, 8)
        assert sample.image.abs().max() <= 1  # NaN would not pass either
        assert dataset[number].key == sample.key
    assert good + 100 < usable < count - 500, "the damage is neither harmless nor total"


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it has 30,000 x 30,000 pixels."""
    data = bytearray(encode(np.zeros((8, 8, 3), np.uint8), "PNG"))
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def huge_npy() -> bytes:
    """A header alone, of an array of 10^12 pixels."""
    return encode(np.zeros((2, 2, 3), np.uint8), "NPY").replace(b"(2, 2, 3), }    ", b"(1000000, 1000000, 3), }", 1)


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "a.png", "the file is empty"),
        (b"hello", "a.gif", "is no picture of a known format"),
        (bomb(), "a.png", "DecompressionBomb"),
        (huge_npy(), "a.npy", "cannot be read|more than the limit"),
        (encode(np.zeros((4, 4, 5), np.uint8), "NPY"), "a.npy", "has 5 channels; the network takes 3"),
        (encode(np.zeros((4, 4, 3), np.int32), "NPY"), "a.npy", "an array of int32"),
        (encode(np.zeros((4,), np.uint8), "NPY"), "a.npy", r"shape \(4,\)"),
        (encode(np.zeros((0, 4, 3), np.uint8), "NPY"), "a.npy", r"shape \(0, 4, 3\)"),
        (encode(np.array([[np.nan]], np.float32), "NPY"), "a.npy", "finite"),
        (encode(np.array([["x"]], object), "NPY"), "a.npy", "Object arrays cannot be loaded"),
    ],
)
def test_what_cannot_be_used_says_why(data: bytes, name: str, message: str) -> None:
    with pytest.raises(Unusable, match=message):
        decode(data, name)


def test_a_missing_file_is_unusable(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="cannot be read: No such file"):
        decode(tmp_path / "nowhere.png", "nowhere.png")


def test_repairs_are_told() -> None:
    rgb = np.full((6, 6, 3), 40, np.uint8)
    stream = io.BytesIO()
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "blue")]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    clear = io.BytesIO()
    Image.new("RGBA", (6, 6), (0, 0, 0, 0)).save(clear, "PNG")
    ink = io.BytesIO()
    Image.new("CMYK", (6, 6)).save(ink, "JPEG")
    cases = {
        "named as PNG but is JPEG": (encode(rgb, "JPEG"), "a.png"),
        "the first of 2 frames": (stream.getvalue(), "a.gif"),
        "transparency laid over white": (clear.getvalue(), "a.png"),
        "CMYK made RGB": (ink.getvalue(), "a.jpg"),
    }
    for repair, (data, name) in cases.items():
        assert repair in decode(data, name).repairs
    assert decode(encode(rgb, "JPEG"), "a.jpeg").repairs == ()
    assert decode(encode(rgb, "PNG"), "a.png", channels=1).repairs == ("colour made grey",)


def test_sixteen_bits_keep_every_level() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, "PNG")
    for data, name in ((stream.getvalue(), "a.png"), (encode(levels, "NPY"), "a.npy")):
        pixels = decode(data, name, channels=1).pixels
        assert pixels.dtype == np.float32
        assert np.array_equal(((pixels[..., 0].astype(np.float64) + 1) * 32767.5).round(), levels)
        assert (pixels.min(), pixels.max()) == (-1, 1)


def deep_png(levels: np.ndarray) -> bytes:
    """(H, W, 3) uint16 -> a PNG, by the format's description: PIL cannot write one."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_sixteen_bit_colour_is_never_reduced_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = np.arange(3 * 64 * 64, dtype=np.uint16).reshape(64, 64, 3) * 5
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv2", None)  # as if it were not installed
        with pytest.raises(Unusable, match=r"16-bit colour.*pip install opencv-python-headless"):
            decode(deep_png(levels), "a.png")
    pytest.importorskip("cv2", reason="reading 16-bit colour needs opencv-python-headless")
    pixels = decode(deep_png(levels), "a.png").pixels
    assert np.array_equal(((pixels.astype(np.float64) + 1) * 32767.5).round(), levels)


def test_many_channels_pass_through_unchanged() -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (5, 7, 11)).astype(np.float32)
    assert np.array_equal(decode(encode(values, "NPY"), "a.npy", channels=11).pixels, values)
