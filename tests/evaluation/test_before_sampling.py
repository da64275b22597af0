"""What an evaluation would refuse or lack is told before it samples, and results are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from imagen import ImagenPipeline
from imagen.evaluation import curves
from imagen.evaluation.__main__ import main
from imagen.evaluation.curves import plot_metrics
from imagen.evaluation.report import Tile, save_sheet
from tests.factories import tiny_pipeline
from tests.test_full_disk import contents, full_disk


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(max_length=128).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImagenPipeline, "__call__", lambda *_, **__: pytest.fail("it sampled"))


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(("words", "told"), [
    ("alignment --size 63", "size=63: this model makes 16, 32, 64 px"),
    ("alignment --size 64 --steps 1 1001", "num_inference_steps has 2 values"),
    ("sweep --size 64 --steps 1 1001", "num_inference_steps is 1001; expected an integer from 1 to 1000"),
    ("sweep --size 64 --guidance 1 -1", "guidance_scale is -1.0"),
    ("guidances --methods cfg auto", "guidance 'auto' needs a weaker network"),
    ("guidances --guidance 1 -2", "guidance_scale is -2.0"),
    ("superres --aug-level 0.1 2", "aug_level is 2.0"),
    ("superres --batch-size 0", "--batch-size is 0"),
])  # fmt: skip
def test_no_picture_is_made_for_a_call_that_is_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    command, *rest = words.split()
    assert main([command, "--model", model, "--num", "1", *rest, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"imagen.evaluation {command}: error: ")  # behind the bars of the libraries that load
    assert told in said[-1]


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("words", [["sweep", "--model", "m"], ["curves", "--metrics", "m.jsonl"]])
def test_without_matplotlib_nothing_is_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "pip install -c constraints.txt -e '.[eval]'" in capsys.readouterr().err


def test_a_full_disk_leaves_the_sheets_and_plots_that_were_there(tmp_path: Path) -> None:
    sheet, plot, curves = tmp_path / "sheet.png", tmp_path / "plot.png", {"a": ([1.0, 2.0], [1.0, 2.0])}
    tiles = [Tile(Image.effect_noise((64, 64), 90), "a star")]
    save_sheet(sheet, tiles)
    plot_metrics(curves, "loss", 1, plot)
    before = contents(tmp_path)
    with full_disk():
        with pytest.raises(OSError, match="too large"):
            save_sheet(sheet, tiles)
        with pytest.raises(OSError, match="too large"):
            plot_metrics(curves, "loss", 1, plot)
    assert contents(tmp_path) == before
