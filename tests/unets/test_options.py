"""Constructors against the one declaration of what networks share, and each shared option acting in each network."""

import dataclasses
import inspect
import math
from typing import Any

import pytest
import torch

import unets
from tests.unets.helpers import KINDS, make, run
from unets.contract import network_class
from unets.options import Options

SHARED = {field.name: field for field in dataclasses.fields(Options) if field.name != "sinusoid_dim"}
# Where a network's default is not the declaration's: the paper has them so.
OTHERWISE: dict[str, dict[str, Any]] = {
    "EfficientUNet": {"lowres_channels": 3, "residual_scale": 2**-0.5, "shortcut_conv": "always"},
    "DiT": {"patch_size": 4},
}


@pytest.mark.parametrize("name", unets.NETWORKS)
def test_a_constructor_has_options_as_they_are_declared(name: str) -> None:
    cls = network_class(name)
    parameters = {p.name: p for p in inspect.signature(cls.__init__).parameters.values() if p.name != "self"}
    annotations = inspect.get_annotations(inspect.unwrap(cls.__init__), eval_str=True)
    declared = inspect.get_annotations(Options, eval_str=True)
    assert len(SHARED.keys() & parameters.keys()) > 10
    otherwise = OTHERWISE.get(name, {})
    for option in SHARED.keys() & parameters.keys():
        assert annotations[option] == declared[option], option
        assert parameters[option].default == otherwise.get(option, SHARED[option].default), option
    described = (inspect.getdoc(cls) or "") + (inspect.getdoc(Options) or "")
    for base in inspect.getmodule(cls).__dict__.values():  # type: ignore[union-attr]
        if isinstance(base, type) and issubclass(base, Options):
            described += inspect.getdoc(base) or ""
    assert [option for option in parameters if option not in described] == []


def test_every_shared_option_is_described_and_some_network_has_it() -> None:
    everywhere = [inspect.signature(network_class(name).__init__).parameters for name in unets.NETWORKS]
    for option in SHARED:
        assert f"{option}:" in (Options.__doc__ or "") or f"{option}," in (Options.__doc__ or ""), option
        assert any(option in parameters for parameters in everywhere), option


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_queries_and_keys_are_normed_in_every_network(kind: str) -> None:
    names = [name for name, _ in make(kind, qk_norm=True).named_parameters()]
    layers = {name.rsplit(".norm_q", 1)[0] for name in names if name.endswith("norm_q.weight")}
    attending = {name.rsplit(".to_q", 1)[0] for name in names if name.endswith("to_q.weight")}
    assert layers == attending != set()
    assert (run(make(kind, qk_norm=True)) - run(make(kind))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_layers_drop_by_the_same_number(kind: str) -> None:
    numbers = [m.layer for m in make(kind).modules() if type(m).__name__ == "RowDropout"]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 1


def test_every_option_of_a_configuration_is_taken_from_it() -> None:
    """Each another value than its default, two alike never; what is no option is passed over."""
    given: dict[str, Any] = {
        **{"in_channels": 2, "out_channels": 2, "lowres_channels": 0, "patch_size": 4, "text_dim": 5},
        **{"text_whitening": True, "text_proj_dim": 6, "text_norm": "group", "text_pooling": "mean", "pool_heads": 7},
        **{"time_embed_dim": 8, "time_input": "cosine_log_snr", "activation": "gelu", "dropout": 0.5},
        **{"norm_groups": 9, "residual_scale": 0.25, "shortcut_conv": "always", "head_dim": 10, "qk_norm": True},
        **{"input_skip": True, "head_channels": 11, "coordinates": True},
        **{"classes": {"label": 12}, "extra_channels": {"mask": 13}},
    }
    assert given.keys() == SHARED.keys()
    options = Options.of({**given, "width": 3}, sinusoid_dim=14, time_embed_dim=15)
    assert {name: getattr(options, name) for name in given} == given
    assert options.sinusoid_dim == 14
    assert options.stem_channels == (2 + 0 + 13) * 4 * 4
    assert options.states_dim == 6
    assert Options(text_dim=5).states_dim == 5
    assert Options(sinusoid_dim=16).emb_dim == 64


@pytest.mark.parametrize(
    ("kind", "change", "described", "width"),
    [
        ("base", {"channel_mult": (2, 3)}, 16, 64),  # by model_channels, not by the first level's
        ("efficient", {"channels": (16, 24)}, 16, 64),
        ("dit", {"width": 32}, 32, 32),
        *((kind, {"time_embed_dim": 40}, 16, 40) for kind in ("base", "efficient", "dit")),
    ],
)
def test_the_width_of_the_time_embedding(kind: str, change: dict[str, Any], described: int, width: int) -> None:
    unet = make(kind, **change)
    assert unet.time_embedding.linear_1.weight.shape == (width, described)
    assert unet.time_embedding.linear_2.weight.shape == (width, width)
    assert unet.options.emb_dim == width


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout": -0.001}, "dropout must be at least 0 and below 1, got -0.001"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1, got nan"),
        ({"residual_scale": math.nan}, "residual_scale must be above 0 and finite, got nan"),
        ({"residual_scale": -0.5}, "residual_scale must be above 0 and finite, got -0.5"),
        ({"residual_scale": math.inf}, "residual_scale must be above 0 and finite, got inf"),
        ({"lowres_channels": -1}, "lowres_channels must be at least 0"),
        ({"input_skip": True, "in_channels": 4}, "the 4 channels of the input .* to the 3 of the output"),
        ({"input_skip": True, "lowres_channels": 2}, "the 2 of the low-resolution image"),
        *(({name: 0}, f"^{name} must be at least 1, got 0$") for name in Options.COUNTS),
        *(({name: "x"}, f"^{name} must be one of .*, got 'x'$") for name in Options.WORDS),
    ],
)
def test_what_is_no_option_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**change)


def test_the_nearest_values_are_options() -> None:
    for change in (
        {"dropout": 0.0},
        {"dropout": 0.999},
        {"residual_scale": 1e-9},
        {"input_skip": True, "lowres_channels": 0},
        {"input_skip": True, "lowres_channels": 3},
        *({name: 1} for name in Options.COUNTS),
        *({name: word} for name, words in Options.WORDS.items() for word in words),
        *({name: None} for name in ("text_dim", "text_proj_dim", "pool_heads", "time_embed_dim", "head_channels")),
    ):
        assert Options(**change) is not None  # type: ignore[arg-type]


def test_a_networks_own_width_of_the_embedding_gives_way_to_one_that_is_given() -> None:
    assert Options.of({"time_embed_dim": None}, sinusoid_dim=8, time_embed_dim=32).emb_dim == 32
    assert Options.of({"time_embed_dim": 5, "other": 1}, sinusoid_dim=8, time_embed_dim=32).emb_dim == 5
