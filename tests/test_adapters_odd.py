"""Adapters in odd orders and of odd files: the right sum or one line, and never a state between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from imagen import ImagenPipeline
from imagen.cascade.adapters import attach
from imagen.stages.folder import ADAPTER as WEIGHTS
from tests.factories import save_adapters, tiny_base, tiny_pipeline
from tests.test_adapters_several import adapter, assert_acts, merged, predicted, two
from unets.adapters import holds_adapter

__all__ = ["two"]  # the fixture
LAYER = sorted(adapter(1))[0].partition(".lora_")[0]


def written(folder: Path, tensors: dict[str, Tensor], **facts: Any) -> Path:
    folder.mkdir(exist_ok=True)
    header = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in facts.items()})}
    save_file({f"unet.{name}": tensor for name, tensor in tensors.items()}, folder / WEIGHTS, header)
    return folder


def lengths(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same as DoRA."""
    layers = {name.partition(".lora_")[0] for name in tensors}
    return {**tensors, **{f"{layer}.lora_magnitude_vector": torch.ones(16) for layer in layers}}


# --- swaps ------------------------------------------------------------------------------------------------------------


def test_a_swapped_adapter_has_its_own_strength_then_and_later(two: ImagenPipeline, tmp_path: Path) -> None:
    two.load_lora_weights(written(tmp_path, adapter(3), lora_alpha=6), adapter_name="two", scale=0.25, hotswap=True)
    assert_acts(two, {1: 1.0, 3: 0.75})
    two.set_adapters("two", 0.5)
    assert_acts(two, {3: 1.5})


