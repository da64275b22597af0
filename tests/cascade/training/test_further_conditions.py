"""Starting from a trained network that had fewer conditions: it answers as it did, and learns what is new."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imagen.cascade.training.start.network import load_initial, prepare_unet
from imagen.errors import ConfigError
from tests.unets.helpers import KINDS, draw, make, redraw, run

STEMS: dict[str, dict[str, Any]] = {
    "base": {"patch_size": 2, "coordinates": True},
    "efficient": {"patch_size": 1},
    "dit": {"patch_size": 4, "lowres_channels": 3},
}
PICTURES = {"depth": 2, "mask": 4, "outline": 1}
IDS = {"label": torch.tensor([4, 5]), "camera": torch.tensor([0, 1])}


def pictures(seed: int) -> dict[str, torch.Tensor]:
    return {name: draw(seed, 2, channels, 8, 8) for name, channels in PICTURES.items()}


def dyadic(unet: Any) -> None:
    """A first layer of small multiples of 1/8: with pictures of whole numbers its sums are exact in whatever order."""
    for value in unet.get_submodule(unet.input_layer).parameters():
        value.copy_((value * 8).round() / 8)


def started(kind: str, trained: Any, folder: Path, **options: Any) -> Any:
    trained.save_pretrained(folder / "unet")
    unet = make(kind, **STEMS[kind], **options)
    load_initial(unet, str(folder), False, torch.float64)
    return unet


@torch.no_grad()
@pytest.mark.parametrize("kind", STEMS)
def test_with_further_channels_it_answers_as_it_did_whatever_they_hold(kind: str, tmp_path: Path) -> None:
    trained = make(kind, **STEMS[kind], extra_channels={"mask": 4})
    dyadic(trained)
    unet = started(kind, trained, tmp_path, extra_channels=PICTURES)
    given: dict[str, Any] = {"sample": draw(5, 2, 3, 8, 8).round()}
    if unet.config.lowres_channels:
        given["lowres"] = draw(6, 2, 3, 8, 8).round()
    mask = draw(7, 2, 4, 8, 8).round()
    expected = run(trained, **given, conditions={"mask": mask})
    for seed in (8, 9):
        others = {name: 100 * value for name, value in pictures(seed).items()}
        assert torch.equal(run(unet, **given, conditions={**others, "mask": mask}), expected)
    assert not torch.equal(run(unet, **given, conditions={**pictures(8), "mask": -mask}), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", STEMS)
def test_a_first_mask_changes_nothing_at_the_start(kind: str, tmp_path: Path) -> None:
    trained = make(kind, **STEMS[kind])
    unet = started(kind, trained, tmp_path, extra_channels={"mask": 4})
    runs = [run(unet, conditions={"mask": draw(seed, 2, 4, 8, 8)}) for seed in (1, 2)]
    assert torch.equal(*runs)
    assert torch.allclose(runs[0], run(trained), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", STEMS)
def test_new_tables_are_the_new_networks_and_known_ones_the_trained_networks(kind: str, tmp_path: Path) -> None:
    trained = make(kind, **STEMS[kind], classes={"label": 5})
    redraw(trained, seed=1)
    unet = started(kind, trained, tmp_path, classes={"label": 5, "camera": 2})
    own = make(kind, **STEMS[kind], classes={"label": 5, "camera": 2})
    assert torch.equal(unet.class_tables["camera"].weight, own.class_tables["camera"].weight)
    for name, value in trained.state_dict().items():
        assert torch.equal(unet.state_dict()[name], value), name
    run(unet, conditions=IDS).square().mean().backward()
    assert unet.class_tables["camera"].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {"extra_channels": {"mask": 4}},
            {"extra_channels": {"depth": 4}},
            "extra_channels .*depth.* trained with .*mask",
        ),
        ({"extra_channels": {"mask": 4}}, {"extra_channels": {"mask": 5}}, "'mask': 5}, but it was trained with"),
        ({"extra_channels": {"mask": 4}}, {}, "extra_channels {}, but it was trained with {'mask': 4}: keep these"),
        ({"classes": {"label": 5}}, {"classes": {"label": 6}}, "classes {'label': 6}, but it was trained with"),
        ({"classes": {"label": 5}}, {}, "classes {}, but it was trained with {'label': 5}"),
        ({"in_channels": 4}, {"extra_channels": {"mask": 1}}, "in_channels and lowres_channels are 3 and 0, but"),
        ({"patch_size": 1}, {"extra_channels": {"mask": 1}}, "size mismatch for conv_in.weight"),
        ({"coordinates": False}, {"extra_channels": {"mask": 1}}, "size mismatch for conv_in.weight"),
        ({"text_dim": None}, {"classes": {"label": 1}}, "Missing key"),
    ],
)
def test_whatever_else_differs_is_refused(
    before: dict[str, Any], after: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"train.init_from .* does not fit this unet: .*{message}") as refused:
        started("base", make("base", **{**STEMS["base"], **before}), tmp_path, **after)
    assert "\n" not in str(refused.value)


def test_a_run_gains_classes_and_channels(config: Any, tmp_path: Path) -> None:
    """From the configuration's file, as people write it; an adapter is for the network as it is."""
    trained = prepare_unet(config(), None)
    redraw(trained)  # type: ignore[arg-type]
    trained.save_pretrained(tmp_path / "unet")  # type: ignore[attr-defined]
    further = {
        "unet.classes": {"label": 3},
        "unet.extra_channels": {"mask": 4},
        "conditions": {"label": {"classes": 3}, "mask": {}},
    }
    start = {"train.init_from": str(tmp_path)}
    unet = prepare_unet(config(**further, **start), None)
    stem = unet.get_submodule("conv_in").weight
    assert unet.facts.extra_channels == {"mask": 4}
    assert torch.equal(stem[:, :3], trained.get_submodule("conv_in").weight)
    assert stem[:, 3:].shape[1] == 4
    assert stem[:, 3:].abs().max() == 0
    assert unet.get_submodule("class_tables.label").weight.shape == (4, 32)
    with pytest.raises(ConfigError, match="an adapter is for the network as it is; leave out further"):
        prepare_unet(config(**further, **start, **{"lora.rank": 2}), None)


def test_every_kind_is_tried() -> None:
    assert STEMS.keys() == {kind for kind in KINDS if "_" not in kind}
