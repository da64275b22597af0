"""Best of several: who is picked, what of the gap is closed, and the command on a tiny cascade."""

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

from imagen.evaluation import rerank
from imagen.evaluation.__main__ import main
from imagen.evaluation.alignment import judge_all, truth_pictures
from imagen.evaluation.rerank import closed, compare, expected, picks
from imagen.evaluation.suites import suite
from imagen.scores.encoders import clip_score
from tests.evaluation.coloured import Lettered
from tests.factories import save_clip, save_siglip, tiny_pipeline

SCORES = np.array([[10.0, 30, 20], [5, 1, 4], [0, 0, 7], [1, 2, 3]])
RIGHT = np.array([[True, False, False], [False, True, True], [False, False, False], [True, True, True]])


def test_who_is_picked() -> None:
    found = {way: rows.tolist() for way, rows in picks(SCORES, RIGHT).items()}
    assert found == {"random": [0, 0, 0, 0], "clip": [1, 0, 2, 2], "best": [0, 2, 2, 2]}
    assert picks(np.array([[100.0, 0.0]]), np.array([[False, True]]))["best"].tolist() == [1]
    assert expected(RIGHT) == 0.5


@pytest.mark.parametrize(("random", "clip", "best", "gap"), [
    (2, 3, 6, 0.25), (1, 1, 3, 0.0), (3, 2, 4, -1.0), (0, 4, 4, 1.0),
])  # fmt: skip
def test_the_share_of_the_gap(random: int, clip: int, best: int, gap: float) -> None:
    ways = {"random": random, "clip": clip, "best": best}
    assert closed({way: [True] * count + [False] * (6 - count) for way, count in ways.items()}) == gap


def test_without_a_gap_there_is_no_share() -> None:
    assert math.isnan(closed({way: [True, False] for way in ("random", "clip", "best")}))


def test_the_table_holds_known_shares() -> None:
    prompts = suite("train", 4)
    truth = truth_pictures(prompts, 64)
    wrong = [*truth[1:], truth[0]]
    judged = {
        "random": judge_all(prompts, wrong), "clip": judge_all(prompts, [*truth[:2], *wrong[2:]]),
        "best": judge_all(prompts, truth),
    }  # fmt: skip
    told = compare(judged)
    assert "share of the gap that is closed: 0.50" in told
    assert "none of them gains anything" in compare(dict.fromkeys(judged, judged["best"]))
    for way, count, points in (("random", "0/4", "+0.0 "), ("clip", "2/4", "+50.0 "), ("best", "4/4", "+100.0 ")):
        line = next(line for line in told.splitlines() if line.startswith(way) and "/" in line)
        assert count in line
        assert points in line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    root = tmp_path_factory.mktemp("models")
    tiny_pipeline(max_length=99).save_pretrained(root / "cascade")
    save_clip(root / "clip")
    save_siglip(root / "siglip")
    return lambda name: str(root / name)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was judged, prompts and pictures; as pictures of 64 px, for the detector knows no smaller ones."""
    found: list[Any] = []

    def judge(prompts: Any, made: Any) -> Any:
        found.append((prompts, made))
        return judge_all(prompts, [picture.resize((64, 64)) for picture in made])

    monkeypatch.setattr(rerank, "judge_all", judge)
    return found


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_command_end_to_end(kind: str, models: Callable[[str], str], tmp_path: Path, seen: list[Any]) -> None:
    words = ["rerank", "--model", models("cascade"), "--clip", models(kind), "--num", "4", "--best-of", "3"]
    words += ["--seed", "5", "--steps", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    result = json.loads((tmp_path / "rerank.json").read_text())
    assert result["results"].keys() == {"16"}
    assert (len(seen), len(seen[0][1])) == (1, 12)
    found = result["results"]["16"]
    assert {way: found[way]["shares"]["overall"]["trials"] for way in ("random", "clip", "best")} == {
        "random": 4, "clip": 4, "best": 4
    }  # fmt: skip
    gap = sum(found["best"]["right"]) - sum(found["random"]["right"])
    assert gap or found["closed"] is None
    assert (result["clip"], 0 <= result["random_expected"] <= 1) == (kind, True)
    assert Image.open(tmp_path / "sheet_16.png").width > 500
    before = (tmp_path / "samples" / "samples-00000.tar").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "samples" / "samples-00000.tar").stat().st_mtime_ns == before, "what was sampled is kept"


def test_the_chosen_go_on_to_the_next_stage_from_their_seeds(
    models: Callable[[str], str], tmp_path: Path, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerank, "load_clip", lambda args: Lettered())
    words = ["rerank", "--model", models("cascade"), "--clip", "lettered", "--num", "3", "--best-of", "2"]
    words += ["--seed", "9", "--size", "32", "--device", "cpu", "--batch-size", "1", "--out", str(tmp_path)]
    assert main(words) == 0
    (_, base), (again, large) = seen
    encoder, texts = Lettered(), [prompt.text for prompt in suite("heldout", 3, 9)]
    told = [text for text in texts for _ in range(2)]
    scores = clip_score(encoder.images(base), encoder.texts(told)).reshape(3, 2)
    chosen = scores.argmax(dim=1).tolist()
    assert {*chosen} == {0, 1}
    seeds = {prompt.seed for prompt in again}
    assert {9, 11, 13} | {9 + 2 * place + one for place, one in enumerate(chosen)} == seeds
    assert len(again) == len(seeds), "none is made twice"
    pipe = tiny_pipeline(max_length=99)
    for prompt, picture in zip(again, large, strict=True):
        assert prompt.text == texts[(prompt.seed - 9) // 2]
        alone = pipe(prompt.text, generator=torch.Generator().manual_seed(prompt.seed), size=32).images[0]
        assert alone.tobytes() == picture.tobytes()


def test_what_cannot_be_is_one_line(
    models: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rerank", "--model", models("cascade"), "--clip", models("clip"), "--out", str(tmp_path), "--num", "1"]
    for more, told in (
        (["--best-of", "1"], "--best-of is 1; expected two at least"), (["--size", "0"], "0"),
        (["--clip", str(tmp_path / "lost")], "lost' is no encoder"), (["--batch-size", "0"], "--batch-size is 0"),
    ):  # fmt: skip
        assert main([*words, *more]) == 2
        assert told in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "samples").exists()
