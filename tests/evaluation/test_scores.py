"""The command scores, end to end on drawn networks: what it writes equals what its parts say, or it is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.evaluation.__main__ import main
from imagen.evaluation.sampling import finished, prompts_and_seeds
from imagen.evaluation.suites import suite
from imagen.scores.encoders import DualEncoder, clip_score
from imagen.scores.features import load_features
from imagen.scores.frechet import Moments, frechet_distance
from tests.factories import save_clip, save_siglip, tiny_pipeline


def write(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(0, 200 + seed, (18, 16, 3), np.uint8)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a {('red', 'blue')[number % 2]} circle")
    return folder


def pictures(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of pictures, two encoders, a cascade."""
    root = tmp_path_factory.mktemp("scores")
    write(root / "own", 16, 1)
    write(root / "truth", 30, 50)
    save_clip(root / "net")
    save_siglip(root / "siglip")
    tiny_pipeline(max_length=99).save_pretrained(root / "model")
    return root


@pytest.fixture
def run(at: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """run("own", "--against", "truth", ...) in the folder of the sets -> the columns, or of a refusal its line."""

    def call(*words: object) -> Any:
        given = [str(at / str(word)) if (at / str(word)).exists() else str(word) for word in words]
        if code := main(["scores", *given, "--device", "cpu", "--resamples", "20", "--out", str(tmp_path / "out")]):
            assert code == 2
            return capsys.readouterr().err.strip().splitlines()[-1]
        text = (tmp_path / "out" / "scores.json").read_text()
        columns = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["columns"]
        return {Path(name).name: column for name, column in columns.items()}

    return call


@pytest.mark.parametrize("kind", ["net", "siglip"])
def test_scores_by_a_clip(kind: str, at: Path, run: Callable[..., Any]) -> None:
    found = run("own", "--against", "truth", "--clip", kind, "--k", 2, "--batch-size", 5)
    assert {name: one["count"] for name, one in found.items()} == {"own": 16, "truth beside truth": 15}
    network, encoder = load_features(at / kind), DualEncoder.load(at / kind)
    x, y = (network.features(pictures(at / name)) for name in ("own", "truth"))
    scores = found["own"]["scores"]
    assert scores.keys() == {f"{one}[{kind}]" for one in ("fd", "kd", "precision", "recall", "density", "coverage")} | {
        "clip"
    }
    assert scores[f"fd[{kind}]"]["value"] == pytest.approx(frechet_distance(Moments.of(x), Moments.of(y)), rel=1e-4)
    texts = [f"a {('red', 'blue')[number % 2]} circle" for number in range(16)]
    expected = clip_score(encoder.images(pictures(at / "own")), encoder.texts(texts)).mean().item()
    assert scores["clip"]["value"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert "clip" not in found["truth beside truth"]["scores"]
    assert "seeds" not in found["own"]


def test_several_networks_and_sets(run: Callable[..., Any]) -> None:
    found = run("own", "truth", "--against", "truth", "--features", "net", "siglip", "--metrics", "fd", "--num", 8)
    assert {name: one["count"] for name, one in found.items()} == {"own": 8, "truth": 8, "truth beside truth": 4}
    assert found["own"]["scores"].keys() == {"fd[net]", "fd[siglip]"}
    assert found["truth"]["scores"]["fd[net]"]["value"] == pytest.approx(0, abs=1e-6)


def test_kept_statistics_give_the_same_numbers_and_to_their_network_alone(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    file, rest = tmp_path / "truth.safetensors", ("--metrics", "fd", "kd", "manifold", "--k", 2)
    first = run("own", "--against", "truth", "--features", "net", *rest, "--keep-statistics", file)
    again = run("own", "--against", file, "--features", "net", *rest)
    assert first == again
    assert "were made with 'net'" in run("own", "--against", file, "--features", "siglip", *rest)
    for words, told in (
        (("--features", "net", "siglip"), "holds the statistics of one network, and there are 2"),
        (("--features", "net", "--keep-statistics", "x.safetensors"), "keeps those of --against: give pictures there"),
        (("--features", "net", "--metrics", "psnr"), "--metrics psnr needs --against, as pictures"),
    ):
        assert told in run("own", "--against", file, *words)


def test_statistics_are_kept_of_one_network(run: Callable[..., Any], tmp_path: Path) -> None:
    words = ("own", "--against", "truth", "--metrics", "mae", "--keep-statistics", tmp_path / "kept.safetensors")
    assert run(*words, "--features", "net", "--num", 4)["own"]["scores"].keys() == {"mae"}
    assert (tmp_path / "kept.safetensors").is_file()
    assert "those of one network, and there are 2" in run(*words, "--features", "net", "siglip")


def test_a_model_is_sampled_and_scored_over_seeds(at: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    words = ("--model", "model", "--prompts", "heldout:4", "--per-prompt", 3, "--size", 16, "--seed", 5)
    found = run(*words, "--against", "truth", "--clip", "net", "--metrics", "fd", "clip", "--steps", 1)
    assert not isinstance(found, str), found
    column = found["samples"]
    assert (column["count"], column["seeds"]) == (12, 3)
    _, paths = finished(tmp_path / "out" / "samples")
    wanted = list(prompts_and_seeds(paths))
    assert [one.seed for one in wanted] == list(range(5, 17))
    assert [one.text for one in wanted[::3]] == [prompt.text for prompt in suite("heldout", 4)]
    assert column["over_seeds"].keys() == {"fd[net]", "clip"}
    means = [column[kind]["clip"]["value"] for kind in ("scores", "over_seeds")]
    assert means[0] == pytest.approx(means[1])
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert run(*words, "--clip", "net", "--steps", 1)["samples"]["scores"]["clip"] == column["scores"]["clip"]
    assert {path: path.stat().st_mtime_ns for path in paths} == before


def test_what_is_wrong_is_told_before_anything_is_sampled(run: Callable[..., Any], tmp_path: Path) -> None:
    words = ("--model", "model", "--prompts", "heldout:4", "--size", 16)
    for more in (("--clip", tmp_path / "none"), ("--clip", "net", "--against", "nothing", "--metrics", "fd")):
        assert isinstance(run(*words, *more), str)
    assert not (tmp_path / "out" / "samples").exists()


@pytest.mark.parametrize(("words", "told"), [
    ([], "there are no pictures to judge"), (["own"], "nothing is measured"),
    (["--model", "model", "--clip", "net"], "--model and --prompts go together"),
    (["own", "--prompts", "heldout:2", "--clip", "net"], "--model and --prompts go together"),
    (["own", "--clip", "net", "--per-prompt", "2"], "nothing to sample"),
    (["own", "--clip", "net", "--guidance", "2"], "nothing to sample"),
    (["own", "--clip", "net", "--seed", "2"], "nothing to sample"),
    (["own", "--metrics", "fd"], "--metrics fd needs --against and --features"),
    (["own", "--metrics", "clip", "--features", "net"], "--metrics clip needs --clip"),
    (["own", "--metrics", "psnr"], "--metrics psnr needs --against, as pictures"),
    (["own", "--metrics", "lpips", "--against", "truth"], "--metrics lpips needs --against and --lpips"),
    (["own", "--metrics", "psnr", "--against", "truth", "--lpips", "x"], "--lpips 'x' is read by --metrics lpips"),
    (["own", "--metrics", "clip", "--clip", "net", "--masks", "x"], "--masks 'x' is read by --metrics psnr"),
    (["own", "--metrics", "psnr", "--against", "truth", "--clip", "net"], "--clip .* is read by --metrics clip"),
    (["own", "--metrics", "clip", "--clip", "net", "--features", "net"], "--features .* is read by --metrics fd"),
    (["own", "--metrics", "clip", "--clip", "net", "--against", "truth"], "--against .* is read by metrics beside"),
    (["own", "--metrics", "clip", "--clip", "net", "--resize", "tf1"], "--resize 'tf1' is read by"),
    (["own", "--against", "truth", "--features", "net", "--resize", "tf1"], "--features names none: leave it out"),
    (["own", "--keep-statistics", "x", "--features", "net"], "keeps those of --against: give pictures there"),
    (["own", "--train", "truth"], "need a feature network: give --features"),
    (["own", "--against", "truth", "--features", "net", "net"], "two networks called 'net'"),
    (["own", "--clip", "net", "--num", "0"], "--num is 0"), (["own", "--clip", "net", "--k", "0"], "--k is 0"),
    (["own", "--clip", "net", "--batch-size", "0"], "--batch-size is 0"),
    (["own", "--against", "truth", "--features", "net", "--num", "1"], "x has 1 rows; expected at least"),
])  # fmt: skip
def test_options_that_do_not_go_together_are_one_line(words: list[str], told: str, run: Callable[..., Any]) -> None:
    line = run(*words)
    assert isinstance(line, str)
    with pytest.raises(ValueError, match=told):
        raise ValueError(line)


def test_scores_of_drawn_truth(run: Callable[..., Any]) -> None:
    words = ("--against", "shapes:heldout:12", "--features", "net", "--metrics", "fd", "--size", 16)
    found = run("shapes:heldout:12", "shapes:train:12", *words)
    assert found["shapes:heldout:12"]["scores"]["fd[net]"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["shapes:train:12"]["scores"]["fd[net]"]["value"] > 1e-3
    assert "are drawn, at any size" in run("shapes:heldout:12", *words[:-2])
