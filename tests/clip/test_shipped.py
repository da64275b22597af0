"""The shipped CLIP of the shapes world: what it is made of, and that it sees what its card says."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, CLIPModel, CLIPProcessor

from imagen.evaluation import shapes_zeroshot
from imagen.scores.encoders import DualEncoder
from tests.source import ROOT

FOLDER = ROOT / "pretrained" / "shapes-clip"


def test_it_is_small_and_transformers_read_it() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 6_000_000
    model = AutoModel.from_pretrained(FOLDER)
    assert type(model) is CLIPModel
    assert next(model.parameters()).dtype is torch.float32
    assert type(AutoProcessor.from_pretrained(FOLDER)) is CLIPProcessor
    assert AutoImageProcessor.from_pretrained(FOLDER, backend="pil").crop_size["height"] == 64
    assert len(AutoTokenizer.from_pretrained(FOLDER)) == model.config.text_config.vocab_size


def test_it_names_colour_and_shape_and_counts() -> None:
    """Another seed than its card's; the bounds are 3 standard errors below the card's shares."""
    _, found = shapes_zeroshot.shares(DualEncoder.load(FOLDER), 17, 80)
    assert found["colour and shape"]["train"].value > 0.95
    assert found["colour and shape"]["heldout"].value > 0.86
    assert found["number"]["train"].value > 0.87


@pytest.mark.parametrize(("question", "split"), [("colour and shape", "train"), ("number", "heldout")])
def test_its_card_has_the_figures_of_its_result(question: str, split: str) -> None:
    result = json.loads((ROOT / "docs" / "results" / "shapes-clip-zeroshot.json").read_text())
    share = result["questions"][question][split]["share"]
    card = (FOLDER / "README.md").read_text()
    assert f"{100 * share:.1f} %" in next(line for line in card.splitlines() if line.startswith(f"| {question} |"))
