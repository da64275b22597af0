"""Several adapters at once in a pipeline, by the names that diffusers has for what is done with them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.loaders.peft import PeftAdapterMixin
from safetensors.torch import save_file
from torch import Tensor

from imagen import ImagenPipeline
from imagen.cascade.adapting import AdapterMixin
from imagen.cli.before import adapter_of
from imagen.cli.model import _load_adapters
from imagen.stages.folder import ADAPTER as WEIGHTS
from tests.factories import sample, save_adapters, seeded, tiny_base, tiny_pipeline
from unets.adapters import holds_adapter

CALL = {"size": 16, "num_inference_steps": 2}


def adapter(seed: int) -> dict[str, Tensor]:
    """An adapter of the tiny base stage's queries and keys."""
    tensors = {}
    for name, module in tiny_base().named_modules():
        if name.endswith(("to_q", "to_k")):
            tensors[f"{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=seeded(seed))
            tensors[f"{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=seeded(seed + 1))
    return tensors


def predicted(pipe: ImagenPipeline) -> Tensor:
    """What the base stage's network says to one noisy picture."""
    z, text = torch.randn(1, 3, 16, 16, generator=seeded(7)), torch.randn(1, 5, 16, generator=seeded(8))
    with torch.no_grad():
        said: Tensor = pipe.base_unet(z, 500.0, text=text)
    return said


def merged(weights: dict[int, float]) -> Tensor:
    """The same with B A of the adapters of these seeds, times their weights, added to the network's by hand."""
    pipe = tiny_pipeline()
    layers = dict(pipe.base_unet.named_modules())
    with torch.no_grad():
        for seed, weight in weights.items():
            tensors = adapter(seed)
            for name in {name.rpartition(".lora_")[0] for name in tensors}:
                layers[name].weight += weight * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    return predicted(pipe)


def assert_acts(pipe: ImagenPipeline, weights: dict[int, float]) -> None:
    torch.testing.assert_close(predicted(pipe), merged(weights), atol=2e-4, rtol=1e-3)


@pytest.fixture
def two() -> ImagenPipeline:
    """A pipeline whose base stage holds the adapters one (at its weight) and two (at 0.5)."""
    pipe = tiny_pipeline()
    pipe.load_lora_weights(adapter(1), adapter_name="one")
    pipe.load_lora_weights(adapter(2), adapter_name="two", scale=0.5)
    return pipe


def test_all_that_are_loaded_act_each_at_its_scale(two: ImagenPipeline) -> None:
    assert two.get_active_adapters() == ["one", "two"]
    assert two.get_list_adapters() == {"base_unet": ["one", "two"]}
    assert_acts(two, {1: 1.0, 2: 0.5})
    assert not torch.allclose(merged({1: 1.0}), merged({1: 1.0, 2: 0.5}), atol=0.01)


def test_set_adapters_lets_act_those_named_at_their_weights_and_no_other(two: ImagenPipeline) -> None:
    two.set_adapters(["one", "two"], [0.3, -1.0])
    assert_acts(two, {1: 0.3, 2: -1.0})
    two.set_adapters("two")
    assert_acts(two, {2: 1.0})
    assert two.get_active_adapters() == ["two"]
    two.set_adapters(["two", "one"], 0.5)
    assert_acts(two, {1: 0.5, 2: 0.5})
    two.set_adapters([])
    assert_acts(two, {})
    two.load_lora_weights(adapter(3), scale=2.0)
    assert two.get_list_adapters() == {"base_unet": ["one", "two", "default_0"]}
    assert_acts(two, {3: 2.0})


def test_each_stage_takes_those_that_it_holds(tmp_path: Path) -> None:
    save_adapters(tmp_path)
    pipe = tiny_pipeline()
    pipe.load_lora_weights(adapter(1), adapter_name="style")
    pipe.load_lora_weights(tmp_path / "sr256", "sr256", "style")
    pipe.load_lora_weights(tmp_path / "sr256", "sr256", "other")
    assert pipe.get_list_adapters() == {"base_unet": ["style"], "sr256_unet": ["style", "other"]}
    pipe.set_adapters("style", {"base": 0.25})
    assert_acts(pipe, {1: 0.25})
    assert pipe.sr256_unet.active_adapters() == ["style"]
    pipe.set_adapters("other", 0.25)
    assert_acts(pipe, {})
    assert pipe.get_active_adapters() == ["other"]
    pipe.set_adapters(["other", "style"], [0.3, 0.7])
    assert_acts(pipe, {1: 0.7})  # the weight of the one that this stage holds
    pipe.set_adapters("other")
    with pytest.raises(ValueError, match="adapter_weights: unknown key 'sr1024'"):
        pipe.set_adapters("style", {"sr1024": 1.0})
    pipe.delete_adapters("style")
    assert pipe.get_list_adapters() == {"sr256_unet": ["other"]}
    assert not holds_adapter(pipe.base_unet)


def test_deleting_one_leaves_the_other_and_deleting_all_leaves_the_network_as_it_was(two: ImagenPipeline) -> None:
    plain = tiny_pipeline().base_unet.state_dict()
    two.delete_adapters("one")
    assert_acts(two, {2: 0.5})
    two.delete_adapters(["two"])
    now = two.base_unet.state_dict()
    assert now.keys() == plain.keys()
    assert all(torch.equal(now[name], value) for name, value in plain.items())
    with pytest.raises(ValueError, match="no stage holds an adapter 'one'; there is none"):
        two.delete_adapters("one")


def test_a_network_whose_adapters_were_deleted_one_by_one_is_not_saved_with_its_layers_wrapped(
    two: ImagenPipeline, tmp_path: Path
) -> None:
    two.base_unet.delete_adapters(["one", "two"])
    with pytest.raises(ValueError, match="base holds an adapter"):
        two.save_pretrained(tmp_path / "pipe")
    with pytest.raises(ValueError, match="this network holds an adapter"):
        two.base_unet.save_pretrained(tmp_path / "unet")
    two.unload_lora_weights()
    two.save_pretrained(tmp_path / "pipe")
    assert_acts(ImagenPipeline.from_pretrained(tmp_path / "pipe"), {})


def test_disabled_adapters_are_kept(two: ImagenPipeline) -> None:
    two.disable_lora()
    assert torch.equal(predicted(two), merged({}))
    two.enable_lora()
    assert_acts(two, {1: 1.0, 2: 0.5})


@pytest.mark.parametrize("components", [None, ["base"], ["base_unet"]])
def test_fused_adapters_act_through_the_weights_and_come_off_again(
    two: ImagenPipeline, components: list[str] | None
) -> None:
    two.fuse_lora(components, lora_scale=0.5)
    assert_acts(two, {1: 0.5, 2: 0.25})
    fused = two.base_unet.state_dict()
    for act in (
        lambda: two.fuse_lora(),
        lambda: two.merge_lora_weights(),
        lambda: two.set_adapters("one"),
        lambda: two.delete_adapters("one"),
        lambda: two.load_lora_weights(adapter(3)),
    ):
        with pytest.raises(ValueError, match="are fused into its weights: call unfuse_lora first"):
            act()
    assert all(torch.equal(value, two.base_unet.state_dict()[name]) for name, value in fused.items())
    two.unfuse_lora(components)
    assert_acts(two, {1: 1.0, 2: 0.5})
    two.unfuse_lora()
    assert_acts(two, {1: 1.0, 2: 0.5})


def test_one_of_two_is_fused_and_unloading_keeps_it_in_the_weights(two: ImagenPipeline, tmp_path: Path) -> None:
    two.fuse_lora(adapter_names=["one"])
    with pytest.raises(ValueError, match="base holds an adapter: call merge_lora_weights or unload_lora_weights"):
        two.save_pretrained(tmp_path / "pipe")
    with pytest.raises(ValueError, match="this network holds an adapter: call unload_lora"):
        two.base_unet.save_pretrained(tmp_path / "unet")
    assert not any(tmp_path.iterdir())
    two.unload_lora_weights()
    assert_acts(two, {1: 1.0})
    two.save_pretrained(tmp_path / "pipe")
    assert_acts(ImagenPipeline.from_pretrained(tmp_path / "pipe"), {1: 1.0})


@pytest.mark.parametrize("broken", ["one", "two"])
def test_a_fusion_that_fails_leaves_the_weights(two: ImagenPipeline, broken: str) -> None:
    last = [p for name, p in two.base_unet.named_parameters() if f"lora_B.{broken}" in name][-1]
    last.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="NaNs"):
        two.fuse_lora(lora_scale=0.5, safe_fusing=True)
    scales = [layer.scaling for layer in two.base_unet.modules() if hasattr(layer, "base_layer")]
    assert all(scale == {"one": 1.0, "two": 0.5} for scale in scales)
    two.delete_adapters(broken)
    assert_acts(two, {1: 1.0} if broken == "two" else {2: 0.5})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda pipe: pipe.load_lora_weights(adapter(3), adapter_name="one"),
            "adapter 'one' is in use; delete it first",
        ),
        (
            lambda pipe: pipe.load_lora_weights(adapter(3), adapter_name="a.b"),
            "cannot be called 'a.b': give a name with",
        ),
        (lambda pipe: pipe.load_lora_weights(adapter(3), adapter_name=""), "cannot be called ''"),
        (lambda pipe: pipe.load_lora_weights(adapter(3), scale=float("nan")), "scale is nan; give a finite number"),
        (
            lambda pipe: pipe.load_lora_weights(adapter(3), adapter_name="three", hotswap=True),
            "adapter 'three' is not there to swap; there are one, two",
        ),
        (lambda pipe: pipe.set_adapters("three"), "no stage holds an adapter 'three'; there is one, two"),
        (lambda pipe: pipe.set_adapters("one", [1.0, 2.0]), "adapter_weights has 2 numbers for 1 adapters"),
        (lambda pipe: pipe.fuse_lora(adapter_names=["three"]), "no stage holds an adapter 'three'"),
        (lambda pipe: pipe.fuse_lora(["sr256"]), "stage 'sr256' holds no adapter"),
        (lambda pipe: pipe.fuse_lora(["text_encoder"]), "stage is 'text_encoder'; expected one of base"),
    ],
)
def test_what_cannot_be_done_is_told_and_changes_nothing(two: ImagenPipeline, act: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(two)
    assert two.get_list_adapters() == {"base_unet": ["one", "two"]}
    assert_acts(two, {1: 1.0, 2: 0.5})


def test_another_adapter_takes_the_place_of_one_by_hotswap(two: ImagenPipeline) -> None:
    two.load_lora_weights(adapter(3), adapter_name="two", scale=0.25, hotswap=True)
    assert two.get_list_adapters() == {"base_unet": ["one", "two"]}
    assert_acts(two, {1: 1.0, 3: 0.25})


@pytest.mark.parametrize("in_place", [False, True])
def test_an_adapter_loads_onto_a_compiled_network_and_acts(in_place: bool) -> None:
    pipe = tiny_pipeline()
    if in_place:
        pipe.base_unet.compile(backend="eager")
    else:
        pipe.base_unet = torch.compile(pipe.base_unet, backend="eager")
    torch.testing.assert_close(predicted(pipe), merged({}), atol=1e-5, rtol=1e-4)
    pipe.load_lora_weights(adapter(1), adapter_name="one", scale=0.5)
    assert_acts(pipe, {1: 0.5})
    pipe.set_adapters("one", 2.0)
    assert_acts(pipe, {1: 2.0})
    assert pipe.get_list_adapters() == {"base_unet": ["one"]}
    sample(pipe, "a red circle", **CALL)
    pipe.unload_lora_weights()
    assert_acts(pipe, {})


# --- names and imports ------------------------------------------------------------------------------------------------


def test_a_network_has_every_method_of_diffusers_networks_with_its_arguments() -> None:
    theirs = {name: value for name, value in vars(PeftAdapterMixin).items() if not name.startswith("__")}
    net = tiny_base()
    for name, value in theirs.items():
        assert hasattr(net, name), name
        if callable(value):
            assert inspect.signature(getattr(net, name)) == inspect.signature(value.__get__(net)), name


def test_a_pipeline_has_diffusers_names_for_what_acts_on_adapters() -> None:
    public = {name for name, value in vars(LoraBaseMixin).items() if callable(value) and not name.startswith("_")}
    left_out = {"pack_weights", "write_lora_layers", "save_lora_weights", "lora_state_dict", "set_lora_device"}
    assert public - set(dir(AdapterMixin)) <= left_out
    ours = inspect.signature(AdapterMixin.fuse_lora).parameters
    theirs = inspect.signature(LoraBaseMixin.fuse_lora).parameters
    assert list(ours) == [name for name in theirs if name != "kwargs"]


def test_a_network_is_built_without_peft_until_an_adapter_comes() -> None:
    program = "import sys; from unets import BaseUNet; print([name for name in sys.modules if name == 'peft'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_s_scale_stands_behind_a_colon(tmp_path: Path) -> None:
    assert adapter_of("a") == ("base", "a", 1.0)
    assert adapter_of("a:0.8") == ("base", "a", 0.8)
    assert adapter_of("a:b:0.5") == ("base", "a:b", 0.5)
    assert adapter_of("sr256=a/b:-2") == ("sr256", "a/b", -2.0)
    (tmp_path / "a:0.8").mkdir()
    assert adapter_of(f"{tmp_path}/a:0.8") == ("base", f"{tmp_path}/a:0.8", 1.0), "a folder of that name comes first"
    assert adapter_of(f"sr256={tmp_path}/a:0.8") == ("sr256", f"{tmp_path}/a:0.8", 1.0)
    (tmp_path / "lr=1e-4").mkdir()
    assert adapter_of(f"{tmp_path}/lr=1e-4") == ("base", f"{tmp_path}/lr=1e-4", 1.0)
    for wrong in ("a:", "a:b", "a:nan"):
        with pytest.raises(ValueError, match=f"--lora '{wrong}': no such place, nor is '{wrong[2:]}' a scale"):
            adapter_of(wrong)
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        save_file({f"unet.{name}": t for name, t in adapter(number).items()}, tmp_path / str(number) / WEIGHTS)
    pipe = tiny_pipeline()
    _load_adapters([f"{tmp_path}/1:0.5", f"base={tmp_path}/2"], pipe)
    assert_acts(pipe, {1: 0.5, 2: 1.0})