def test_a_swap_after_enable_lora_hotswap_keeps_the_tensor_that_a_compiled_graph_reads() -> None:
    pipe = tiny_pipeline()
    pipe.enable_lora_hotswap(target_rank=4)
    pipe.load_lora_weights(adapter(1), adapter_name="one", scale=0.5)
    layer = next(module for module in pipe.base_unet.modules() if hasattr(module, "base_layer"))
    kept = layer.scaling["one"]
    assert isinstance(kept, Tensor)
    assert_acts(pipe, {1: 0.5})
    pipe.load_lora_weights(adapter(3), adapter_name="one", scale=0.75, hotswap=True)
    assert layer.scaling["one"] is kept
    assert_acts(pipe, {3: 0.75})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (lambda: lengths(adapter(3)), "cannot take the place of 'two': one has use_dora, the other has not"),
        (
            lambda: {
                **adapter(3),
                f"{LAYER.rpartition('.')[0]}.to_v.lora_A.weight": torch.ones(2, 16),
                f"{LAYER.rpartition('.')[0]}.to_v.lora_B.weight": torch.ones(16, 2),
            },
            "cannot take the place of 'two': it adapts '.*to_v', too",
        ),
    ],
)
def test_a_swap_that_cannot_be_leaves_the_one_that_is_there(
    two: ImagenPipeline, more: Callable[[], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        two.load_lora_weights(more(), adapter_name="two", hotswap=True)
    assert_acts(two, {1: 1.0, 2: 0.5})


# --- fused, disabled, deleted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0])
def test_the_adapters_own_weights_come_back_after_any_scale(two: ImagenPipeline, scale: float) -> None:
    two.fuse_lora(lora_scale=scale)
    assert_acts(two, {1: scale, 2: 0.5 * scale})
    two.unfuse_lora()
    assert_acts(two, {1: 1.0, 2: 0.5})


def test_an_adapter_named_is_fused_at_the_scale_though_it_slept(two: ImagenPipeline) -> None:
    two.set_adapters("two", 0.5)
    two.fuse_lora(["base", "base_unet"], adapter_names="one", lora_scale=0.5)
    assert_acts(two, {1: 0.5})
    two.unfuse_lora("base")
    assert_acts(two, {2: 0.5})


def test_one_that_sleeps_is_not_merged(two: ImagenPipeline) -> None:
    two.set_adapters("two", 0.75)
    two.merge_lora_weights()
    assert not holds_adapter(two.base_unet)
    assert_acts(two, {2: 0.75})


def test_of_disabled_adapters_none_acts_and_none_is_fused_or_loaded_unseen(two: ImagenPipeline) -> None:
    two.disable_lora()
    assert two.get_active_adapters() == []
    for act in (two.fuse_lora, two.merge_lora_weights, lambda: two.load_lora_weights(adapter(3))):
        with pytest.raises(ValueError, match="are disabled: call enable_lora first"):
            act()
    two.delete_adapters("one")
    assert torch.equal(predicted(two), merged({}))
    two.enable_lora()
    assert_acts(two, {2: 0.5})
    two.fuse_lora()
    with pytest.raises(ValueError, match="are fused into its weights"):
        two.disable_lora()


def test_names_that_stand_twice_delete_no_others(two: ImagenPipeline) -> None:
    with pytest.raises(ValueError, match=r"adapter_names \['one', 'one'\] names an adapter twice"):
        two.delete_adapters(["one", "one"])
    assert_acts(two, {1: 1.0, 2: 0.5})


@pytest.mark.filterwarnings("error")
def test_deleting_the_one_that_acts_wakes_no_other(two: ImagenPipeline) -> None:
    two.set_adapters("one")
    two.delete_adapters("one")
    assert_acts(two, {})
    assert two.get_active_adapters() == []
    two.set_adapters("two", 2.0)
    assert_acts(two, {2: 2.0})


def test_a_refusal_for_one_stage_changes_no_other(two: ImagenPipeline, tmp_path: Path) -> None:
    save_adapters(tmp_path)
    two.load_lora_weights(tmp_path / "sr256", "sr256", "one")
    two.fuse_lora(["sr256"])
    for act in (lambda: two.set_adapters("one", 0.3), lambda: two.delete_adapters("one"), two.fuse_lora):
        with pytest.raises(ValueError, match="are fused into its weights"):
            act()
        assert_acts(two, {1: 1.0, 2: 0.5})
    two.delete_adapters("two")  # which sr256 does not hold
    assert_acts(two, {1: 1.0})


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), {"base_unet": 0.5}, (0.5,)])
def test_a_weight_is_any_number(two: ImagenPipeline, weight: Any) -> None:
    two.set_adapters(["one"], weight)
    assert_acts(two, {1: 0.5})


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p: p.set_adapters("one", float("nan")), "adapter_weights is nan; give a finite number"),
        (lambda p: p.set_adapters(["one", "two"], [0.3, "x"]), "adapter_weights is 'x'; give a finite number"),
        (lambda p: p.set_adapters("one", "0.5"), "adapter_weights is '0.5'; give a finite number"),
        (lambda p: p.set_adapters("one", torch.ones(2)), "adapter_weights is tensor"),
        (lambda p: p.set_adapters(None), "adapter_names is None; expected the name of an adapter"),
        (lambda p: p.set_adapters({"one": 0.5}), "adapter_names is {'one': 0.5}; expected the name"),
        (lambda p: p.fuse_lora(lora_scale=float("inf")), "lora_scale is inf; give a finite number"),
        (lambda p: p.fuse_lora(lora_scale=None), "lora_scale is None; give a finite number"),
        (lambda p: p.fuse_lora(adapter_names=(x for x in ["one"])), "adapter_names is <generator"),
        (lambda p: p.load_lora_weights(adapter(3), scale=10**400), "scale is 10+; give a finite number"),
        (lambda p: p.load_lora_weights(adapter(3), adapter_name="base_layer"), "cannot be called 'base_layer'"),
        (lambda p: p.load_lora_weights(adapter(3), adapter_name="training"), "cannot be called 'training'"),
        (lambda p: p.load_lora_weights(adapter(3), adapter_name=3), "cannot be called 3"),
        (lambda p: p.enable_lora_hotswap(0), "target_rank is 0; expected an integer of at least 1"),
    ],
)
def test_an_argument_that_is_none_changes_nothing(two: ImagenPipeline, act: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act(two)
    assert two.get_active_adapters() == ["one", "two"]
    assert_acts(two, {1: 1.0, 2: 0.5})


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {f"{LAYER}.lora_A.weight": torch.full((2, 16), torch.nan)}, "expected finite floats"),
        (
            lambda t: t | {f"{LAYER}.lora_A.weight": torch.ones(2, 16, dtype=torch.int64)},
            "int64.*expected finite floats",
        ),
        (lambda t: t | {f"{LAYER}.lora_A.weight": torch.tensor(1.0)}, r"of shape \(\); expected finite floats"),
        (lambda t: t | {f"{LAYER}.lora_A.weight": torch.ones(0, 16)}, r"of shape \(0, 16\); expected finite floats"),
        (lambda t: t | {f"{LAYER}.lora_magnitude_vector": torch.ones(16)}, "lengths for some layers and not for"),
        (lambda t: lengths(t) | {f"{LAYER}.lora_magnitude_vector": torch.ones(3)}, r"has shape \(3,\).*needs \(16,\)"),
        (lambda t: t | {f"{LAYER}.lora_B.bias": torch.ones(3)}, r"lora_B.bias has shape \(3,\).*needs \(16,\)"),
        (lambda t: t | {f"{LAYER}.lora_A.weight": None}, "holds something else than tensors by name"),
        (lambda t: t | {3: torch.ones(2)}, "holds something else than tensors by name"),
    ],
)
def test_matrices_that_are_none_are_told_and_leave_the_others_acting(
    two: ImagenPipeline, change: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        two.load_lora_weights(change(adapter(3)))
    assert_acts(two, {1: 1.0, 2: 0.5})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"lora_alpha": None}, r"says the strengths \[None\]"),
        ({"lora_alpha": "2"}, r"says the strengths \['2'\]"),
        ({"lora_alpha": float("nan")}, r"says the strengths \[nan\]"),
        ({"lora_alpha": 2, "alpha_pattern": {"to_q": "4"}}, r"says the strengths \[2, '4'\]"),
        ({"lora_alpha": 2, "init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4', which changes"),
        ({"lora_alpha": 2, "alpha_pattern": {"(": 4}}, "cannot be loaded: "),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_a_header_that_cannot_be_is_one_line_and_leaves_the_network(
    tmp_path: Path, facts: dict[str, Any], message: str, alone: bool
) -> None:
    pipe = tiny_pipeline()
    if not alone:
        pipe.load_lora_weights(adapter(1), adapter_name="one")
        pipe.load_lora_weights(adapter(2), adapter_name="two", scale=0.5)
    with pytest.raises(ValueError, match=message) as told:
        pipe.load_lora_weights(written(tmp_path, adapter(3), **facts))
    assert len(str(told.value).splitlines()) == 1
    assert holds_adapter(pipe.base_unet) is not alone
    assert_acts(pipe, {} if alone else {1: 1.0, 2: 0.5})


@pytest.mark.parametrize("alone", [True, False])
def test_a_load_that_fails_in_peft_is_undone(monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond line")

    pipe = tiny_pipeline()
    if not alone:
        pipe.load_lora_weights(adapter(1), adapter_name="one")
        pipe.load_lora_weights(adapter(2), adapter_name="two", scale=0.5)
    monkeypatch.setattr("peft.set_peft_model_state_dict", fail)
    with pytest.raises(ValueError, match=r"^the adapter cannot be loaded: first line second line$"):
        pipe.load_lora_weights(adapter(3))
    assert holds_adapter(pipe.base_unet) is not alone
    assert pipe.get_list_adapters() == ({} if alone else {"base_unet": ["one", "two"]})
    assert pipe.get_active_adapters() == ([] if alone else ["one", "two"])
    assert_acts(pipe, {} if alone else {1: 1.0, 2: 0.5})
    monkeypatch.undo()
    pipe.load_lora_weights(adapter(3))
    assert_acts(pipe, {3: 1.0} if alone else {1: 1.0, 2: 0.5, 3: 1.0})


def test_what_a_training_did_with_its_adapter_is_not_done_to_pictures(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.load_lora_weights(written(tmp_path, adapter(1), lora_alpha=2, lora_dropout=0.5, init_lora_weights="gaussian"))
    assert_acts(pipe, {1: 1.0})
    assert torch.equal(predicted(pipe), predicted(pipe))


def test_a_target_that_names_more_than_layers_is_told() -> None:
    with pytest.raises(ValueError, match="'0' names '.*', too, which is no linear layer or convolution: give more"):
        attach(tiny_base(), 2, 4.0, ["0"])
