"""Your own pictures in a folder: what is found, how it is read, and what is said when something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data import FolderDataset
from imagen.data.transforms import read_image

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(width: int = 24, height: int = 16) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def save(
    folder: Path, name: str, image: Image.Image | None = None, caption: str | None = "a picture", **options
) -> Path:  # type: ignore[no-untyped-def]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or halves()).save(path, **options)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def colour(tensor: torch.Tensor, row: int, column: int) -> list[int]:
    return [round((float(v) + 1) * 127.5) for v in tensor[:, row, column]]


def test_pictures_are_found_in_order_with_their_captions(tmp_path: Path) -> None:
    save(tmp_path, "b.PNG", caption="  a red\n half ")
    save(tmp_path, "a/z.jpg", caption="größer ☂")
    save(tmp_path, "a/b/c.webp", caption="")
    save(tmp_path, ".hidden/x.png")
    (tmp_path / "notes.md").write_text("not a picture")
    dataset = FolderDataset(tmp_path, 8)
    assert len(dataset) == dataset.length == 3
    assert [dataset[i].key for i in range(3)] == ["a/b/c.webp", "a/z.jpg", "b.PNG"]
    assert [dataset[i].caption for i in range(3)] == ["", "größer ☂", "a red half"]
    assert dataset[0].image.shape == (3, 8, 8)
    assert dataset[0].image.dtype == torch.float32
    assert dataset[0].lowres is None


def test_pixels_are_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    save(tmp_path, "a.png", Image.fromarray(pixels))
    image = FolderDataset(tmp_path, 8)[0].image
    assert np.array_equal(((image + 1) * 127.5).round().numpy().transpose(1, 2, 0), pixels)
    assert image.min() >= -1
    assert image.max() <= 1


def test_the_middle_square_or_a_random_one(tmp_path: Path) -> None:
    save(tmp_path, "a.png", halves(48, 16))
    middle = FolderDataset(tmp_path, 16)
    assert colour(middle[0].image, 8, 2) == [*RED]
    assert colour(middle[0].image, 8, 13) == [*BLUE]
    assert torch.equal(middle[0].image, middle[5].image)
    random = FolderDataset(tmp_path, 16, seed=3, square="random")
    cuts = {float(random[i].image[0].mean()) for i in range(30)}
    assert len(cuts) > 8, "later epochs must cut anew"
    again = FolderDataset(tmp_path, 16, seed=3, square="random")
    assert all(torch.equal(random[i].image, again[i].image) for i in reversed(range(10)))


def test_flipping_is_off_unless_asked_for(tmp_path: Path) -> None:
    save(tmp_path, "a.png", halves(16, 16))
    assert {tuple(colour(FolderDataset(tmp_path, 16)[i].image, 8, 2)) for i in range(20)} == {RED}
    flipped = FolderDataset(tmp_path, 16, flip=True)
    lefts = [tuple(colour(flipped[i].image, 8, 2)) for i in range(60)]
    assert 15 < lefts.count(BLUE) < 45


def test_lowres_and_crop_show_the_same_window(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(0)), -1)
    save(tmp_path, "a.png", Image.fromarray(pixels))
    dataset = FolderDataset(tmp_path, 64, crop=16, lowres_size=16)
    corners = set()
    for index in range(20):
        sample = dataset[index]
        assert sample.image.shape == (3, 16, 16)
        assert sample.lowres is not None
        assert sample.lowres.shape == (3, 4, 4)
        blocks = sample.image.reshape(3, 4, 4, 4, 4).mean((2, 4))
        assert (blocks - sample.lowres).abs().max() < 0.02
        corners.add(tuple(colour(sample.image, 0, 0)))
    assert len(corners) > 10


def test_reducing_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    save(tmp_path, "a.png", Image.fromarray(stripes))
    assert FolderDataset(tmp_path, 8)[0].image.abs().max() < 0.05  # grey, not stripes


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, "a.png", halves().transpose(undo[orientation]), exif=exif)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(halves()))


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    grey16 = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    keyed = Image.new("P", (8, 8), 0)
    keyed.putpalette([10, 20, 30] + [0] * 765)
    expected = {
        "grey.png": (Image.new("L", (8, 8), 77), (77, 77, 77)),
        "grey16.png": (grey16, (128, 128, 128)),
        "clear.png": (clear, (255, 255, 255)),
        "palette.png": (keyed, (10, 20, 30)),
        "bit.png": (Image.new("1", (8, 8), 1), (255, 255, 255)),
        "ink.tiff": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
    }
    for name, (image, rgb) in expected.items():
        read = read_image(save(tmp_path, name, image))
        assert read.mode == "RGB", name
        assert read.getpixel((3, 3)) == rgb, name
    keyed.save(tmp_path / "key.png", transparency=0)
    assert read_image(tmp_path / "key.png").getpixel((3, 3)) == (255, 255, 255)


def test_floating_point_pictures_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "a.tiff", Image.new("F", (8, 8), 0.5))
    with pytest.raises(ValueError, match="floating-point"):
        read_image(path)


def test_a_missing_caption_is_an_error_or_empty_if_allowed(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    save(tmp_path, "b.png", caption=None)
    with pytest.raises(ValueError, match=r"1 of 2 pictures.*b\.png.*b\.txt"):
        FolderDataset(tmp_path, 8)
    assert FolderDataset(tmp_path, 8, captions="optional")[1].caption == ""


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_an_unreadable_picture_names_its_file(tmp_path: Path, damage: str) -> None:
    path = save(
        tmp_path, "broken.png", Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    )
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ValueError, match=r"cannot read .*broken\.png"):
        FolderDataset(tmp_path, 8)[0]


def test_a_caption_that_is_not_utf8_names_its_file(tmp_path: Path) -> None:
    save(tmp_path, "a.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        FolderDataset(tmp_path, 8)[0]


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    save(tmp_path, "a.png").with_suffix(".txt").write_bytes(b"\xef\xbb\xbfa cat")
    assert FolderDataset(tmp_path, 8)[0].caption == "a cat"


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        FolderDataset(tmp_path / "nowhere", 8)
    with pytest.raises(ValueError, match="no pictures"):
        FolderDataset(tmp_path, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 20}, "crop 20"),
        ({"seed": -1}, "seed is -1"),
        ({"lowres_size": 5}, "lowres_size is 5"),
        ({"lowres_size": 4, "crop": 6}, "whole low-res pixels"),
        ({"square": "left"}, "'left'"),
        ({"captions": "maybe"}, "'maybe'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    save(tmp_path, "a.png")
    with pytest.raises(ValueError, match=message):
        FolderDataset(tmp_path, 16, **options)
