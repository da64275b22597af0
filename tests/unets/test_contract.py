"""What a network promises: its facts without building it, the one registry, the layers that others reach for."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import unets
from imagen.cascade.variance import first_rows
from tests.factories import tiny_base
from tests.unets.helpers import KINDS, draw, image_inputs, make
from unets import BaseUNet
from unets.contract import any_network, facts, network_class

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    str(path.relative_to(ROOT)): section
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if (section := yaml.safe_load(path.read_text()).get("unet"))
}


def test_the_configurations_are_where_these_tests_look() -> None:
    assert len(SECTIONS) >= 11, f"only {sorted(SECTIONS)} have a section unet"


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_facts_of_a_section_are_those_of_the_network(section: dict[str, Any]) -> None:
    arguments = {key: value for key, value in section.items() if key != "kind"}
    with torch.device("meta"):
        built: Any = network_class(section["kind"])(**arguments)
    assert facts(section) == built.facts
    assert facts({"kind": section["kind"]}) == facts({"kind": section["kind"], "text_dim": 4096})


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_are_true(kind: str) -> None:
    unet = make(kind, out_channels=6, patch_size=2)
    known = unet.facts
    assert (known.in_channels, known.out_channels, known.text_dim, known.learns_variance) == (3, 6, 24, True)
    assert known.kind == type(unet).__name__
    assert known.divisor == 2 * {"base": 2, "effi": 4, "dit": 1}[kind[:4]]  # the patch times the strides
    size = (known.divisor, 2 * known.divisor)
    assert unet(**image_inputs(unet, size=size), text=draw(3, 2, 3, 24)).shape == (2, 6, *size)
    with pytest.raises(ValueError, match=f"multiples of {known.divisor} "):
        unet(**image_inputs(unet, size=(known.divisor, known.divisor + 1)), text=draw(3, 2, 3, 24))
    for channels in (3, 4, 5, 7, 12):  # a variance is one number more for each of the input's
        unet.register_to_config(out_channels=channels)
        assert not unet.facts.learns_variance


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_half_the_rows_of_the_output_layer_are_half_the_channels(kind: str) -> None:
    unet = make(kind, out_channels=6, patch_size=2)
    given = {**image_inputs(unet), "text": draw(3, 2, 3, 24)}
    whole = unet(**given)
    layer = unet.get_submodule(unet.output_layer)
    setattr(unet, unet.output_layer, first_rows(layer, len(layer.weight) // 2))
    assert torch.allclose(unet(**given), whole[:, :3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_at_the_ends_are_there(kind: str) -> None:
    unet = make(kind)
    assert unet.output_layer in unet.end_layers
    assert unet.end_layers[2:] == ("class_tables",)  # which see no pictures, and are empty where there are no classes
    for name in (unet.input_layer, unet.output_layer):
        assert unet.get_submodule(name).weight.ndim >= 2
    # what stands at the ends sees numbers of pictures: the others' shapes do not depend on the channels
    other = make(kind, in_channels=2, out_channels=2, lowres_channels=2 if unet.config.lowres_channels else 0)
    shapes = {name: p.shape for name, p in other.named_parameters()}
    differ = {name.split(".")[0] for name, p in unet.named_parameters() if p.shape != shapes[name]}
    assert differ == {unet.input_layer, unet.output_layer} == set(unet.end_layers[:2])


def test_every_registered_network_is_one() -> None:
    for name in unets.NETWORKS:
        cls = network_class(name)
        assert cls is getattr(unets, name)
        assert cls.__name__ == name
        assert cls.__module__ == unets.NETWORKS[name]  # which a saved pipeline names
        assert cls in any_network().__args__
    with pytest.raises(ValueError, match="kind is 'Unet'; expected one of BaseUNet, EfficientUNet"):
        facts({"kind": "Unet"})
    with pytest.raises(ValueError, match="arguments of BaseUNet: .*many"):
        facts({"kind": "BaseUNet", "in_channels": "many"})
    with pytest.raises(AttributeError, match="no attribute 'Unet'"):
        _ = unets.Unet


def test_names_are_known_without_torch() -> None:
    command = "import sys, unets, unets.contract; assert not {'torch', 'diffusers'} & set(sys.modules); unets.NETWORKS"
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True)


def test_a_class_derived_from_a_network_takes_its_configurations_and_folders(tmp_path: Path) -> None:
    class Mine(BaseUNet):
        pass

    unet = tiny_base()
    unet.save_pretrained(tmp_path)
    for mine in (Mine.from_config(unet.config), Mine.from_pretrained(tmp_path)):
        assert type(mine) is Mine
        assert mine.config.model_channels == unet.config.model_channels
