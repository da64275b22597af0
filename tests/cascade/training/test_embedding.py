"""Training on texts that were encoded before: the run that their encoder would have given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagen.cli.train import main
from imagen.text.encoder import encode
from tests.factories import SENTENCES, WIDTH, tiny_text_encoder, tiny_tokenizer

SETTINGS = {
    "data.kind": "folder",
    "unet.text_dim": WIDTH,
    "text.max_length": 16,
    "train.steps": 4,
    "train.log_every": 1,
    "grid": {"every": 4, "prompts": [], "count": 3, "num_inference_steps": 2},
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures with captions, and each caption's encoding."""
    encoder, tokenizer = tiny_text_encoder(), tiny_tokenizer()
    encoder.save_pretrained(tmp_path / "t5" / "text_encoder")
    tokenizer.save_pretrained(tmp_path / "t5" / "tokenizer")
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(8):
        caption = SENTENCES[number]
        Image.new("RGB", (8, 8), (30 * number, 100, 50)).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text(caption)
        text, mask = encode(tokenizer, encoder, [caption], 16)
        with (root / f"{number}.t5").open("wb") as file:
            np.save(file, text[0, mask[0].bool()].numpy())
    return root


def test_the_run_is_that_of_the_encoder(pictures: Path, write_config: Any, read_metrics: Any, tmp_path: Path) -> None:
    validation = {"every": 2, "samples": 4, "levels": 2, "data": {"kind": "folder"}}
    losses, grids = [], []
    held_out = tmp_path / "held-out"
    held_out.symlink_to(pictures)
    for name, text in (("encoder", {"text.encoder": str(tmp_path / "t5")}), ("given", {"data.embedding": "t5"})):
        here = {**validation, "data": {"kind": "folder", "path": str(held_out)}}
        if name == "given":
            here["data"]["embedding"] = "t5"
        changes = {**SETTINGS, "data.path": str(pictures), "validation": here, **text}
        run = tmp_path / name
        assert main(["--config", str(write_config(run_dir=str(run), **changes))]) == 0
        losses.append([line["loss" if "loss" in line else "val_loss"] for line in read_metrics(run)])
        grids.append(np.asarray(Image.open(run / "samples" / "step-00000004.png"), dtype=int))
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)  # alone or beside longer ones, a text is rounded anew
    assert abs(grids[0] - grids[1]).max() <= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_where_none_fits_the_run_ends_in_one_line(
    pictures: Path, write_config: Any, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    changes = {"data.path": str(pictures), "data.embedding": "t5", "unet.text_dim": 8, "train.num_workers": workers}
    assert main(["--config", str(write_config(**{**SETTINGS, **changes}))]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: error: 100 pictures in a row cannot be used; the last is ")
    assert "expected (1 to 16 tokens, 8); mend the data" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text.encoder": "t5"}, "both say what the network reads: set one"),
        ({"text.unconditional": "empty"}, "is read as it is: leave text.padding"),
        ({"grid": {"every": 2, "prompts": ["a"]}}, "grid.prompts cannot be encoded"),
        ({"validation": {"every": 2, "data": {"kind": "shapes"}}}, "validation.data.embedding is missing"),
        ({"unet.text_dim": None}, "unet.text_dim is null: data.embedding 't5' needs its width there"),
        ({"data.kind": "shapes", "data.path": None}, "data.embedding 't5' is of kind folder"),
    ],
)
def test_what_does_not_fit_is_one_line(
    pictures: Path, write_config: Any, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    settings = {**SETTINGS, "data.path": str(pictures), "data.embedding": "t5", **changes}
    assert main(["--config", str(write_config(**settings))]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
