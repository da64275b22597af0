"""What a picture of each kind becomes, number by number, and every reason for which one is refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.data.decode import Decoded, Unusable, decode
from imagen.data.folder import FolderRecords
from tests.data.test_malformed import deep_png


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_files_of_every_ending_are_pictures(tmp_path: Path) -> None:
    endings = ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "npy", "PNG", "JpEg"]
    names = sorted(f"{number:02d}.{ending}" for number, ending in enumerate(endings))
    for name in [*names, "a.txt", "b.png.bak", "png"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for hidden in (".hidden.png", ".x/a.png", "y/.a.png", "y/.z/a.png"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_bytes(b"")
    records = FolderRecords(tmp_path)
    assert [records.key(number) for number in range(len(records))] == names
    old = FolderRecords(tmp_path, rules=1)
    assert [old.key(number) for number in range(len(old))] == names


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colour_made_grey_is_weighed_as_the_eye_does(dtype: Any) -> None:
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601
    pixels = np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [31, 155, 254]]], np.uint8)
    given = pixels if dtype == np.uint8 else (pixels / 127.5 - 1).astype(np.float32)
    grey = decode(given, "", channels=1)
    assert grey.pixels.dtype == dtype
    assert grey.pixels.shape == (2, 2, 1)
    assert grey.repairs == ("colour made grey",)
    expected = pixels @ weights
    expected = expected.round() if dtype == np.uint8 else expected / 127.5 - 1
    np.testing.assert_allclose(grey.pixels[..., 0], expected, rtol=0, atol=1e-5)
    coloured = decode(grey.pixels, "", channels=3).pixels
    assert all(np.array_equal(coloured[..., channel], grey.pixels[..., 0]) for channel in range(3))


@pytest.mark.parametrize(("found", "wanted"), [(3, 4), (4, 3), (2, 1), (1, 2), (2, 3), (3, 2)])
def test_other_numbers_of_channels_are_not_made_up(found: int, wanted: int) -> None:
    with pytest.raises(Unusable, match=f"has {found} channels; the network takes {wanted}"):
        decode(np.zeros((2, 2, found), np.uint8), "", channels=wanted)
    assert decode(np.zeros((2, 2, found), np.uint8), "", channels=found).repairs == ()


def test_numbers_of_every_type_lie_in_the_range_of_their_type() -> None:
    for values, expected in (
        (np.array([[True, False]]), [[255, 0]]),
        (np.array([[7, 255]], np.uint8), [[7, 255]]),
        (np.array([[0, 65535]], np.uint16), [[-1, 1]]),
        (np.array([[-1.0, 1.0]], np.float64), [[-1, 1]]),
        (np.array([[-1.0, 0.5]], np.float16), [[-1, 0.5]]),
    ):
        pixels = decode(values, "", channels=1).pixels
        assert pixels.dtype == (np.uint8 if values.dtype in (np.bool_, np.uint8) else np.float32)
        assert pixels[..., 0].tolist() == expected
    for low, high in ((-1.001, 0.0), (0.0, 1.001), (-2.0, 3.0)):
        with pytest.raises(Unusable, match=rf"lie in \[{low:.4g}, {high:.4g}\]; expected \[-1, 1\]: scale them"):
            decode(np.array([[low, high]], np.float32), "", channels=1)
    for nothing in (np.nan, np.inf, -np.inf):
        with pytest.raises(Unusable, match="not all floating-point pixels are finite"):
            decode(np.array([[0.0, nothing]]), "", channels=1)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "int64", "complex64"])
def test_other_types_of_numbers_are_refused(dtype: str) -> None:
    with pytest.raises(Unusable, match=f"an array of {dtype}; expected uint8, uint16 or floating-point"):
        decode(np.zeros((2, 2), dtype), "", channels=1)


@pytest.mark.parametrize("shape", [(4,), (0, 4), (4, 0), (4, 4, 0), (1, 4, 4, 3)])
def test_an_array_is_of_rows_and_columns(shape: tuple[int, ...]) -> None:
    with pytest.raises(Unusable, match=r"an array of shape \(.*\); expected \(H, W\) or \(H, W, C\)"):
        decode(np.zeros(shape, np.uint8), "")


def test_an_array_is_no_larger_than_pictures_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12)
    assert decode(np.zeros((3, 4, 3), np.uint8), "").pixels.shape == (3, 4, 3)
    with pytest.raises(Unusable, match="13 x 1 pixels are more than the limit of 12"):
        decode(np.zeros((13, 1, 3), np.uint8), "")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(np.zeros((13, 1, 3), np.uint8), "").pixels.shape == (13, 1, 3)


def test_32_bit_integers_hold_16_bits_or_are_refused() -> None:
    for values in ([0, 65535], [12, 13]):
        image = Image.fromarray(np.array([values], np.int32))
        assert image.mode == "I"
        levels = (decode(image, "", channels=1).pixels.astype(np.float64) + 1) * 32767.5
        np.testing.assert_allclose(levels[0, :, 0], values, atol=0.01)
    for values in ([-1, 5], [5, 65536]):
        told = rf"32-bit pixels lie in \[{values[0]}, {values[1]}\]; expected 16 bits"
        with pytest.raises(Unusable, match=told):
            decode(Image.fromarray(np.array([values], np.int32)), "", channels=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white_by_its_share_and_is_told_where_there_is_any(mode: str) -> None:
    for alpha, told in ((255, ()), (51, ("transparency laid over white",)), (0, ("transparency laid over white",))):
        image = Image.new("RGBA", (3, 2), (100, 100, 100, 255))
        image.putpixel((1, 1), (100, 100, 100, alpha))
        found = decode(image.convert(mode), "")
        assert found.repairs == told
        assert found.pixels.shape == (2, 3, 3)
        share = alpha / 255
        assert abs(int(found.pixels[1, 1, 0]) - (share * 100 + (1 - share) * 255)) <= 1
        assert found.pixels[0, 0].tolist() == [100, 100, 100]


@pytest.mark.parametrize(
    ("mode", "told"), [("CMYK", "CMYK"), ("YCbCr", "YCbCr"), ("HSV", "HSV"), ("LAB", "LAB"), ("P", "P"), ("RGB", None)]
)
def test_other_kinds_of_colour_become_rgb_and_are_told(mode: str, told: str | None) -> None:
    found = decode(Image.new("RGB", (2, 2), "white").convert(mode) if mode != "LAB" else Image.new("LAB", (2, 2)), "")
    assert found.repairs == (() if told is None else (f"{told} made RGB",))
    assert found.pixels.shape == (2, 2, 3)


def test_black_and_white_is_grey_of_two_levels() -> None:
    found = decode(Image.fromarray(np.array([[True, False]])), "", channels=1)
    assert found.repairs == ()
    assert found.pixels[..., 0].tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("PNG", "a.png", ()),
        ("PNG", "A.PNG", ()),
        ("PNG", "a", ()),
        ("PNG", "a.unknown", ()),
        ("PNG", "b.png/a.jpg", ("named as JPEG but is PNG",)),
        ("BMP", "a.jpeg", ("named as JPEG but is BMP",)),
        ("JPEG", "a.jpg", ()),
        ("JPEG", "a.mpo", ()),
        ("MPO", "a.jpg", ()),  # what some cameras write
        ("MPO", "a.png", ("named as PNG but is MPO",)),
    ],
)
def test_an_ending_is_compared_with_the_content(kind: str, name: str, told: tuple[str, ...]) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    more = {"save_all": True, "append_images": [second]} if kind == "MPO" else {}
    found = decode(saved(first, kind, **more), name)
    assert found.repairs == told
    assert found.pixels[4, 4, 0] > 200 > 50 > found.pixels[4, 4, 2], "the first picture"


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (2, True), (8, True), (9, False), (0, False)])
def test_only_what_was_turned_is_told(orientation: int, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(Image.new("RGB", (6, 4)), exif=exif), "a.png")
    assert found.repairs == (("turned upright by its EXIF orientation",) if turned else ())


def test_exif_that_cannot_be_read_is_told_and_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(self: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", damaged)
    found = decode(saved(Image.new("RGB", (6, 4), "red")), "a.png")
    assert found.repairs == ("unreadable EXIF ignored",)
    assert found.pixels[0, 0].tolist() == [255, 0, 0]


def test_all_repairs_are_told_in_order_and_warnings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Image.Image.load

    def warns(self: Image.Image) -> Any:
        warnings.warn("strange\n  chunk", stacklevel=1)
        warnings.warn("x" * 300, stacklevel=1)
        return real(self)

    exif = Image.Exif()
    exif[0x0112] = 3
    data = saved(Image.new("CMYK", (8, 8)), "JPEG", exif=exif)
    monkeypatch.setattr(Image.Image, "load", warns)
    with warnings.catch_warnings(record=True) as left:
        found = decode(data, "a.png")
    own = ("named as PNG but is JPEG", "turned upright by its EXIF orientation", "CMYK made RGB")
    assert found.repairs == (*own, "read with a warning: strange chunk", f"read with a warning: {'x' * 200}")
    assert not left, "none is left for the user to wonder about"


def test_sixteen_bit_colour_of_other_channels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2", reason="reading 16-bit colour needs opencv-python-headless")
    for decoded in (None, np.zeros((4, 4, 4), np.uint16), np.zeros((4, 4), np.uint16)):
        monkeypatch.setattr(cv2, "imdecode", lambda *_, found=decoded: found)
        with pytest.raises(Unusable, match="16-bit colour with transparency: save it without"):
            decode(deep_png(np.zeros((4, 4, 3), np.uint16)), "a.png")


def test_a_picture_is_an_array_of_channels_whatever_holds_it() -> None:
    grey, colour = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(Decoded(Image.fromarray(grey)).pixels, grey[..., None])
    assert np.array_equal(Decoded(Image.fromarray(colour)).pixels, colour)
    assert Decoded(colour).pixels is colour
