"""Conditions by name: classes in the time embedding, further channels in the stem, both in every network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen.training.config.sections import OptimConfig
from imagen.training.optim.optimizers import make_optimizer
from tests.unets.helpers import CLASSES, EXTRA, KINDS, NAMED, conditions, draw, image_inputs, make, redraw, run
from unets.contract import facts
from unets.count import count


def embeddings(unet: Any, **given: Any) -> Tensor:
    """What the network's activation of the embedding is given."""
    seen: list[Tensor] = []
    hook = unet.emb_act.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run(unet, **given)
    hook.remove()
    return seen[0]


def stem_inputs(unet: Any, **given: Any) -> Tensor:
    """The channels (B, C, h, w) that the network's first layer sees, its patches as channels."""
    seen: list[Tensor] = []
    layer = unet.get_submodule(unet.input_layer)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    run(unet, **given)
    hook.remove()
    side = 8 // unet.config.patch_size
    return seen[0] if seen[0].ndim == 4 else seen[0].transpose(1, 2).unflatten(2, (side, side))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_is_its_tables_row_in_the_time_embedding(kind: str) -> None:
    unet = make(kind, classes=CLASSES)
    ids = {"label": torch.tensor([4, 5]), "camera": torch.tensor([0, 1])}
    tables = {name: unet.class_tables[name].weight for name in CLASSES}
    assert {name: len(table) for name, table in tables.items()} == {"label": 6, "camera": 3}  # the last is no class
    with_classes, out = embeddings(unet, conditions=ids), run(unet, conditions=ids)
    rows = tables["label"][[4, 5]] + tables["camera"][[0, 1]]
    for table in tables.values():
        table.zero_()
    without = embeddings(unet, conditions=ids)
    assert torch.allclose(with_classes, without + rows, rtol=1e-12, atol=1e-12)
    assert (out - run(unet, conditions=ids)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_further_channels_follow_the_pictures_in_the_order_of_their_names(kind: str, patch_size: int) -> None:
    unet = make(kind, extra_channels=EXTRA, patch_size=patch_size)
    given = image_inputs(unet)
    further = {name: conditions()[name] for name in EXTRA}
    pictures = [given["sample"], *([given["lowres"]] if "lowres" in given else []), further["depth"], further["mask"]]
    expected = F.pixel_unshuffle(torch.cat(pictures, dim=1), patch_size)
    assert torch.equal(stem_inputs(unet, conditions=further), expected)
    again = make(kind, extra_channels=dict(reversed(EXTRA.items())), patch_size=patch_size)
    assert torch.equal(run(again, conditions=further), run(unet, conditions=further))


@torch.no_grad()
def test_coordinates_come_last_and_the_skip_of_the_input_takes_no_further_channels() -> None:
    unet = make("base", **NAMED, patch_size=2, coordinates=True)
    seen = stem_inputs(unet, conditions=conditions())
    assert seen.shape[1] == (3 + 2 + 1) * 4 + 2
    axis = torch.tensor([-0.75, -0.25, 0.25, 0.75], dtype=torch.float64)
    assert torch.equal(seen[0, -2:], torch.stack([axis[:, None].expand(4, 4), axis.expand(4, 4)]))
    skipping = make("efficient", **NAMED, input_skip=True)
    assert len(skipping.input_gain.bias) == 3 + 3
    assert run(skipping, conditions=conditions()).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_rows_that_were_read_and_the_channels(kind: str, checkpointing: bool) -> None:
    unet = make(kind, **NAMED, **({} if kind.startswith("efficient") else {"dropout": 0.3})).train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    run(unet, conditions=conditions(), dropout_seeds=torch.tensor([3, 4])).square().mean().backward()
    reached = {name: table.weight.grad.abs().amax(dim=1) > 0 for name, table in unet.class_tables.items()}
    assert reached["label"].tolist() == [False, False, False, False, True, True]
    assert reached["camera"].tolist() == [True, True, False]
    start = 3 + unet.config.lowres_channels
    patch = unet.config.patch_size**2
    further = unet.get_submodule(unet.input_layer).weight.grad[:, start * patch :]
    assert further.shape[1] == 3 * patch
    assert further.abs().sum(dim=0).min() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "conditions lack 'label'; this network was built with it"),
        ({"mask": None}, "conditions lack 'mask'"),
        (
            {"style": torch.tensor([0, 0])},
            "'style', which this network was built without; its names: 'label', 'camera',",
        ),
        (
            {"label": torch.tensor([1])},
            r"conditions\['label'\] has shape \(1,\) and dtype torch.int64; give \(2,\) int64",
        ),
        ({"label": torch.tensor([1.0, 1.0])}, r"dtype torch.float32; give \(2,\) int64"),
        ({"label": torch.tensor([0, 6])}, r"conditions\['label'\] is \[0, 6\]; give 0 to 4, or 5 for no class"),
        ({"label": torch.tensor([-1, 0])}, r"is \[-1, 0\]; give 0 to 4"),
        ({"camera": None}, "conditions lack 'camera'"),
        ({"camera": torch.tensor([0, 3])}, r"conditions\['camera'\] is \[0, 3\]; give 0 to 1, or 2 for no class"),
        ({"camera": torch.tensor([[0], [1]])}, r"conditions\['camera'\] has shape \(2, 1\)"),
        ({"mask": draw(1, 2, 2, 8, 8)}, r"has shape \(2, 2, 8, 8\); give \(2, 1, 8, 8\), 1 channels at the sample's"),
        ({"mask": draw(1, 2, 1, 4, 8)}, r"has shape \(2, 1, 4, 8\); give \(2, 1, 8, 8\)"),
        ({"mask": draw(1, 2, 1, 8, 4)}, r"has shape \(2, 1, 8, 4\); give \(2, 1, 8, 8\)"),
        ({"depth": None}, "conditions lack 'depth'"),
        ({"depth": draw(1, 1, 2, 8, 8)}, r"has shape \(1, 2, 8, 8\); give \(2, 2, 8, 8\)"),
    ],
)
def test_wrong_conditions_are_refused(kind: str, change: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**conditions(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as refused:
        run(make(kind, **NAMED), conditions=given)
    assert "\n" not in str(refused.value)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_further_channels_are_as_high_and_as_wide_as_the_pictures(kind: str) -> None:
    unet = make(kind, extra_channels={"mask": 1})
    given = image_inputs(unet, size=(8, 4))
    assert run(unet, **given, conditions={"mask": draw(7, 2, 1, 8, 4)}).shape == (2, 3, 8, 4)
    with pytest.raises(ValueError, match=r"has shape \(2, 1, 4, 8\); give \(2, 1, 8, 4\)"):
        run(unet, **given, conditions={"mask": draw(7, 2, 1, 4, 8)})
    if "lowres" in given:
        with pytest.raises(ValueError, match=r"lowres has \(C, H, W\) \(3, 4, 8\), this network expects \(3, 8, 4\)"):
            run(unet, **{**given, "lowres": draw(7, 2, 3, 4, 8)}, conditions={"mask": draw(7, 2, 1, 8, 4)})


@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_conditions_that_no_option_names_are_refused(kind: str) -> None:
    with pytest.raises(
        ValueError, match="conditions hold 'mask', which this network was built without; its names: none"
    ):
        run(make(kind), conditions={"mask": draw(1, 2, 1, 8, 8)})
    with pytest.raises(ValueError, match="conditions lack 'label'"):
        run(make(kind, classes={"label": 2}))


@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
@pytest.mark.parametrize("option", ["classes", "extra_channels"])
@pytest.mark.parametrize(
    "value",
    [{"a": 0}, {"a": 1.5}, {"a": True}, {"": 1}, {"a.b": 1}, {3: 1}, ["a"], 3, {"a": 1, "b.c": 2}, {"a": 1, "b": 0}],
)
def test_impossible_options_are_refused(kind: str, option: str, value: object) -> None:
    cls, arguments = KINDS[kind]
    with pytest.raises(ValueError, match=f"{option} must be numbers of at least 1 by name, such as"):
        cls(**{**arguments, option: value})


def test_names_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="classes and extra_channels both have 'a'"):
        make("base", classes={"a": 1}, extra_channels={"a": 1})
    with pytest.raises(ValueError, match="classes and extra_channels both have 'c'"):
        make("base", classes={"a": 1, "c": 1}, extra_channels={"b": 1, "c": 1})
    for classes in ({"type": 1}, {"label": 1, "type": 1}):
        with pytest.raises(ValueError, match="'type', which torch's modules use themselves"):
            make("base", classes=classes)


@torch.no_grad()
@pytest.mark.parametrize("nothing", [None, {}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_without_the_options_a_network_is_the_one_it_was(kind: str, nothing: dict[str, int] | None) -> None:
    cls, arguments = KINDS[kind]
    torch.manual_seed(0)
    plain = cls(**arguments)
    after = torch.rand(())
    torch.manual_seed(0)
    unet = cls(**{**arguments, "classes": nothing, "extra_channels": nothing})
    assert torch.rand(()) == after  # not a number more was drawn
    assert not any("class_tables" in name for name in unet.state_dict())
    assert unet.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in unet.state_dict().items())
    redraw(plain.double())
    redraw(unet.double())
    assert torch.equal(run(unet, conditions={}), run(plain))


def test_weights_without_the_first_layer_are_grown_by_the_tables_alone() -> None:
    """Such as a part of a network's: what is not there stays out, for whoever loads it to say so."""
    trained, unet = make("base"), make("base", classes=CLASSES, extra_channels=EXTRA)
    weights = {name: value for name, value in trained.state_dict().items() if name != "conv_in.weight"}
    grown = unet.grown(weights, trained.facts)
    tables = {f"class_tables.{name}.weight": unet.class_tables[name].weight for name in CLASSES}
    assert grown.keys() == weights.keys() | tables.keys()
    assert all(torch.equal(grown[name], value) for name, value in {**weights, **tables}.items())


def test_a_low_resolution_image_more_is_no_further_condition() -> None:
    trained, unet = make("base"), make("base", lowres_channels=3, extra_channels=EXTRA)
    with pytest.raises(ValueError, match="in_channels and lowres_channels are 3 and 3, but it was trained with 3 and"):
        unet.grown(trained.state_dict(), trained.facts)


def test_tables_start_small() -> None:
    cls, arguments = KINDS["base"]
    torch.manual_seed(0)
    weight = cls(**{**arguments, "classes": {"label": 999}}).class_tables["label"].weight
    assert weight.shape == (1000, 64)
    assert abs(weight.std() - 0.02) < 5e-4  # of 64000 draws the deviation is 2e-2 / sqrt(128000) = 6e-5
    assert abs(weight.mean()) < 5e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_are_known_without_the_network(kind: str) -> None:
    cls, arguments = KINDS[kind]
    section = {**arguments, "kind": cls.__name__, **NAMED}
    known = facts(section)
    assert known == make(kind, **NAMED).facts
    assert (known.classes, list(known.extra_channels.items())) == (CLASSES, [("depth", 2), ("mask", 1)])
    assert facts({**section, "classes": None, "extra_channels": None}).extra_channels == {}
    with pytest.raises(ValueError, match=f"arguments of {cls.__name__}: "):
        facts({**section, "classes": 3})
    read = [facts({**section, "text_dim": t, "classes": c}).guidable for t in (24, None) for c in (CLASSES, {}, None)]
    assert read == [True, True, True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_stored_networks_come_back(kind: str, tmp_path: Path) -> None:
    unet = make(kind, **NAMED)
    unet.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert {name: stored[name] for name in NAMED} == NAMED
    again = type(unet).from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert again.facts == unet.facts
    expected = run(unet, conditions=conditions())
    assert torch.equal(run(again, conditions=conditions()), expected)
    # the file sorts names, and a configuration is copied in whatever order: channels stay where they were
    copied = type(unet).from_config(unet.config).double()
    copied.load_state_dict(unet.state_dict())
    assert torch.equal(run(copied, conditions=conditions()), expected)


@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_tables_are_counted(kind: str) -> None:
    with_tables, plain = count(make(kind, classes=CLASSES)), count(make(kind))
    rows = (6 + 3) * make(kind).options.emb_dim
    differing = {part: n - plain[part] for part, n in with_tables.items() if n != plain[part]}
    assert differing == {"residual blocks and the rest": rows, "total": rows}


@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_stem_and_tables_are_not_for_muon(kind: str) -> None:
    unet = make(kind, **NAMED)
    names = {id(p): name for name, p in unet.named_parameters()}
    groups = make_optimizer(unet, OptimConfig(muon_lr=0.1), unet.end_layers).param_groups
    others = {names[id(p)] for group in groups if not group["muon"] for p in group["params"]}
    assert {f"{unet.input_layer}.weight", "class_tables.label.weight", "class_tables.camera.weight"} <= others


@torch.no_grad()
@pytest.mark.parametrize("kind", ["base", "efficient", "dit"])
def test_storage_in_fewer_bits_leaves_the_tables_alone(kind: str) -> None:
    unet = make(kind, **NAMED).float()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert unet.class_tables["label"].weight.dtype == torch.float32
    assert unet.get_submodule(unet.input_layer).weight.dtype == torch.float32
