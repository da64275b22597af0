"""The contact sheets of the shapes world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.data import ShapesDataset
from imagen.data.shapes.sheet import arrange, draw, main, tile


def test_a_sheet_shows_the_samples(tmp_path) -> None:
    main(["--out", str(tmp_path / "sheet.png"), "--count", "1", "--side", "256", "--seed", "3"])
    shown = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)
    corner = np.argwhere((shown != 255).any(-1))[0]
    expected = (ShapesDataset(256, seed=3)[0].image.permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(shown[corner[0] : corner[0] + 256, corner[1] : corner[1] + 256] - expected).max() <= 1


@pytest.mark.parametrize(
    "wrong", [["--count", "0"], ["--columns", "0"], ["--side", "0"], ["--seed", "-1"], ["--split", "none"]]
)
def test_a_wrong_option_is_one_line(tmp_path, capsys, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "sheet.png"), *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err.splitlines()[-1]


def test_tiles_stand_row_by_row_with_gaps_between_and_around() -> None:
    tiles = [Image.new("RGB", (4, 3), (10 * number, 0, 0)) for number in range(5)]
    sheet = np.asarray(arrange(tiles, 2, gap=1)).astype(int)
    assert sheet.shape == (3 * 4 + 1, 2 * 5 + 1, 3)
    expected = np.full_like(sheet, 255)
    for number, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]):
        expected[1 + 4 * row : 4 + 4 * row, 1 + 5 * column : 5 + 5 * column] = (10 * number, 0, 0)
    assert np.array_equal(sheet, expected)


@pytest.mark.parametrize("side", [4, 8, 16])
def test_a_picture_is_enlarged_by_its_pixels_and_reduced_by_their_means(side: int) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    image = torch.from_numpy(levels / 127.5 - 1).permute(2, 0, 1)
    shown = np.asarray(tile(image, "", side)).astype(int)
    assert shown.shape == (side + 56, side, 3)
    grown = levels.repeat(2, 0).repeat(2, 1)
    expected = {4: levels.reshape(4, 2, 4, 2, 3).mean((1, 3)), 8: levels, 16: grown}[side]
    assert np.abs(shown[:side] - expected).max() <= 1
    assert (shown[side:] == 255).all()
    words = np.asarray(tile(image, "words " * 90, side)).astype(int)
    assert np.array_equal(words[:side], shown[:side])
    assert (words[side:] < 100).any(), "text is black on white, below the picture"


def test_the_options_say_which_samples_are_shown(tmp_path) -> None:
    words = ["--count", "3", "--columns", "2", "--side", "64", "--seed", "5", "--split", "heldout"]
    main(["--out", str(tmp_path / "new" / "sheet.png"), *words])
    data = ShapesDataset(256, 5, "heldout")
    expected = arrange([tile(data[n].image, data[n].caption, 64) for n in range(3)], 2)
    assert Image.open(tmp_path / "new" / "sheet.png").tobytes() == expected.tobytes()


def test_by_default_twenty_stand_in_four_rows_of_five(tmp_path) -> None:
    main(["--out", str(tmp_path / "sheet.png")])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * 224 + 8, 5 * 168 + 8, 3)
    data = ShapesDataset(256)
    assert np.array_equal(sheet[-224:-8, -168:-8], np.asarray(tile(data[19].image, data[19].caption, 160)))


def test_stages_show_the_first_patterned_samples_at_three_resolutions(tmp_path) -> None:
    data = ShapesDataset(64, 2)
    patterned = [n for n in range(60) if any(thing.pattern for thing in data.scene(n)[0].things)][:2]
    assert patterned != [0, 1], "some are passed over"
    views = [
        ("64 px: ", data),
        ("256 px: ", ShapesDataset(256, 2)),
        ("256 of 1024 px: ", ShapesDataset(1024, 2, crop=256, lowres_size=256)),
    ]
    expected = [tile(view[n].image, name + view[n].caption, 32) for n in patterned for name, view in views]
    assert [one.tobytes() for one in draw(2, 2, "train", 32, True)] == [one.tobytes() for one in expected]
    main(["--out", str(tmp_path / "sheet.png"), "--count", "2", "--side", "32", "--seed", "2", "--stages"])
    assert Image.open(tmp_path / "sheet.png").tobytes() == arrange(expected, 3).tobytes()
