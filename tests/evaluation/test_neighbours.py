"""The nearest training picture: a planted copy is found, whatever the order, and shown beside the picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen.evaluation.__main__ import main
from imagen.scores.features import load_features
from tests.factories import save_clip, save_siglip


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))


def write(folder: Path, seeds: list[int]) -> Path:
    folder.mkdir()
    for place, seed in enumerate(seeds):
        noise(seed).save(folder / f"{place:02d}.png")
    return folder


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_a_planted_copy_is_found(save: Callable[[Path], Path], tmp_path: Path) -> None:
    own, training = write(tmp_path / "own", [0, 1, 2, 3]), write(tmp_path / "train", [9, 8, 2, 7, 0, 6])
    (training / "03.png").write_bytes(b"no picture")
    words = ["scores", str(own), "--train", str(training), "--features", str(save(tmp_path / "drawn"))]
    assert main([*words, "--device", "cpu", "--batch-size", "3", "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "scores.json").read_text())["columns"][str(own)]
    assert told["scores"] == {}
    found = {key: (name, distance) for key, name, distance in told["nearest"]["pictures"]}
    network = load_features(tmp_path / "drawn")
    mine, theirs = (network.features([noise(seed) for seed in seeds]) for seeds in ([0, 1, 2, 3], [9, 8, 2, 0, 6]))
    distances = np.linalg.norm(mine[:, None] - theirs[None], axis=2)
    names = ["00.png", "01.png", "02.png", "04.png", "05.png"]
    assert [found[f"{n:02d}.png"][0] for n in range(4)] == [names[n] for n in distances.argmin(axis=1)]
    assert [found[key][0] for key in ("00.png", "02.png")] == ["04.png", "02.png"], (
        "a picture that is none is not counted"
    )
    assert max(found[key][1] for key in ("00.png", "02.png")) < 1e-5 * distances.max()
    assert found["01.png"][1] == pytest.approx(distances[1].min(), rel=1e-4)
    quantiles = told["nearest"]["quantiles"]
    assert quantiles["0.5"] == pytest.approx(np.median([distance for _, distance in found.values()]))
    assert (told["nearest"]["network"], quantiles["0"] < 1e-5) == ("drawn", True)


def test_the_sheet_shows_each_beside_its_neighbour_the_closest_first(tmp_path: Path) -> None:
    """More pairs than stand in a row, and no whole number of rows."""
    seeds = list(range(20, 27))
    own, training = write(tmp_path / "own", seeds), write(tmp_path / "train", [*seeds[:0:-1], 99])
    words = ["scores", str(own), "--train", str(training), "--features", str(save_clip(tmp_path / "drawn"))]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path)]) == 0
    sheet = np.asarray(Image.open(tmp_path / "nearest_1.png").convert("RGB")).astype(int)
    wide = sheet.shape[1] // 10
    high = sheet.shape[0] // 2
    tiles = [
        sheet[row * high + 7 : row * high + 167, column * wide + 7 :][:, :160] for row in (0, 1) for column in range(10)
    ]
    for pair in range(6):  # of the copies
        assert np.array_equal(tiles[2 * pair], tiles[2 * pair + 1])
    assert not np.array_equal(tiles[12], tiles[13]), "the farthest is the last"
    assert np.ptp(tiles[14]) == 0


def test_the_first_pictures_alone_are_looked_for_among_all(tmp_path: Path) -> None:
    own, training = write(tmp_path / "own", [5, 6]), write(tmp_path / "train", [7, 5])
    words = [
        "scores",
        str(own),
        "--train",
        str(training),
        "--features",
        str(save_clip(tmp_path / "drawn")),
        "--num",
        "1",
    ]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "scores.json").read_text())["columns"][str(own)]
    assert [(key, name) for key, name, _ in told["nearest"]["pictures"]] == [("00.png", "01.png")]
