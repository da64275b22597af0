"""Pairs of pictures in order: numbers by hand, masks, ranges, and pictures that are equal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.evaluation.__main__ import main
from imagen.scores.lpips import Lpips, alexnet
from imagen.scores.pairs import ssim


def arrays(folder: Path, values: list[np.ndarray[Any, Any]], first: int = 0) -> Path:
    """Fields (C, H, W) as files (H, W, C)."""
    folder.mkdir()
    for number, one in enumerate(values, first):
        np.save(folder / f"{number}.npy", np.moveaxis(one, 0, -1))
    return folder


def strict(text: str) -> Any:
    """JSON as the standard has it."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """run(set, other, options...) -> the column of the set, or of a refusal its line."""

    def call(own: object, other: object, *words: object) -> Any:
        given = [str(word) for word in ("scores", own, "--against", other, "--out", tmp_path / "out", *words)]
        if code := main(given):
            assert code == 2
            return capsys.readouterr().err.strip().splitlines()[-1]
        return strict((tmp_path / "out" / "scores.json").read_text())["columns"][str(own)]

    return call


@pytest.fixture
def fields() -> tuple[list[Any], list[Any]]:
    """Three pairs of five channels, in kelvin."""
    rng = np.random.default_rng(0)
    truth = [rng.normal(280, 4, (5, 12, 9)) for _ in range(3)]
    return [one + rng.normal(0, 1, one.shape) for one in truth], truth


METRICS = ("--metrics", "psnr", "ssim", "mae")


def test_numbers_of_many_channels_in_their_unit(
    fields: tuple[list[Any], list[Any]], run: Callable[..., Any], tmp_path: Path
) -> None:
    own, truth = fields
    found = run(arrays(tmp_path / "own", own), arrays(tmp_path / "truth", truth, 5), *METRICS, "--data-range", 50)
    assert (found["count"], found["pairs"]["keys"]) == (3, ["0.npy", "1.npy", "2.npy"])
    expected = {
        "psnr": [10 * math.log10(50**2 / ((x - y) ** 2).mean()) for x, y in zip(own, truth, strict=True)],
        "mae": [np.abs(x - y).mean() for x, y in zip(own, truth, strict=True)],
        "ssim": [ssim(x, y, 50) for x, y in zip(own, truth, strict=True)],
    }
    for metric, values in expected.items():
        assert found["pairs"][metric] == pytest.approx(values, rel=1e-9)
        estimate = found["scores"][metric]
        assert estimate["value"] == pytest.approx(np.mean(values), rel=1e-9)
        assert estimate["interval"][0] < estimate["value"] < estimate["interval"][1]


def test_only_what_is_above_0_in_a_mask_counts(
    fields: tuple[list[Any], list[Any]], run: Callable[..., Any], tmp_path: Path
) -> None:
    own, truth = fields
    inside = [np.random.default_rng(n).random((12, 9)) < 0.7 for n in range(3)]
    masks = tmp_path / "masks"
    masks.mkdir()
    for number, one in enumerate(inside):
        Image.fromarray(np.where(one, 255, 0).astype(np.uint8)).save(masks / f"{number}.png")
    spoiled = [np.where(one, x, 1e6) for one, x in zip(inside, own, strict=True)]
    missing = [np.where(inside[0], truth[0], np.nan), *truth[1:]]
    sets = arrays(tmp_path / "own", spoiled), arrays(tmp_path / "truth", missing)
    found = run(*sets, *METRICS, "--data-range", 50, "--masks", masks)
    expected = [np.abs(x - y)[:, one].mean() for x, y, one in zip(own, truth, inside, strict=True)]
    assert found["pairs"]["mae"] == pytest.approx(expected, rel=1e-9)
    line = run(*sets, *METRICS, "--data-range", 50)
    assert "pair 0: pictures hold values that are not finite; leave their pixels out by a mask" in line


def test_values_beyond_the_range_are_refused_and_an_offset_is_no_range(run: Callable[..., Any], tmp_path: Path) -> None:
    low, high = np.full((2, 3, 3), 300.0), np.full((2, 3, 3), 300.0)
    high[1] += 40
    low[0], high[0] = 1000, 1010  # channels of other units
    own, truth = arrays(tmp_path / "own", [low]), arrays(tmp_path / "truth", [high])
    assert run(own, truth, *METRICS, "--data-range", 40)["pairs"]["mae"] == [25.0]
    line = run(own, truth, *METRICS, "--data-range", 39)
    assert "0.npy: values are 40 apart, more than --data-range 39" in line
    assert "data_range is 0.0" in run(own, truth, *METRICS, "--data-range", 0)


def test_equal_pictures_are_infinitely_like_and_that_is_written_as_json(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "0.png")
        picture.save(tmp_path / name / "1.png")
    found = run(tmp_path / "a", tmp_path / "b", *METRICS)
    assert found["scores"]["psnr"] == "inf"
    assert found["pairs"]["psnr"] == ["inf", "inf"]
    assert float("inf") == float(found["scores"]["psnr"])
    assert found["scores"]["mae"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert found["scores"]["ssim"]["value"] == pytest.approx(1.0)


def test_sets_keep_step_or_are_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    one, two = arrays(tmp_path / "one", [np.ones((1, 4, 4))]), arrays(tmp_path / "two", [np.ones((1, 4, 4))] * 2)
    for sets in ((one, two), (two, one)):
        assert "hold other numbers of pictures: pairs need as many of each" in run(*sets, *METRICS)
    assert run(two, two, *METRICS, "--num", 1)["count"] == 1
    (one / "1.npy").write_bytes(b"nothing")
    assert "1.npy is no picture" in run(one, two, *METRICS), "why they are not as many"
    assert "1.npy is no picture" in run(one, arrays(tmp_path / "three", [np.ones((1, 4, 4))]), *METRICS)
    other = arrays(tmp_path / "other", [np.ones((1, 4, 5))])
    assert "pair 0: pictures are" in run(other, tmp_path / "three", *METRICS)


def test_lpips_of_drawn_weights(run: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = {f"features.{key}": value for key, value in alexnet().state_dict().items()}
    torch.save(weights, tmp_path / "alex.pth")
    rng, shown = np.random.default_rng(0), {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shown[name] = [rng.integers(0, 256, (40, 33, 3), np.uint8) for _ in range(2)]
        for number, pixels in enumerate(shown[name]):
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    found = run(
        tmp_path / "a", tmp_path / "b", "--metrics", "lpips", "--lpips", tmp_path / "alex.pth", "--device", "cpu"
    )
    x, y = (torch.from_numpy(np.stack(shown[name])).permute(0, 3, 1, 2).float() / 127.5 - 1 for name in ("a", "b"))
    assert found["pairs"]["lpips"] == pytest.approx(Lpips(tmp_path / "alex.pth")(x, y).tolist(), rel=1e-4)
    assert found["scores"].keys() == {"lpips"}
    every = run(tmp_path / "a", tmp_path / "b", "--lpips", tmp_path / "alex.pth", "--device", "cpu")
    assert list(every["scores"]) == ["psnr", "ssim", "mae", "lpips"]
    same = run(tmp_path / "a", tmp_path / "a", "--metrics", "lpips", "--lpips", tmp_path / "alex.pth")
    assert same["pairs"]["lpips"] == [0.0, 0.0]
