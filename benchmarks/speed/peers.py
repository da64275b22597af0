"""The contestants: our pipeline and diffusers' with the same random weights, made on the device; and imagen-pytorch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import T5Config

from benchmarks.speed.sections import NotHere
from imagen import ImagenPipeline
from imagen.convert.configs import stage_settings, unet_arguments
from imagen.convert.deepfloyd_if import MAX_LENGTH, TEXT
from tests.convert import released
from unets import BaseUNet

SEED = 20220523


def seeded(device: torch.device | str = "cpu") -> torch.Generator:
    """The same numbers at every run."""
    return torch.Generator(device).manual_seed(SEED)


#: The last weights of a block's residual branch and of an attention, in diffusers' networks and ours.
LAST = ("conv2.weight", "to_out.0.weight")
SMALL = 0.2


def stir(network: nn.Module) -> None:
    """Random numbers for weights that begin as zeros, which hide mistakes and are faster on a card; small branches.

    A trained network's blocks change little of what they are given. With branches as large as torch draws them each
    block makes the rounding of those before it larger, until networks in bfloat16 are told from each other by that.
    """
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and not weight.any():
                weight.normal_(std=(3 * weight[0].numel()) ** -0.5)  # as torch draws others
            if name.endswith(LAST):
                weight.mul_(SMALL)


def pair(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> tuple[BaseUNet, UNet2DConditionModel]:
    """One network twice: ours and diffusers', which share the storage of their random weights."""
    torch.manual_seed(SEED)
    with torch.device(device):
        theirs = UNet2DConditionModel(**config).to(dtype).eval().requires_grad_(False)
    stir(theirs)
    with torch.device("meta"):
        ours = BaseUNet(**unet_arguments(config, "the peer's configuration")).to(dtype)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return ours.eval().requires_grad_(False), theirs


def pipelines(ours: BaseUNet, theirs: UNet2DConditionModel, size: int) -> tuple[ImagenPipeline, Any]:
    """Stage I or II of both, each around its network: same scheduler, no text encoder, nothing that checks pictures."""
    second = ours.facts.lowres_channels > 0
    scheduler = released.scheduler(1.0 if second else 1.5)
    slot, lowres = ("sr256", size // 4) if second else ("base", None)
    stages = {slot: stage_settings(scheduler.config, size, lowres, "the peer's scheduler")}
    parts: dict[str, Any] = {f"{slot}_unet": ours, f"{slot}_scheduler": scheduler}
    mine = ImagenPipeline(**parts, stages=stages, text=TEXT, max_length=MAX_LENGTH)
    nothing = dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker"))
    more: dict[str, Any] = {}
    if second:
        more["image_noising_scheduler"] = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    kind: Any = IFSuperResolutionPipeline if second else IFPipeline
    peer = kind(
        unet=theirs,
        scheduler=released.scheduler(1.0 if second else 1.5),
        requires_safety_checker=False,
        **nothing,
        **more,
    )
    for pipe in (mine, peer):
        pipe.set_progress_bar_config(disable=True)
    return mine, peer


def prompts(count: int, tokens: int, width: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random embeddings of as many prompts, and of their empty ones."""
    shape, generator = (count, tokens, width), seeded(device)
    names = ("prompt_embeds", "negative_prompt_embeds")
    return {name: torch.randn(shape, device=device, generator=generator).to(dtype) for name in names}


def compiled(pipe: ImagenPipeline, unet: BaseUNet, whole: bool, how: Mapping[str, Any]) -> str:
    """Compile our sampler: the whole network, or block by block as ``pipe.compile`` does; returns what was done.

    The one place that knows how: a pipeline without ``compile`` has its network compiled whole.
    """
    blocks = None if whole else getattr(pipe, "compile", None)
    if blocks is None:
        unet.compile(**how)
        return f"unet.compile({said(how)})"
    blocks(**how)
    return f"pipe.compile({said(how)})"


def said(arguments: Mapping[str, Any]) -> str:
    """As they are written in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


# --- imagen-pytorch ---------------------------------------------------------------------------------------------------

HELPED = (
    "imagen-pytorch asks the Hub for a T5's configuration when it is imported, and is given one; without torchvision, "
    "which a training step does not call, a hollow one stands in for it while it is imported"
)


def imagen_pytorch() -> ModuleType:
    """The package, helped to be imported without a network. Raises: NotHere where it is not installed."""
    if importlib.util.find_spec("imagen_pytorch") is None:
        raise NotHere("imagen-pytorch is not installed; benchmarks/README.md says how")
    hollow = [] if importlib.util.find_spec("torchvision") else ["torchvision", "torchvision.transforms"]
    config = mock.patch.object(T5Config, "from_pretrained", return_value=T5Config(d_model=768))
    if hollow:
        importlib.import_module("datasets")  # it looks whether torchvision is there, and would believe the hollow one
    sys.modules.update({name: mock.MagicMock() for name in hollow})
    try:
        with config:
            return importlib.import_module("imagen_pytorch")
    finally:
        for name in hollow:
            del sys.modules[name]


def text_like(shape: Sequence[int], device: torch.device) -> Tensor:
    """Random embeddings as a cache of texts holds them."""
    return torch.randn(tuple(shape), device=device)
