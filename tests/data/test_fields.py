"""Kinds of fields: what a label and a mask may be stored as, what becomes of them, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagen.data.decode import Unusable
from imagen.data.fields import ClassName, Kind, Label, Paired
from imagen.data.prepare import Prepare, Want
from imagen.data.records import Record
from imagen.data.sources import Note

NAMES = ("owl", "red fox", "cat")

HALF = np.array([[255, 255, 255, 0], [0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 255]], np.uint8)


STORED = {
    "0 and 255": HALF,
    "0 and 1": HALF // 255,
    "bool": HALF > 0,
    "0.0 and 1.0": HALF.astype(np.float32) / 255,
    "-1.0 and 1.0": HALF.astype(np.float32) / 127.5 - 1,
    "-1.0 and half of the range": np.where(HALF > 0, np.float32(0), np.float32(-1)),
    "16 bits": HALF.astype(np.uint16) * 257,
    "barely": np.where(HALF > 0, 128, 127).astype(np.uint8),
}


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_a_mask_stays_two_valued_when_resized(stored: np.ndarray) -> None:
    def at(size: int, **options: Any) -> list[list[float]]:
        prepare = Prepare(Want(4, captions="optional", fields={"mask": Paired(size, 1, binary=True, **options)}))
        record = Record("", np.zeros((4, 4, 3), np.uint8), fields={"mask": stored})
        sample, _ = prepare("k", record, np.random.default_rng(0))
        return sample.fields["mask"][0].tolist()  # type: ignore[union-attr, index, return-value]

    whole = (HALF / 255).tolist()
    assert at(4) == at(4, resize="nearest") == whole
    assert at(2) == [[1, 0], [1, 0]], "1 where half of the area is, or more"
    assert at(2, resize="nearest") == [[whole[row][column] for column in (1, 3)] for row in (1, 3)]


def test_nearest_mixes_no_values() -> None:
    levels = np.random.default_rng(0).choice(np.array([0, 60, 200], np.uint8), (12, 12))
    record = Record("", np.zeros((12, 12, 3), np.uint8), fields={"map": levels})
    for resize, few in (("nearest", True), ("area", False)):
        kinds: dict[str, Kind] = {"map": Paired(4, 1, resize=resize)}  # type: ignore[arg-type]
        sample, _ = Prepare(Want(12, captions="optional", fields=kinds))("k", record, np.random.default_rng(0))
        shown = ((sample.fields["map"] + 1) * 127.5).round().unique().tolist()  # type: ignore[operator, union-attr]
        assert (set(shown) <= {0, 60, 200}) == few


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        (1, 1), (np.int64(2), 2), (2.0, 2), ("2", 2), (" 1\n", 1), (b"\xef\xbb\xbf0\n", 0), (True, 1),
        ("owl", 0), ("red_fox", 1), (b"red fox\n", 1), (ClassName(7, "cat"), 2),
    ],
)  # fmt: skip
def test_a_label_is_read_from_numbers_and_names(raw: Any, number: int) -> None:
    assert Label(names=NAMES).read(raw, "label") == number
    assert Label(8).read(ClassName(7, "cat"), "label") == 7
    assert Label(names=("1", "0")).read("0", "label") == 1, "a name goes before a number"


BAD_LABELS = [
    (None, "has no label"),
    ("", "has no label"),
    (b" \n", "has no label"),
    (float("nan"), "has no label"),
    (3, "label is '3'; expected one of owl, red fox, cat, or a whole number from 0 to 2"),
    (-1, "label is '-1'"),
    (1.5, "label is '1.5'"),
    ("dog", "label is 'dog'; expected one of owl"),
    ([1, 2], r"label is '\[1, 2\]'"),
    (b"1\n2\n", "label is '1 2'"),
    (b"\xff\xfe", "label is not UTF-8"),
    (Path("/nowhere.cls"), "label cannot be read: No such file"),
]


@pytest.mark.parametrize(("raw", "reason"), BAD_LABELS)
def test_a_bad_label_is_told(raw: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        Label(names=NAMES).read(raw, "label")


BAD_MASKS = [
    (None, "has no mask picture"),
    ("0.png", "has no mask picture"),  # a text in a shard is no file's path
    ([1, 2], "has no mask picture"),
    ({"bytes": None, "path": "0.png"}, "has no mask picture"),
    (b"", "mask picture: the file is empty"),
    (Path("/nowhere.png"), "mask picture: cannot be read: No such file"),
    (np.zeros((2, 2, 5), np.uint8), "mask picture: has 5 channels"),
]


@pytest.mark.parametrize(("raw", "reason"), BAD_MASKS)
def test_a_bad_mask_is_told(raw: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        Paired(8, 1, binary=True).decode(raw, "mask")


@pytest.mark.parametrize("arguments", [(0, ()), (-1, ()), (3, ("a", "b")), (0, ("a b", "a_b"))])
def test_labels_that_cannot_be_are_refused(arguments: tuple[int, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="expected a positive number, or as many different names"):
        Label(*arguments)
    with pytest.raises(ValueError, match="expected positive numbers, and 'area' or 'nearest'"):
        Paired(0)


def test_repairs_of_a_pair_are_told_beside_the_picture_s() -> None:
    grey, colour = np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8)
    prepare = Prepare(Want(4, captions="optional", channels=1, fields={"mask": Paired(4, 1, binary=True)}))
    own, pair = (Note("k", "repaired", f"{of}colour made grey") for of in ("", "mask picture: "))
    for image, mask, told in (
        (grey, grey, []),
        (colour, grey, [own]),
        (grey, colour, [pair]),
        (colour, colour, [own, pair]),
    ):
        record = Record("", image, fields={"mask": mask})
        assert prepare("k", record, np.random.default_rng(0))[1] == told
