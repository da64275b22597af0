"""Pipelines of users' own, derived from ours: what they save, they load, and so do we."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from imagen import ImagenPipeline
from imagen.stages.folder import read_model
from tests.factories import sample, tiny_pipeline


class Starry(ImagenPipeline):
    """Draws a star with everything."""

    def __call__(self, prompt: str, **options: Any) -> Any:  # type: ignore[override]
        return super().__call__(f"{prompt} star", **options)

    def stars(self) -> int:
        return 1


class Brighter(Starry):
    """A subclass of a subclass."""


def picture(pipe: ImagenPipeline, prompt: str = "a red") -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    images: torch.Tensor = sample(pipe, prompt).images
    return images


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starry")
    Starry.from_pipe(tiny_pipeline()).save_pretrained(folder)
    return folder


def loaded_in_silence(kind: type[ImagenPipeline], folder: Path) -> ImagenPipeline:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return kind.from_pretrained(folder)


@pytest.mark.parametrize("kind", [Starry, Brighter])
def test_what_a_subclass_saved_is_loaded_by_it_whole(saved: Path, kind: type[Starry]) -> None:
    assert json.loads((saved / "model_index.json").read_text())["_class_name"] == "Starry"
    pipe = loaded_in_silence(kind, saved)
    assert type(pipe) is kind
    assert torch.equal(picture(pipe), picture(tiny_pipeline(), "a red star"))
    assert pipe.stage_defaults == tiny_pipeline().stage_defaults


def test_our_class_loads_it_as_ours_and_says_what_is_lost(saved: Path) -> None:
    with pytest.warns(UserWarning, match="saved by Starry and is loaded as ImagenPipeline") as told:
        pipe = ImagenPipeline.from_pretrained(saved)
    assert "Starry.from_pretrained loads it whole" in str(told[0].message)
    assert told[0].filename == __file__
    assert type(pipe) is ImagenPipeline
    assert torch.equal(picture(pipe), picture(tiny_pipeline()))
    assert list(read_model(saved)) == ["base", "sr256", "sr1024"]  # what the commands read before anything is loaded


def test_a_subclass_loads_what_ours_saved_and_what_a_stranger_saved_is_told(saved: Path, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    assert type(loaded_in_silence(Starry, tmp_path)) is Starry

    class Other(ImagenPipeline):
        """Not of Starry's kin."""

    with pytest.warns(UserWarning, match="saved by Starry and is loaded as Other"):
        assert type(Other.from_pretrained(saved)) is Other


@pytest.mark.parametrize("entries", [{"_class_name": None}, {"_class_name": "IFPipeline", "format_version": ...}])
def test_the_index_of_another_pipeline_is_still_refused(saved: Path, tmp_path: Path, entries: dict[str, Any]) -> None:
    index = {**json.loads((saved / "model_index.json").read_text()), **entries}
    index = {key: value for key, value in index.items() if value is not ...}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"holds a {entries['_class_name']}, not an ImagenPipeline; load it with its"):
        read_model(tmp_path)
