"""Your own pictures in a folder: what is found, how it is read, and what is said when something is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.decode import Unusable, decode
from imagen.data.fields import Paired
from imagen.data.folder import FolderRecords
from imagen.data.pictures import PictureDataset
from imagen.data.prepare import Prepare, Want

RED, BLUE = (255, 0, 0), (0, 0, 255)


def folder(root: Path, size: int, **options) -> PictureDataset:  # type: ignore[no-untyped-def]
    seed = options.pop("seed", 0)
    want = {name: options.pop(name) for name in ("lowres_size", "captions") if name in options}
    return PictureDataset(FolderRecords(root), Prepare(Want(size, **want), **options), seed)


def read(path: Path, channels: int = 3) -> np.ndarray:
    return decode(path, path.name, channels).pixels


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
    save(tmp_path, "b.PNG", caption="  a red\t half \n")
    save(tmp_path, "a/z.jpg", caption="größer ☂")
    save(tmp_path, "a/b/c.webp", caption="")
    save(tmp_path, ".hidden/x.png")
    (tmp_path / "notes.md").write_text("not a picture")
    dataset = folder(tmp_path, 8)
    assert len(dataset) == dataset.length == 3
    assert [dataset[i].key for i in range(3)] == ["a/b/c.webp", "a/z.jpg", "b.PNG"]
    assert [dataset[i].caption for i in range(3)] == ["", "größer ☂", "a red half"]
    assert dataset[0].image.shape == (3, 8, 8)
    assert dataset[0].image.dtype == torch.float32
    assert dataset[0].lowres is None
    tmp_path.rename(hidden := tmp_path.parent / ".cache")
    assert len(folder(hidden, 8)) == 3, "only what is hidden inside the folder is passed over"


def test_pixels_are_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    save(tmp_path, "a.png", Image.fromarray(pixels))
    image = folder(tmp_path, 8)[0].image
    assert np.array_equal(((image + 1) * 127.5).round().numpy().transpose(1, 2, 0), pixels)
    assert image.min() >= -1
    assert image.max() <= 1


def test_the_middle_square_or_a_random_one(tmp_path: Path) -> None:
    save(tmp_path, "a.png", halves(48, 16))
    middle = folder(tmp_path, 16)
    assert colour(middle[0].image, 8, 2) == [*RED]
    assert colour(middle[0].image, 8, 13) == [*BLUE]
    assert torch.equal(middle[0].image, middle[5].image)
    random = folder(tmp_path, 16, seed=3, square="random")
    cuts = {float(random[i].image[0].mean()) for i in range(30)}
    assert len(cuts) > 8, "later epochs must cut anew"
    again = folder(tmp_path, 16, seed=3, square="random")
    assert all(torch.equal(random[i].image, again[i].image) for i in reversed(range(10)))


def test_flipping_is_off_unless_asked_for(tmp_path: Path) -> None:
    save(tmp_path, "a.png", halves(16, 16))
    assert {tuple(colour(folder(tmp_path, 16)[i].image, 8, 2)) for i in range(20)} == {RED}
    flipped = folder(tmp_path, 16, flip=True)
    lefts = [tuple(colour(flipped[i].image, 8, 2)) for i in range(60)]
    assert 15 < lefts.count(BLUE) < 45


def test_lowres_and_crop_show_the_same_window(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(tmp_path, "a.png", Image.fromarray(pixels))
    dataset = folder(tmp_path, 64, crop=16, lowres_size=16)
    corners = set()
    for index in range(20):
        sample = dataset[index]
        assert sample.image.shape == (3, 16, 16)
        assert sample.lowres is not None
        assert sample.lowres.shape == (3, 4, 4)
        blocks = sample.image.reshape(3, 4, 4, 4, 4).mean((2, 4))
        assert (blocks - sample.lowres).abs().max() <= 0.51 / 127.5, "not the mean over areas"
        corners.add(tuple(colour(sample.image, 0, 0)))
    assert len(corners) > 10


def test_reducing_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    save(tmp_path, "a.png", Image.fromarray(stripes))
    assert folder(tmp_path, 8)[0].image.abs().max() < 0.05  # grey, not stripes


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
    assert np.array_equal(read(path), np.asarray(halves()))


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
        pixels = read(save(tmp_path, name, image))
        assert pixels.shape == (8, 8, 3), name
        if pixels.dtype == np.uint8:
            assert tuple(pixels[3, 3]) == rgb, name
        else:  # 16 bits keep them all
            assert np.allclose(pixels[3, 3], 128 * 257 / 32767.5 - 1, atol=1e-7), name
    keyed.save(tmp_path / "key.png", transparency=0)
    assert tuple(read(tmp_path / "key.png")[3, 3]) == (255, 255, 255)


def test_floating_point_pictures_must_lie_in_the_network_s_range(tmp_path: Path) -> None:
    assert read(save(tmp_path, "a.tiff", Image.new("F", (8, 8), -0.5)), 1)[0, 0, 0] == -0.5
    for value, message in ((7.0, r"\[7, 7\]; expected \[-1, 1\]"), (float("nan"), "finite")):
        with pytest.raises(Unusable, match=message):
            read(save(tmp_path, "a.tiff", Image.new("F", (8, 8), value)))


def test_a_missing_caption_skips_the_picture_or_is_empty_if_allowed(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    save(tmp_path, "b.png", caption=None)
    sample = folder(tmp_path, 8)[1]
    assert (sample.key, sample.caption) == ("a.png", "a picture")
    assert [*map(tuple, sample.notes)] == [
        ("b.png", "skipped", "has no caption: there is no .txt file beside it")
    ] * len(sample.notes)
    assert sample.notes
    assert folder(tmp_path, 8, captions="optional")[1].caption == ""


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_an_unreadable_picture_is_replaced_by_another_and_named(tmp_path: Path, damage: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = save(tmp_path, "broken.png", Image.fromarray(noise))
    for name in ("a.png", "c.png", "d.png"):
        save(tmp_path, name)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2]}[damage])
    dataset = folder(tmp_path, 8)
    chosen = [dataset[1 + 4 * epoch] for epoch in range(40)]
    assert {sample.key for sample in chosen} == {"a.png", "c.png", "d.png"}, "every good one stands in at times"
    assert {sample.notes[0].key for sample in chosen} == {"broken.png"}
    assert [folder(tmp_path, 8)[1 + 4 * epoch].key for epoch in range(40)] == [sample.key for sample in chosen]
    assert dataset[0].notes == ()


def test_a_folder_of_bad_pictures_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"100 pictures in a row.*a\.png: the file is empty"):
        folder(tmp_path, 8)[0]


def test_a_caption_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    save(tmp_path, "a.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    sample, notes = folder(tmp_path, 8).examine(0)
    assert sample is None
    assert "caption .txt is not UTF-8" in notes[0].reason


def test_one_of_several_captions_is_drawn(tmp_path: Path) -> None:
    save(tmp_path, "a.png", caption="one\n\n  two \nthree\n")
    dataset = folder(tmp_path, 8, template="a photo of {}")
    drawn = [dataset[index].caption for index in range(90)]
    assert {text: drawn.count(text) > 15 for text in drawn} == {
        f"a photo of {word}": True for word in ("one", "two", "three")
    }
    assert list(dataset.captions()) == [("a photo of one", "a photo of two", "a photo of three")]


def test_the_class_is_the_folder(tmp_path: Path) -> None:
    save(tmp_path, "red_fox/1.png", caption=None)
    assert PictureDataset(FolderRecords(tmp_path, "class"), Prepare(Want(8)))[0].caption == "red fox"


def test_conditioning_pictures_are_cut_and_mirrored_alike(tmp_path: Path) -> None:
    ramp = np.add.outer(np.linspace(0, 32767, 48), np.linspace(0, 32767, 96)).astype(np.uint16)  # right and down
    save(tmp_path / "after", "a.png", Image.fromarray(ramp))
    small = ramp.reshape(24, 2, 48, 2).mean((1, 3)).astype(np.uint16)
    np.save(save(tmp_path / "before", "a.npy.png", caption=None).with_name("a.npy"), small)
    (tmp_path / "before" / "a.npy.png").unlink()
    records = FolderRecords(tmp_path / "after", fields={"conditioning": tmp_path / "before"})
    kinds = {"conditioning": Paired(16, channels=1)}
    dataset = PictureDataset(records, Prepare(Want(32, channels=1, fields=kinds), crop=16, square="random", flip=True))
    for index in range(20):
        sample = dataset[index]
        assert sample.lowres is None
        assert sample.image.shape == (1, 16, 16)
        assert sample.fields["conditioning"].shape == (1, 8, 8)
        blocks = sample.image.reshape(1, 8, 2, 8, 2).mean((2, 4))
        assert (blocks - sample.fields["conditioning"]).abs().max() < 0.03
    save(tmp_path / "after", "b.png")
    records = FolderRecords(tmp_path / "after", fields={"conditioning": tmp_path / "before"})
    _, notes = PictureDataset(records, Prepare(Want(32, fields=kinds))).examine(1)
    assert [note.reason for note in notes] == ["has no file of its name in the conditioning folder"]


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    save(tmp_path, "a.png").with_suffix(".txt").write_bytes(b"\xef\xbb\xbfa cat")
    assert folder(tmp_path, 8)[0].caption == "a cat"


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder"):
        folder(tmp_path / "nowhere", 8)
    with pytest.raises(ValueError, match="no pictures"):
        folder(tmp_path, 8)


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
        folder(tmp_path, 16, **options)


def test_what_lies_beside_a_picture_is_named_by_its_stem(tmp_path: Path) -> None:
    for name in ("sub/a.png", "sub/a.mask.png", "sub/b.mask.png.png", "c.txt", "sub/a.depth.tif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    places = {"mask": "mask.png", "depth": ".depth.tif", "kind": "class"}
    records = FolderRecords(tmp_path, fields=places)
    assert [records.key(number) for number in range(len(records))] == ["sub/a.png", "sub/b.mask.png.png"]
    record = records.record(0)
    sub = tmp_path / "sub"
    assert record.fields == {"mask": sub / "a.mask.png", "depth": sub / "a.depth.tif", "kind": "sub"}
    assert (record.name, record.image, record.captions, record.root) == ("a.png", sub / "a.png", (), None)


def test_of_the_files_of_one_name_in_another_folder_a_picture_is_taken(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/x/a.png", "in/x.png", "out/a.json", "out/a.png", "out/a.txt", "out/x/a.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "out" / ".x.png").write_bytes(b"")
    records = FolderRecords(tmp_path / "in", fields={"other": tmp_path / "out"})
    assert [records.key(number) for number in range(3)] == ["a.png", "x.png", "x/a.png"]
    assert records.record(0).fields == {"other": tmp_path / "out" / "a.png"}
    assert records.record(2).fields == {"other": tmp_path / "out" / "x" / "a.npy"}
    with pytest.raises(Unusable, match="has no file of its name in the other folder"):
        records.record(1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no files in '.*empty'; expected one for each picture"):
        FolderRecords(tmp_path / "in", fields={"other": tmp_path / "empty"})
    with pytest.raises(ValueError, match="there is no folder '.*nowhere'"):
        FolderRecords(tmp_path / "in", fields={"other": tmp_path / "nowhere"})


def test_captions_are_the_lines_of_the_file_but_where_it_holds_a_field(tmp_path: Path) -> None:
    path = save(tmp_path, "red_fox_cub/a.v2.png", caption="one\n \n two  words\n")
    text = path.with_suffix(".txt")
    assert FolderRecords(tmp_path).captions(0) == FolderRecords(tmp_path).record(0).captions == ("one", "two words")
    assert FolderRecords(tmp_path, "class").captions(0) == ("red fox cub",)
    for ending in ("txt", ".txt"):
        assert FolderRecords(tmp_path, fields={"score": ending}).captions(0) == ()
        assert FolderRecords(tmp_path, "class", {"score": ending}).captions(0) == ("red fox cub",)
        assert FolderRecords(tmp_path, fields={"score": ending}).record(0).fields == {"score": text}
    text.write_bytes(b" \n")
    assert FolderRecords(tmp_path).captions(0) == ("",)
    text.unlink()
    assert FolderRecords(tmp_path).captions(0) == ()
    text.mkdir()
    with pytest.raises(Unusable, match="caption cannot be read: Is a directory"):
        FolderRecords(tmp_path).captions(0)


def test_the_class_of_pictures_in_the_folder_that_one_is_in_is_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "red_fox").mkdir()
    (tmp_path / "red_fox" / "a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "red_fox")
    for rules, name in ((2, "red_fox"), (1, "")):
        records = FolderRecords(".", "class", {"kind": "class"}, rules=rules)
        assert records.captions(0) == (name.replace("_", " "),)
        assert records.record(0).fields == {"kind": name}
