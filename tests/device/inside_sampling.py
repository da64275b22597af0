"""Pictures made on a device that is not the CPU; run by test_device.py, in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from imagen.cascade.runner import Job, Stage, run_stage
from imagen.conditions.label import Labels
from imagen.diffusion.sampling import SAMPLERS, make_scheduler
from imagen.diffusion.schedules import CosineSchedule
from imagen.stages.spec import StageDefaults
from tests.device import pretend
from tests.factories import sample, seeded, tiny_base, tiny_pipeline, tiny_sr

FAR = pretend.register()
CPU = torch.device("cpu")
PROMPTS = ["a red star", "two blue circle"]
RULES: dict[str, Any] = {kind: make_scheduler(kind, CosineSchedule(), "v_prediction") for kind in SAMPLERS}
RULES["stochastic dpm++"] = DPMSolverMultistepScheduler.from_config(
    RULES["dpm++"].config, algorithm_type="sde-dpmsolver++"
)
RULES["learned"] = DDPMScheduler.from_config(RULES["ddpm"].config, variance_type="learned_range")
GUIDANCES = (
    "cfg",
    "interval(low=-2, high=2)",
    "apg(norm=2, momentum=-0.5)",
    "rescaled+cfg",
    "interval(low=0)+rescaled+apg",
)


def run(rule: str, device: torch.device, **settings: Any) -> tuple[Tensor, list[str]]:
    """The pictures of a stage on the CPU, and its waits."""
    options = {"text_dim": None, "classes": {"label": 3}, "attention_levels": ()}
    options |= {"out_channels": 6} if rule == "learned" else {}
    given = StageDefaults(**{"size": 16, "num_inference_steps": 3, "guidance_scale": 3.0, **settings})
    lowres = given.lowres_size is not None
    unet = (tiny_sr(**options) if lowres else tiny_base(**options, channel_mult=(1,))).to(device)
    job = Job([Labels((1,), device)], [1, 2], device)
    start = list(torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)) if lowres else []
    with pretend.waits() as waits, torch.no_grad():
        made, shown = run_stage(Stage("base", unet, RULES[rule], given), job, start)
    assert (made.device, shown.device.type) == (device, "cpu")
    assert torch.equal(made.cpu(), shown)
    return shown, waits


@pytest.mark.parametrize("rule", RULES)
def test_a_stage_waits_once_whatever_its_steps(rule: str) -> None:
    for steps in (1, 4):
        here, _ = run(rule, CPU, num_inference_steps=steps)
        there, waits = run(rule, FAR, num_inference_steps=steps)
        torch.testing.assert_close(there, here, rtol=0, atol=2e-4)
        assert len(waits) == 1, waits


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_no_guidance_waits(guidance: str) -> None:
    here, _ = run("ddpm", CPU, guidance=guidance)
    there, waits = run("ddpm", FAR, guidance=guidance)
    torch.testing.assert_close(there, here, rtol=0, atol=2e-4)
    assert len(waits) == 1, waits


@pytest.mark.parametrize(
    "changes", [{}, {"lowres_consistency": 2}, {"aug_schedule": {"kind": "cosine_discrete"}}], ids=str
)
def test_a_stage_that_starts_from_pictures_of_the_cpu_waits_once(changes: dict[str, Any]) -> None:
    for size, space in ((16, "lowres"), (20, "upsampled")):
        given = {"size": size, "lowres_size": 8, "aug_level": 0.3, "aug_space": space, **changes}
        here, _ = run("ddpm", CPU, **given)
        there, waits = run("ddpm", FAR, **given)
        torch.testing.assert_close(there, here, rtol=0, atol=2e-4)
        assert len(waits) == 1, waits


def test_a_cascade_waits_once_a_stage_and_twice_for_its_text() -> None:
    """For the text transformers and the pipeline look at a mask, whatever is made of it."""
    pipe = tiny_pipeline().to(FAR)
    for steps, more in ((3, {}), (1, {"negative_prompt": "a green star"})):
        with pretend.waits() as waits:
            there = sample(pipe, PROMPTS, num_inference_steps=steps, **more).images
        assert sum("run_stage" in wait for wait in waits) == 3
        assert len(waits) == 3 + 2 * (1 + len(more)), waits
    here = sample(tiny_pipeline(), PROMPTS, num_inference_steps=steps, **more).images
    torch.testing.assert_close(there, here, rtol=0, atol=2e-4)


def test_whatever_a_call_is_given_reaches_the_device() -> None:
    classes, channels = {"label": 3}, {"mask": 4}
    far, near = (
        tiny_pipeline(base_unet=tiny_base(classes=classes, extra_channels=channels)).to(device) for device in (FAR, CPU)
    )
    mask, start = torch.ones(4, 16, 16), torch.randn(1, 3, 16, 16, generator=seeded())
    mask[3, 4:9] = 0
    encoded = near.encode_prompt(PROMPTS[:1], negative_prompt="two star")._asdict()
    for given in (
        {"prompt": PROMPTS[0], "label": 2, "mask": mask},
        {"prompt": PROMPTS[0], "latents": start},
        {**encoded, "num_images_per_prompt": 2},
        {"prompt": PROMPTS[0], "image": torch.rand(3, 16, 16, generator=seeded()), "lowres_consistency": 2},
        {"prompt": PROMPTS[0], "negative_prompt": "two star", "sr_batch_size": 1, "guidance": "interval(high=1)"},
    ):
        there, here = (sample(pipe, num_inference_steps=1, **given).images for pipe in (far, near))
        torch.testing.assert_close(there, here, rtol=0, atol=2e-4)


def test_a_callback_looks_and_changes_there() -> None:
    def darken(pipe: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert all(tensor.device == pipe.device for tensor in tensors.values())
        return {"z": tensors["z"] - 0.1} if step == 1 else {}

    names = ("z", "x0", "prompt_embeds")
    given = {
        "num_inference_steps": 3,
        "size": 16,
        "callback_on_step_end": darken,
        "callback_on_step_end_tensor_inputs": names,
    }
    far, near = (sample(tiny_pipeline().to(device), PROMPTS, **given).images for device in (FAR, CPU))
    torch.testing.assert_close(far, near, rtol=0, atol=2e-4)
    assert not torch.equal(near, sample(tiny_pipeline(), PROMPTS, num_inference_steps=3, size=16).images)


def test_a_stop_is_heard_after_the_step_although_nobody_looks() -> None:
    pipe, steps = tiny_pipeline().to(FAR), []

    def stop(*_: Any) -> None:
        steps.append(len(steps))
        pipe._interrupt = len(steps) == 3

    pipe.base_unet.register_forward_hook(stop)
    made = sample(pipe, PROMPTS, num_inference_steps=6, guidance_scale=1.0).stages
    assert steps == [0, 1, 2]
    assert list(made) == [16]


def test_one_look_a_step_is_found() -> None:
    pipe = tiny_pipeline().to(FAR)
    pipe.base_unet.register_forward_hook(lambda unet, given, out: print(out.sum().item()) if given else None)
    with pretend.waits() as waits:
        sample(pipe, PROMPTS, num_inference_steps=4, size=16)
    assert sum("_local_scalar_dense" in wait for wait in waits) == 4 + 1


def test_a_tensor_left_on_the_cpu_is_found() -> None:
    pipe = tiny_pipeline().to(FAR)
    bias = torch.zeros(3, 1, 1)
    pipe.base_unet.register_forward_hook(lambda unet, given, out: out + bias if given else None)
    with pytest.raises(RuntimeError, match="expected all tensors on pretend:0"):
        sample(pipe, PROMPTS, size=16)


def test_what_the_device_itself_refuses_and_counts() -> None:
    x = torch.arange(6.0, device=FAR)
    for refused in (
        lambda: x + torch.ones(6),
        lambda: torch.cat([x, torch.ones(1)]),
        lambda: torch.lerp(x, x, torch.tensor(0.5)),
        lambda: x.normal_(generator=torch.Generator()),
        lambda: x.numpy(),
    ):
        with pytest.raises((RuntimeError, TypeError), match=r"pretend:0"):
            refused()
    counted = {
        1: (
            lambda: x.sum().item(),
            lambda: x.tolist(),
            lambda: x.cpu(),
            lambda: x.cpu().sum().item(),
            lambda: x[x > 2],
            lambda: x[torch.tensor([1])],
            lambda: x.nonzero(),
            lambda: bool((x > 2).all()),
            lambda: torch.equal(x, x),
            lambda: torch.ones(3).to(FAR),
            lambda: torch.tensor([1.0], device=FAR),
            lambda: x.copy_(torch.ones(6)),
            lambda: torch.ones(6).copy_(x),
            lambda: torch.ones(6).copy_(x, non_blocking=True),
            lambda: torch.linalg.solve(torch.eye(2, device=FAR), x[:2]),
        ),
        0: (
            lambda: x + 1,
            lambda: x * torch.tensor(2.0),
            lambda: torch.where(x > 2, x, 0.0),
            lambda: torch.ones(3).to(FAR, non_blocking=True),
            lambda: torch.full((3,), 2.0, device=FAR),
            lambda: x[torch.arange(2, device=FAR)],
            lambda: x.clone().masked_fill_(x > 2, 1.0),
            lambda: x.topk(2),
            lambda: torch.ones(3).sum().item(),
        ),
    }
    for count, calls in counted.items():
        for number, call in enumerate(calls):
            with pretend.waits() as waits:
                call()
            assert len(waits) == count, (count, number, waits)
    made = x.new_empty(4).normal_(generator=torch.Generator(FAR).manual_seed(1))
    assert torch.equal(made.cpu(), torch.empty(4).normal_(generator=seeded(1)))
