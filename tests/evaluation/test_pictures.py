"""What PICTURES means: folders, shards, tables, configurations and suites, read as training reads them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data import ShapesDataset
from imagen.data.transforms import resize_square
from imagen.evaluation.alignment import truth_pictures
from imagen.evaluation.pictures import open_arrays, open_classes, open_pictures
from imagen.evaluation.sampling import Samples, make_samples
from imagen.evaluation.suites import suite
from tests.factories import SENTENCES, tiny_pipeline

WIDE, TALL = (12, 8), (8, 20)  # width, height


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, a grey one among them, and a file that is none; captions beside two."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    noise(WIDE, 1).save(root / "a.png")
    (root / "a.txt").write_text("a wide one\nanother caption\n")
    noise(TALL, 2).save(root / "more" / "b.png")
    noise((8, 8), 3).convert("L").save(root / "c.png")
    (root / "c.txt").write_text("a grey one")
    (root / "broken.png").write_bytes(b"nothing")
    return root


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_folder_as_it_is_stored(folder: Path) -> None:
    found = open_pictures(str(folder))
    assert (found.name, found.count) == (str(folder), 4)
    for _ in range(2):  # as often as one likes
        shown = {one.key: one for one in found}
        assert list(shown) == ["a.png", "c.png", "more/b.png"]
        assert [one.caption for one in shown.values()] == ["a wide one", "a grey one", None]
        assert [one.picture.size for one in shown.values()] == [WIDE, (8, 8), TALL]
        assert {one.picture.mode for one in shown.values()} == {"RGB"}
        assert shown["a.png"].picture.tobytes() == noise(WIDE, 1).tobytes()
        assert shown["c.png"].picture.tobytes() == noise((8, 8), 3).convert("L").convert("RGB").tobytes()
        assert [(note.key, note.action) for note in found.skipped] == [("broken.png", "skipped")]
    told = found.told()
    assert told == f"{folder}: 1 pictures passed over (broken.png is no picture of a known format)"


def test_pictures_are_brought_to_a_size_as_training_does_and_small_ones_are_told(folder: Path) -> None:
    noise((3, 9), 4).save(folder / "d.png")
    found = open_pictures(str(folder), size=4)
    shown = {one.key: one.picture for one in found}
    assert {picture.size for picture in shown.values()} == {(4, 4)}
    middle = noise(WIDE, 1).crop((2, 0, 10, 8))
    assert np.array_equal(np.asarray(shown["a.png"]), resize_square(middle, 4))
    blocks = np.asarray(middle, np.float64).reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(shown["a.png"]) - blocks).max() <= 0.5, "means over areas"
    assert [note.key for note in found.skipped] == ["broken.png", "d.png"]
    assert "d.png is 3 x 9 pixels, smaller than 4" in found.told()
    with pytest.raises(ValueError, match="none of the pictures of .* can be used: .* smaller than 64"):
        list(open_pictures(str(folder / "more"), size=64))


def test_the_first_usable_ones_alone_and_in_batches(folder: Path) -> None:
    found = open_pictures(str(folder), num=2)
    assert [[one.key for one in batch] for batch in found.batches(2)] == [["a.png", "c.png"]]
    assert found.count == 2
    assert [[one.key for one in batch] for batch in open_pictures(str(folder)).batches(2)] == [
        ["a.png", "c.png"], ["more/b.png"]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="num is 0"):
        open_pictures(str(folder), num=0)


def test_shards_a_folder_of_them_and_a_glob(tmp_path: Path) -> None:
    for number in range(2):
        files = {f"{number}.png": png(noise(WIDE, number)), f"{number}.txt": f"picture {number}".encode()}
        tar(tmp_path / f"s{number}.tar", files)
    for name in (tmp_path, tmp_path / "*.tar", f"{tmp_path / 's0.tar'},{tmp_path / 's1.tar'}"):
        shown = list(open_pictures(str(name)))
        assert [(one.key, one.caption) for one in shown] == [("s0.tar/0", "picture 0"), ("s1.tar/1", "picture 1")]
        assert shown[1].picture.tobytes() == noise(WIDE, 1).tobytes()


def test_what_was_sampled_and_that_it_is_all_there(tmp_path: Path) -> None:
    paths = make_samples(tiny_pipeline(), Samples(SENTENCES[:3], size=16, shard_size=2), tmp_path)
    shown = list(open_pictures(str(tmp_path)))
    assert [one.caption for one in shown] == SENTENCES[:3]
    assert {one.picture.size for one in shown} == {(16, 16)}
    paths[0].unlink()
    with pytest.raises(ValueError, match="lacks 1 of 2 shards"):
        open_pictures(str(tmp_path))


def test_a_configuration_names_data_as_training_reads_it(folder: Path, tmp_path: Path) -> None:
    """Its fields are no pictures, and what training does at random is left out."""
    noise(WIDE, 9).save(folder / "a.mask.png")
    config = tmp_path / "my.yaml"
    text = f"run_dir: runs/x\ndata:\n  kind: folder\n  path: {folder}\n  template: 'a photo: {{}}'\n"
    config.write_text(text + "  crop: 4\n  flip: true\n  square: random\n  fields: {mask: mask.png}\n")
    shown = {one.key: one for one in open_pictures(str(config))}
    assert list(shown) == ["a.png", "c.png", "more/b.png"]
    assert shown["a.png"].caption == "a photo: a wide one"
    whole = {one.key: one.picture for one in open_pictures(str(config), size=8)}
    assert np.array_equal(np.asarray(whole["a.png"]), np.asarray(noise(WIDE, 1).crop((2, 0, 10, 8))))
    assert [one.key for one in open_pictures(f"{config}:2")] == ["a.png", "c.png"]
    assert [one.key for one in open_pictures(f"{config}:2", num=1)] == ["a.png"]


def test_a_stream_is_read_in_its_order(tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", {f"{n}.png": png(noise(WIDE, n)) for n in range(3)} | {"3.png": b"nothing"})
    config = tmp_path / "my.yaml"
    config.write_text(f"data: {{kind: shards, path: {tmp_path / 's.tar'}, streaming: true}}\n")
    found = open_pictures(str(config))
    assert found.count is None
    assert [one.key for one in found] == ["s.tar/0", "s.tar/1", "s.tar/2"]
    assert [note.key for note in found.skipped] == ["s.tar/3"]
    assert [one.key for one in open_pictures(f"{config}:2")] == ["s.tar/0", "s.tar/1"]


def test_a_table(folder: Path) -> None:
    rows = [{"file_name": "a.png", "text": "first"}, {"file_name": "lost.png", "text": "second"}]
    table = folder / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    found = open_pictures(str(table))
    assert [one.caption for one in found] == ["first"]
    assert len(found.skipped) == 1


def test_the_shapes_world_is_rendered_at_the_size_that_is_asked_for(tmp_path: Path) -> None:
    prompts = suite("heldout", 3)
    found = open_pictures("shapes:heldout:3", size=64)
    shown = list(found)
    assert (found.count, [one.caption for one in shown]) == (3, [prompt.text for prompt in prompts])
    truth = truth_pictures(prompts, 64)
    assert [one.picture.tobytes() for one in shown] == [picture.tobytes() for picture in truth]
    assert len(list(open_pictures("shapes:heldout:3", size=64, num=2))) == 2
    config = tmp_path / "my.yaml"
    config.write_text("data: {kind: shapes, split: heldout, crop: 16}\n")
    drawn = list(open_pictures(f"{config}:2", size=64))
    own = ShapesDataset(64, 0, "heldout")
    for index, one in enumerate(drawn):
        assert one.caption == own[index].caption
        pixels = torch.from_numpy(np.array(one.picture)).permute(2, 0, 1).float()
        assert (pixels / 127.5 - 1 - own[index].image).abs().max() <= 0.5001 / 127.5
    for name, told in (
        ("shapes:heldout:3", "are drawn, at any size"), (f"{config}:2", "are drawn, at any size"),
        ("shapes:heldout", "lacks how many"), ("shapes:other:3", "expected shapes:heldout:NUM"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            open_pictures(name, size=None if "size" in told else 64)
    with pytest.raises(ValueError, match="has no end"):
        open_pictures(str(config), size=64)


def test_arrays_hold_the_numbers_that_are_stored(folder: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(250, 30, (5, 7, 6)).astype(np.float32)  # kelvin, say
    values[0, 0, 0] = np.nan
    np.save(folder / "k.npy", values)
    np.save(folder / "l.npy", np.arange(6, dtype=np.int16).reshape(2, 3) - 3)
    np.save(folder / "m.npy", np.zeros(3))
    deep = rng.integers(0, 65536, (4, 4)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "n.png")
    (folder / "o.npy").write_bytes((folder / "k.npy").read_bytes()[:200])
    found = open_arrays(str(folder))
    shown = {one.key: one.picture for one in found}
    assert list(shown) == ["a.png", "c.png", "k.npy", "l.npy", "more/b.png", "n.png"]
    assert {array.dtype for array in shown.values()} == {np.dtype(np.float64)}
    assert np.array_equal(shown["k.npy"], np.moveaxis(values, -1, 0), equal_nan=True)
    assert shown["l.npy"].tolist() == [[[-3, -2, -1], [0, 1, 2]]]
    assert np.array_equal(shown["a.png"], np.moveaxis(np.asarray(noise(WIDE, 1)), -1, 0))
    assert np.abs(shown["n.png"] - deep).max() < 0.01
    reasons = {note.key: note.reason for note in found.skipped}
    assert list(reasons) == ["broken.png", "m.npy", "o.npy"]
    assert "an array of float64 and shape (3,)" in reasons["m.npy"]
    assert "is no whole .npy file" in reasons["o.npy"]
    assert len(list(open_arrays(str(folder), num=1))) == 1
    with pytest.raises(ValueError, match="are drawn, not stored"):
        open_arrays("shapes:heldout:3")


@pytest.mark.parametrize(("text", "told"), [
    ("- 1\n", "has no section data"), ("data: 3\n", "has no section data"), ("a: [\n", "is not valid YAML"),
    ("data: {kind: nothing}\n", "my.yaml"), ("data: {kind: folder}\n", "data.path is missing"),
    ("data: {kind: folder, path: lost}\n", "no folder 'lost'"), ("data: {knd: shapes}\n", "knd"),
])  # fmt: skip
def test_a_configuration_that_names_no_pictures_is_told_in_a_line(text: str, told: str, tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=told) as raised:
        open_pictures(str(config), size=64)
    assert "\n" not in str(raised.value)


def test_what_is_nothing_is_told_with_what_it_may_be(tmp_path: Path) -> None:
    for name, told in (("lost", "'lost' are not there; expected a folder, tar shards"), ("lost.tar", "no shards at"),
                       ("lost.yaml", "are not there"), (str(tmp_path), "no pictures in")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            open_pictures(name)


def test_of_two_numbers_the_smaller_holds_for_classes_and_arrays_too(tmp_path: Path) -> None:
    for number in range(4):
        folder = tmp_path / "data" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    (tmp_path / "my.yaml").write_text(f"data: {{kind: folder, path: {tmp_path / 'data'}, captions: class}}")
    for num, expected in ((3, 2), (1, 1), (None, 2)):
        assert len(list(open_classes(f"{tmp_path / 'my.yaml'}:2", num))) == expected
        assert len(list(open_arrays(f"{tmp_path / 'my.yaml'}:2", num))) == expected
