"""From a record to a sample: the square, the window, the fields, and what is said of what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data.config import DataConfig
from imagen.data.decode import NothingUsable, Unusable
from imagen.data.fields import Encoded, Label, Paired
from imagen.data.folder import FolderRecords
from imagen.data.make import make_source
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Record
from imagen.data.sources import Sample, collate
from imagen.data.transforms import cut_square, item_rng, nearest_square, resize_square, to_tensor


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("as_picture", [False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 9), (9, 4), (4, 8), (8, 4), (5, 5)])
def test_a_square_is_whole_and_lies_where_it_is_asked_for(height: int, width: int, as_picture: bool) -> None:
    pixels = noise(height, width, 3)
    side, room = min(height, width), abs(height - width)
    for where, first in ((0.0, 0), (0.5, (room + 1) // 2), (0.999, room)):
        cut = np.asarray(cut_square(Image.fromarray(pixels) if as_picture else pixels, where))
        expected = pixels[first : first + side] if height > width else pixels[:, first : first + side]
        assert np.array_equal(cut, expected)


def test_every_place_of_a_square_is_as_likely() -> None:
    starts = [cut_square(np.arange(7)[None, :, None], where)[0, 0, 0] for where in np.linspace(0, 1, 700, False)]
    assert np.bincount(starts).tolist() == [100] * 7


def test_the_randomness_of_an_item_is_its_own() -> None:
    drawn = {
        (seed, index, stream): int(item_rng(seed, index, stream).integers(2**62))
        for seed in range(3)
        for index in range(3)
        for stream in range(3)
    }
    assert len({*drawn.values()}) == 27
    assert all(int(item_rng(*which).integers(2**62)) == number for which, number in drawn.items())


def test_what_is_drawn_for_a_replacement_says_nothing_of_its_window(tmp_path: Path) -> None:
    """Of two pictures and two halves to look at, which picture it is says nothing of the half."""
    (tmp_path / "2.png").write_bytes(b"")
    for number in range(2):
        levels = np.arange(64, dtype=np.uint8).reshape(8, 8) + np.uint8(100 * number)
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
    dataset = PictureDataset(FolderRecords(tmp_path), Prepare(Want(8, None, 1, "optional"), crop=1))
    seen = [int(((dataset[2 + 3 * epoch].image + 1) * 127.5).round()) for epoch in range(300)]
    alike = sum((level >= 100) == (level % 100 % 8 < 4) for level in seen)
    assert abs(alike - 150) < 3 * 75**0.5, "half of them"


@pytest.mark.parametrize(
    ("legal", "wrong"),
    [
        ({"crop": 1}, {"crop": 0}),
        ({"crop": 8}, {"crop": 9}),
        ({"crop": 4, "lowres_size": 2}, {"crop": 2, "lowres_size": 2}),
        ({"lowres_size": 1}, {"lowres_size": 0}),
        ({"lowres_size": 8}, {"lowres_size": 16}),
        ({"lowres_size": 4}, {"lowres_size": 3}),
        ({"fields": {"a": Paired(8), "b": Paired(4)}}, {"fields": {"a": Paired(8), "b": Paired(3)}}),
        ({"crop": 4, "fields": {"b": Paired(2)}}, {"crop": 4, "fields": {"a": Paired(8), "b": Paired(1)}}),
        ({"captions": "optional"}, {"captions": "none"}),
        ({"square": "random"}, {"square": "left"}),
        ({"resize": "bicubic"}, {"resize": "box"}),
    ],
)  # fmt: skip
def test_both_sides_of_every_bound(legal: dict[str, Any], wrong: dict[str, Any]) -> None:
    def make(options: dict[str, Any]) -> Prepare:
        want = {name: options[name] for name in ("lowres_size", "captions", "fields") if name in options}
        return Prepare(Want(8, **want), **{name: value for name, value in options.items() if name not in want})

    assert make(legal)
    with pytest.raises(ValueError, match=r"expected (0 < crop <= size|a divisor of size|one of)"):
        make(wrong)


@pytest.mark.parametrize(
    ("given", "match"),
    [((0, 1, "area"), "size is 0"), ((1, 0, "area"), "channels 0"), ((1, 1, "bicubic"), "resize 'bicubic'")],
)
def test_a_pair_that_cannot_be_is_refused(given: tuple[Any, ...], match: str) -> None:
    assert Paired(1, 1, "nearest").size == 1
    with pytest.raises(ValueError, match=match):
        Paired(*given)


@pytest.mark.parametrize(
    ("stored", "pair", "fits"),
    [
        ((10, 20), (5, 10), True),
        ((10, 21), (5, 10), True),  # half a pixel
        ((5, 10), (10, 19), True),
        ((5, 10), (10, 21), True),
        ((10, 20), (5, 9), False),
        ((10, 20), (5, 11), False),
        ((5, 9), (10, 20), False),
        ((10, 20), (10, 5), False),
        ((20, 10), (10, 20), False),
    ],
)
def test_a_pair_has_the_shape_of_its_picture_but_for_rounding(
    stored: tuple[int, int], pair: tuple[int, int], fits: bool
) -> None:
    prepare = Prepare(Want(4, captions="optional", fields={"other": Paired(4)}))
    record = Record("", noise(*stored, 3), fields={"other": noise(*pair, 3)})
    if fits:
        assert prepare("k", record, item_rng(0, 0))[0].fields["other"].shape == (3, 4, 4)  # type: ignore[union-attr]
        return
    told = f"is {stored[1]} x {stored[0]} but its other picture {pair[1]} x {pair[0]}: of another shape"
    with pytest.raises(Unusable, match=told):
        prepare("k", record, item_rng(0, 0))


def test_every_field_is_read_as_its_own_kind_says() -> None:
    """Two numbers, an encoding and three paired pictures of other sizes, channels and kinds, over one window."""
    shown, pair, mask, rough = noise(8, 8, 3), noise(8, 8, seed=1), noise(8, 8, seed=2), noise(8, 8, 3, seed=3)
    fields = {
        "first": Label(5), "pair": Paired(8, 1), "second": Label(names=("a", "b")), "mask": Paired(4, 1, binary=True),
        "rough": Paired(4, 3, "nearest"), "text": Encoded(2, 3),
    }  # fmt: skip
    prepare = Prepare(Want(8, 4, fields=fields), crop=4, flip=True)
    given = {"first": 4, "second": "b", "pair": pair, "mask": mask, "rough": rough, "text": [[1.0, 2.0, 3.0]], "no": 1}
    windows = set()
    for seed in range(40):
        sample, notes = prepare("k", Record("", shown, ("c",), given), item_rng(0, seed))
        assert notes == []
        assert {name: sample.fields[name] for name in ("first", "second")} == {"first": 4, "second": 1}
        assert sample.fields.keys() == fields.keys()
        assert sample.fields["text"].tolist() == [[1.0, 2.0, 3.0]]  # type: ignore[union-attr]
        found = [
            (top, left, mirrored)
            for mirrored in (False, True)
            for top in range(0, 5, 2)
            for left in range(0, 5, 2)
            if torch.equal(sample.image, to_tensor(turned(shown, mirrored)[top : top + 4, left : left + 4]))
        ]
        ((top, left, mirrored),) = found
        windows.add(found[0])
        cell = (slice(top // 2, top // 2 + 2), slice(left // 2, left // 2 + 2))
        half = resize_square(np.where(mask >= 127.5, 1, -1).astype(np.float32)[..., None], 4)
        expected = {
            "pair": to_tensor(turned(pair, mirrored)[top : top + 4, left : left + 4, None]),
            "mask": (to_tensor(turned(half, mirrored)[cell]) >= 0).float(),
            "rough": to_tensor(turned(nearest_square(rough, 4), mirrored)[cell]),
            "lowres": to_tensor(turned(resize_square(shown, 4), mirrored)[cell]),
        }
        made: dict[str, Any] = {**sample.fields, "lowres": sample.lowres}
        assert {name: torch.equal(made[name], tensor) for name, tensor in expected.items()} == dict.fromkeys(
            expected, True
        )
    assert len(windows) > 14, "of nine corners, mirrored or not"


def turned(pixels: np.ndarray, mirrored: bool) -> np.ndarray:
    return pixels[:, ::-1] if mirrored else pixels


@pytest.mark.parametrize(
    ("template", "told"), [(None, "a star"), ("a {} of {}", "a a star of a star"), ("{}", "a star")]
)
def test_a_caption_is_put_in_the_template_and_a_missing_one_is_not(template: str | None, told: str) -> None:
    for captions, expected in ((("a star",), told), ((), "")):
        prepare = Prepare(Want(2, captions="optional"), template=template)
        assert prepare("k", Record("", noise(2, 2, 3), captions), item_rng(0, 0))[0].caption == expected
    with pytest.raises(Unusable, match="has no caption"):
        Prepare(Want(2), template=template)("k", Record("", noise(2, 2, 3)), item_rng(0, 0))


def test_a_missing_caption_does_not_hide_that_the_picture_is_broken() -> None:
    for want, told in (
        (Want(2), "the file is empty; and it has no caption: there is no .txt file beside it"),
        (Want(2, captions="optional"), "the file is empty"),
    ):
        with pytest.raises(Unusable) as caught:
            Prepare(want)("k", Record("a.png", b"", looked="there is no .txt file beside it"), item_rng(0, 0))
        assert str(caught.value) == told
    with pytest.raises(Unusable, match=r"^the file is empty$"):
        Prepare(Want(2))("k", Record("a.png", b"", ("a star",)), item_rng(0, 0))


class Bad:
    """Records of which all but those of `good` are bad."""

    def __init__(self, count: int, *good: int) -> None:
        self.count, self.good, self.asked = count, good, []  # type: ignore[var-annotated]

    def __len__(self) -> int:
        return self.count

    def key(self, number: int) -> str:
        return f"k{number}"

    def captions(self, number: int) -> tuple[str, ...]:
        return self.record(number).captions

    def record(self, number: int) -> Record:
        self.asked.append(number)
        if number not in self.good:
            raise Unusable(f"bad {number}")
        return Record("", noise(2, 2, 3, seed=number), (f"c{number}",))


def test_a_hundred_are_tried_and_no_more() -> None:
    records = Bad(5)
    with pytest.raises(NothingUsable, match=r"100 pictures in a row cannot be used; the last is k(\d): bad \1$"):
        PictureDataset(records, Prepare(Want(2)))[7]
    assert len(records.asked) == 100
    assert records.asked[0] == 2
    assert {*records.asked} == {0, 1, 2, 3, 4}


def test_bad_items_are_told_in_order_before_what_stands_in_for_them() -> None:
    records = Bad(9, 4)
    sample = PictureDataset(records, Prepare(Want(2)))[3]
    assert sample.key == "k4"
    assert [tuple(note) for note in sample.notes] == [(f"k{n}", "skipped", f"bad {n}") for n in records.asked[:-1]]
    assert list(PictureDataset(Bad(9, 4, 6), Prepare(Want(2), template="<{}>")).captions()) == [("<c4>",), ("<c6>",)]


def test_items_are_examined_as_their_first_epoch_shows_them() -> None:
    dataset = PictureDataset(Bad(4, 0, 1, 2, 3), Prepare(Want(2), crop=1))
    for number in range(4):
        for index in (number, number + 4):
            examined, notes = dataset.examine(number, index)
            assert torch.equal(examined.image, dataset[index].image)  # type: ignore[union-attr]
            assert notes == []
        assert torch.equal(dataset.examine(number)[0].image, dataset[number].image)  # type: ignore[union-attr]
    with pytest.raises(IndexError, match="index is -1; expected at least 0"):
        dataset[-1]


@pytest.mark.parametrize("make", [PictureDataset, StreamDataset])
def test_a_seed_is_not_negative(make: Any) -> None:
    assert make(Bad(1, 0), Prepare(Want(2)), 0).seed == 0
    with pytest.raises(ValueError, match="seed is -1; expected at least 0"):
        make(Bad(1, 0), Prepare(Want(2)), -1)


def test_a_batch_holds_every_field_of_every_sample() -> None:
    image = torch.zeros(3, 2, 2)
    samples = [
        Sample(f"k{n}", image, fields={"label": n + 5, "mask": image[:1] + n, "text": torch.full((n + 1, 2), float(n))})
        for n in range(3)
    ]
    batch = collate(samples)
    assert batch["label"].tolist() == [5, 6, 7]
    assert batch["label"].dtype == torch.int64
    assert batch["mask"].shape == (3, 1, 2, 2)
    assert batch["mask"][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch["text"][:, :, 0].tolist() == [[0, 0, 0], [1, 1, 0], [2, 2, 2]]
    assert batch["text_mask"].tolist() == [[True, False, False], [True, True, False], [True] * 3]
    for name, odd in (("label", {}), ("mask", {"mask": torch.zeros(1, 2, 3)})):
        fields = {**samples[2].fields, **odd} if odd else {n: v for n, v in samples[2].fields.items() if n != name}
        with pytest.raises(ValueError, match=f"'k2' has no {name}|{name} has the shapes"):
            collate([*samples[:2], Sample("k2", image, fields=fields)])


def notes_on(prepare: Prepare, height: int, width: int, captions: tuple[str, ...] = ("a",)) -> list[str]:
    return [
        f"{note.action}: {note.reason}"
        for note in prepare("k", Record("", noise(height, width, 3), captions), item_rng(0, 0))[1]
    ]


def test_a_picture_smaller_than_it_may_be_is_told_and_an_enlarged_one_is_noted() -> None:
    at_least = Prepare(Want(8), min_size=6)
    assert notes_on(at_least, 8, 16) == notes_on(at_least, 8, 8, ("a", "b")) == []
    assert notes_on(at_least, 6, 12) == ["noted: is 12 x 6 pixels, enlarged to 8"]
    assert notes_on(at_least, 17, 8) == ["noted: is 8 x 17 pixels, of which more than half are cut off"]
    for captions in (("",), ("a", ""), ("", "a")):
        assert notes_on(at_least, 8, 8, captions) == ["noted: has an empty caption"]
    for height, width in ((5, 30), (30, 5)):
        with pytest.raises(Unusable, match=rf"^is {width} x {height} pixels, smaller than 6: data.min_size 5 lets"):
            notes_on(at_least, height, width)


def test_no_picture_is_smaller_than_the_stage_unless_the_data_or_an_older_run_say_so(tmp_path: Path) -> None:
    for side in (4, 6, 8):
        Image.fromarray(noise(side, side, 3)).save(tmp_path / f"{side}.png")
    for options, usable in (({}, 1), ({"rules": 2}, 1), ({"min_size": 6}, 2), ({"rules": 1}, 3)):
        data = DataConfig("folder", str(tmp_path), **options)  # type: ignore[arg-type]
        source = make_source(data, Want(8, captions="optional"))
        assert isinstance(source, PictureDataset)
        assert sum(source.examine(number)[0] is not None for number in range(3)) == usable, options
    data = DataConfig("folder", str(tmp_path), rules=1, min_size=7)
    source = make_source(data, Want(8, captions="optional"))
    assert [source.examine(number)[0] is not None for number in range(3)] == [False, False, True]  # type: ignore[union-attr]
