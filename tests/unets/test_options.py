"""Constructors against the one declaration of what networks share, and each shared option acting in each network."""

import dataclasses
import inspect
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


def test_a_networks_own_width_of_the_embedding_gives_way_to_one_that_is_given() -> None:
    assert Options.of({"time_embed_dim": None}, sinusoid_dim=8, time_embed_dim=32).emb_dim == 32
    assert Options.of({"time_embed_dim": 5, "other": 1}, sinusoid_dim=8, time_embed_dim=32).emb_dim == 5
