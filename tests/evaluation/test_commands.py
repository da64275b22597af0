"""The commands on a tiny random cascade and on upscalers that are known to be right or wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagen.evaluation import alignment, superres
from imagen.evaluation.__main__ import main
from imagen.evaluation.alignment import detector_controls, judge_all, others_share, shares, truth_pictures
from imagen.evaluation.curves import read_metrics, smoothed
from imagen.evaluation.generate import sample
from imagen.evaluation.report import Tile, provenance, save_sheet, table
from imagen.evaluation.suites import Prompt, suite
from tests.evaluation.painting import Perfect
from tests.factories import tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tiny_pipeline(max_length=128).save_pretrained(folder)
    return str(folder)


def test_a_perfect_model_is_all_right_and_the_controls_hold() -> None:
    prompts = suite("heldout", 16)
    pipe = Perfect(prompts)
    pictures = sample(pipe, prompts, 256, {"guidance_scale": 2.0}, batch_size=7)[256]  # type: ignore[arg-type]
    assert [call["generator"][0].initial_seed() for call in pipe.calls] == [0, 7, 14]
    assert pipe.calls[0]["guidance_scale"] == 2.0
    judged = judge_all(prompts, pictures)
    assert {name: share.value for name, share in shares(judged).items()} == dict.fromkeys(
        ("single", "relation", "counting", "background", "overall"), 1.0
    )
    controls = detector_controls(prompts, judged, 256)
    assert alignment.controls_hold(controls) == dict.fromkeys(controls, True)


def test_pictures_of_the_wrong_prompts_are_all_wrong() -> None:
    prompts = suite("heldout", 24)
    judged = judge_all(prompts, truth_pictures([*prompts[1:], prompts[0]], 64))
    assert shares(judged)["overall"].value <= 0.05
    assert others_share(prompts, judge_all(prompts, truth_pictures(prompts, 64))).value <= 0.05


def test_controls_that_do_not_hold_are_told() -> None:
    share = alignment.Share
    controls = {"rendered truth": share(98, 100), "samples, other prompts": share(6, 100)}
    controls |= {"relations, shuffled words": share(21, 100), "nothing": share(0, 0)}
    assert alignment.controls_hold(controls) == dict.fromkeys(list(controls)[:3], False)
    assert alignment.control_table(controls).count("FAILS") == 3


def test_alignment_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["alignment", "--model", model, "--size", "64", "--num", "8", "--batch-size", "4", "--shuffle-words"]
    words += ["--steps", "1", "--guidance", "1.5", "--train-step", "100", "--device", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for word in ("single", "relation", "counting", "background", "overall", "rendered truth", "shuffled words"):
        assert word in printed
    result = json.loads((tmp_path / "alignment.json").read_text())
    assert result["command"].startswith("python -m imagen.evaluation alignment --model")
    assert {"commit", "versions", "hardware", "settings"} <= set(result)
    assert result["settings"]["options"]["guidance"] == [1.5]
    pictures = result["results"]["64"]["pictures"]
    assert [entry["seed"] for entry in pictures] == list(range(8))
    assert result["controls"]["rendered truth"]["share"] == 1.0
    assert Image.open(tmp_path / "sheet_64.png").width > 500
    assert (
        main(["curves", "--alignment", str(tmp_path / "alignment.json"), "--size", "64", "--out", str(tmp_path)]) == 0
    )
    assert (tmp_path / "alignment.png").stat().st_size > 5000


def test_sweep_command(model: str, tmp_path: Path) -> None:
    words = ["sweep", "--model", model, "--size", "64", "--stage", "16", "--num", "4", "--steps", "1", "2"]
    assert main([*words, "--guidance", "1", "3", "--device", "cpu", "--out", str(tmp_path)]) == 0
    cells = json.loads((tmp_path / "sweep.json").read_text())["cells"]
    assert [(cell["steps"], cell["guidance"]) for cell in cells] == [(1, 1.0), (1, 3.0), (2, 1.0), (2, 3.0)]
    assert (tmp_path / "sweep.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["alignment", "--num", "0"], "num is 0"),
        (["alignment", "--size", "48"], "size=48"),
        (["alignment", "--size", "64", "--num-1024", "-1"], "--num-1024 is -1"),
        (["alignment", "--size", "64", "--num", "4", "--batch-size", "0"], "--batch-size is 0"),
        (["alignment", "--device", "nowhere"], "nowhere"),
        (["sweep", "--size", "64", "--stage", "7"], "--stage is 7"),
        (["superres", "--num", "0"], "--num is 0"),
    ],
)
def test_wrong_input_is_one_line(model: str, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([words[0], "--model", model, *words[1:]]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"imagen.evaluation {words[0]}: error: ")
    assert says in error
    assert main(["alignment", "--model", "no/such/folder"]) == 2


def oracle(prompts: Sequence[Prompt], images: Sequence[Image.Image], size: int) -> list[Image.Image]:
    return truth_pictures(prompts, size)


def check_with(upscale: superres.Upscaler, low: int = 64, size: int = 256) -> dict[str, superres.Measure]:
    plain, patterned = superres.plain_prompts(8, 0), superres.patterned_prompts(6, 0)
    measures, columns = superres.check_stage(low, size, upscale, plain, patterned)
    assert {len(pictures) for pictures in columns.values()} == {14}
    return {measure.name: measure for measure in measures}


def test_superres_passes_the_truth_and_fails_bicubic() -> None:
    right = check_with(oracle)
    assert len(right) == 6
    assert all(measure.passes for measure in right.values())
    enlarged = check_with(superres.bicubic)
    failing = {name for name, measure in enlarged.items() if not measure.passes}
    assert failing >= {
        "gain over bicubic, plain, dB",
        "pattern follows the caption",
        "swapping the word swaps the pattern",
    }
    assert enlarged["gain over bicubic, plain, dB"].value == pytest.approx(0.0)


def test_superres_catches_a_color_shift_and_a_fixed_pattern() -> None:
    def tinted(prompts: Sequence[Prompt], images: Sequence[Image.Image], size: int) -> list[Image.Image]:
        shift = np.array([0, 5, 0])
        return [
            Image.fromarray((np.array(p) + shift).clip(0, 255).astype(np.uint8)) for p in oracle(prompts, images, size)
        ]

    def striped(prompts: Sequence[Prompt], images: Sequence[Image.Image], size: int) -> list[Image.Image]:
        fixed = [superres.with_pattern(p, p.facts.things[0].pattern and "striped") for p in prompts]
        return oracle(fixed, images, size)

    assert {n for n, m in check_with(tinted).items() if not m.passes} == {"mean colour shift, /255"}
    assert {n for n, m in check_with(striped).items() if not m.passes} == {
        "gain over bicubic, patterned, dB",
        "pattern follows the caption",
        "swapping the word swaps the pattern",
    }


def test_swapping_changes_the_pattern_alone_and_visits_all_three() -> None:
    prompts = superres.patterned_prompts(9, 0)
    assert {p.facts.things[0].pattern for p in prompts} == {"striped", "dotted", "checkered"}
    for prompt in prompts:
        other = superres.swapped(prompt)
        assert other.facts.things[0].pattern != prompt.facts.things[0].pattern
        assert superres.with_pattern(other, prompt.facts.things[0].pattern) == prompt
        assert prompt.facts.things[0].color != "black"


def test_superres_command(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["superres", "--model", model, "--num", "2", "--num-1024", "2", "--steps", "1", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "16 -> 32" in printed
    assert "text -> 32 -> 64" in printed
    assert "model: FAIL" in printed
    assert "bicubic enlargement fails, as it must" in printed
    result = json.loads((tmp_path / "superres.json").read_text())
    assert {"model", "bicubic", "commit", "hardware"} <= set(result)
    assert (tmp_path / "sheet_64.png").exists()
    kept = ["--aug-level", "0.3", "0", "--lowres-consistency", "1", "--out", str(tmp_path / "kept")]
    assert main([*words, *kept]) == 0
    held = json.loads((tmp_path / "kept" / "superres.json").read_text())
    assert held["settings"]["options"]["lowres_consistency"] == [1]
    for free, near in zip(result["model"], held["model"], strict=True):
        if free["name"] == "reduced output vs input, dB":
            assert near["value"] > free["value"] + 6


def test_psnr_and_color_shift_against_closed_forms() -> None:
    black, gray = (Image.new("RGB", (8, 8), (value,) * 3) for value in (0, 51))
    assert superres.psnr([superres.squared_error(black, gray)]) == pytest.approx(20 * np.log10(5))
    assert superres.psnr([superres.squared_error(gray, gray)]) == 99.0
    assert superres.gain("s", "n", [black], [black], [gray]).value == pytest.approx(0.0)
    near = Image.new("RGB", (8, 8), (50, 50, 50))  # off by 1 where bicubic is off by 51
    assert superres.gain("s", "n", [black], [near], [gray]).value == pytest.approx(20 * np.log10(51))
    picture = Image.new("RGB", (8, 8), (100, 100, 100))
    picture.paste((200, 100, 100), (4, 4, 6, 6))
    large = picture.resize((16, 16), Image.Resampling.NEAREST)
    assert superres.color_shift(picture, large) == 0.0
    large.paste((210, 100, 100), (8, 8, 12, 12))  # the object alone is off by 10; the picture's mean by 10/16
    assert superres.color_shift(picture, large) == pytest.approx(10.0)


def test_curves_read_metrics_and_draw_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "base64"
    run.mkdir()
    lines = [{"step": step, "loss": 1 / (step + 1), "lr": 1e-4} for step in range(20)] + [{"event": "sample"}]
    (run / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    ((steps, values),) = read_metrics(run / "metrics.jsonl", "loss").values()
    assert (steps[3], values[3]) == (3.0, 0.25)
    assert main(["curves", "--metrics", str(run / "metrics.jsonl"), "--window", "5", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert main(["curves", "--metrics", str(run / "metrics.jsonl"), "--key", "los"]) == 2
    assert "event, loss, lr, step" in capsys.readouterr().err
    assert main(["curves"]) == 2


def test_the_running_mean_looks_back() -> None:
    assert smoothed([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
    assert smoothed([2.0, 4.0], 10) == [2.0, 3.0]


def test_reports_say_how_they_were_made() -> None:
    said = provenance(["alignment", "--model", "a b"])
    assert said["command"] == "python -m imagen.evaluation alignment --model 'a b'"
    assert said["versions"]["torch"]
    assert said["hardware"]["cores"]
    assert table([("a", "bb"), ("ccc", "d")]).splitlines() == ["a    bb", "---  --", "ccc  d"]


def test_sheets_frame_verdicts(tmp_path: Path) -> None:
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    save_sheet(tmp_path / "new" / "sheet.png", [Tile(white, "yes", True), Tile(white, "no", False)], side=64)
    sheet = np.asarray(Image.open(tmp_path / "new" / "sheet.png"))
    left, right = sheet[10, 4].astype(int), sheet[10, sheet.shape[1] // 2 + 4].astype(int)
    assert left[1] > left[0] + 50
    assert right[0] > right[1] + 50
