"""The cascade on a card: every dtype, offloaded, with xformers, compiled."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from benchmarks.speed.peers import compiled
from imagen import ImagenPipeline
from tests.factories import sample, tiny_pipeline

PROMPTS = ["a red circle", "two blue star"]
#: Mean difference of pictures in [0, 1] from those that the processor makes in float32; tiny random networks amplify.
FAR = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
STEPS = {"num_inference_steps": 3}


def far(made: torch.Tensor, reference: torch.Tensor, what: str) -> float:
    """Mean difference, told in the test's output (pytest -rP) with the largest one."""
    off = (made.float().cpu() - reference.float().cpu()).abs()
    print(f"drift of {what}: mean {off.mean():.1e}, largest {off.max():.1e}")
    return float(off.mean())


def on_card(dtype: torch.dtype = torch.float32) -> ImagenPipeline:
    return tiny_pipeline().to("cuda", dtype)


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    """Pictures of the processor, in float32."""
    return torch.as_tensor(sample(tiny_pipeline(), PROMPTS, **STEPS).images)


@pytest.mark.parametrize("dtype", FAR, ids=str)
def test_pictures_are_those_of_the_processor(dtype: torch.dtype, reference: torch.Tensor) -> None:
    made = sample(on_card(dtype), PROMPTS, **STEPS).images
    assert made.shape == reference.shape
    assert torch.isfinite(made).all()
    assert far(made, reference, f"{dtype} on the card") < FAR[dtype]


def test_a_call_repeats_itself_to_the_bit() -> None:
    pipe = on_card()
    assert torch.equal(sample(pipe, PROMPTS, **STEPS).images, sample(pipe, PROMPTS, **STEPS).images)


@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_networks_make_the_same_pictures(how: str) -> None:
    wanted = sample(on_card(), PROMPTS, **STEPS).images
    pipe = tiny_pipeline()
    getattr(pipe, how)()
    made = sample(pipe, PROMPTS, **STEPS).images
    assert far(made, wanted, how) < 1e-5
    assert {parameter.device.type for parameter in pipe.base_unet.parameters()} <= {"cpu", "meta"}


@pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="xformers is not installed")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_xformers_attends_to_the_same(dtype: torch.dtype) -> None:
    plain, other = on_card(dtype), on_card(dtype)
    for slot in ("base", "sr256", "sr1024"):
        getattr(other, f"{slot}_unet").enable_xformers_memory_efficient_attention()
    wanted, made = (sample(pipe, PROMPTS, **STEPS).images for pipe in (plain, other))
    assert far(made, wanted, f"xformers in {dtype}") < FAR[dtype]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("whole", [True, False], ids=["network", "pipeline"])
def test_compiled_networks_make_the_same_pictures(whole: bool) -> None:
    pipe = on_card()
    wanted = sample(pipe, PROMPTS, size=16, **STEPS).images
    how: dict[str, Any] = {"fullgraph": True, **({"mode": "reduce-overhead"} if whole else {})}
    told = compiled(pipe, pipe.base_unet, whole, how)
    for prompts in (PROMPTS, PROMPTS):  # the second call replays what the first one recorded
        made = sample(pipe, prompts, size=16, **STEPS).images
        assert far(made, wanted, told) < FAR[torch.float32]
