"""Tiny real components for tests: a sentencepiece tokenizer, a random T5, random U-Nets, a cascade 16 -> 32 -> 64."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from imagen import ImagenPipeline
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule, LinearSchedule
from imagen.text.pretrain import train_tokenizer
from unets import BaseUNet, EfficientUNet

WIDTH = 16
SIZES = (16, 32, 64)
SENTENCES = [
    f"{a} {c} {s}" for a in ("a", "two", "a small") for c in ("red", "blue", "green") for s in ("circle", "star")
]


@cache
def tiny_tokenizer() -> T5Tokenizer:
    """A real T5 tokenizer whose words are pieces."""
    return train_tokenizer(SENTENCES * 20)


def tiny_text_encoder(seed: int = 0) -> T5EncoderModel:
    """A random one-layer T5 encoder of width `WIDTH`."""
    torch.manual_seed(seed)
    words = len(tiny_tokenizer())
    config = T5Config(vocab_size=words, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval().requires_grad_(False)


def redraw(module: torch.nn.Module, seed: int) -> Any:
    """Every parameter at random, so that zero-initialised layers hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1.2 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + (parameter.ndim == 1) * 0.5)
    return module.eval()


def tiny_base(seed: int = 1, **options: Any) -> BaseUNet:
    """A 16 px base network, a few thousand parameters."""
    given = {"model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (1,), "head_dim": 8}
    return redraw(BaseUNet(**{**given, "text_dim": WIDTH, "norm_groups": 4, **options}), seed)


def tiny_sr(seed: int = 2, **options: Any) -> EfficientUNet:
    """A super-resolution network for any size that 4 divides."""
    given = {"channels": (8, 8), "num_res_blocks": (1, 1), "strides": (2, 2), "attention_levels": (1,), "heads": 2}
    return redraw(EfficientUNet(**{**given, "text_dim": WIDTH, "norm_groups": 4, **options}), seed)


def tiny_stages(**changes: Any) -> dict[str, dict[str, Any]]:
    """Stored defaults of the tiny cascade: few steps, sizes 16, 32, 64."""
    base, middle, last = SIZES
    common = {"num_inference_steps": 2, "guidance_scale": 3.0, **changes}
    return {
        "base": {"size": base, **common},
        "sr256": {"size": middle, "lowres_size": base, "aug_level": 0.2, **common},
        "sr1024": {"size": last, "lowres_size": middle, "aug_level": 0.1, **common},
    }


def tiny_pipeline(**changes: Any) -> ImagenPipeline:
    """The whole cascade in miniature; `changes` replace components or `stages`, None leaves a component out."""
    parts: dict[str, Any] = {
        "tokenizer": tiny_tokenizer(),
        "text_encoder": tiny_text_encoder(),
        "base_unet": tiny_base(),
        "base_scheduler": make_scheduler("ddpm", CosineSchedule(), "v_prediction"),
        "sr256_unet": tiny_sr(2),
        "sr256_scheduler": make_scheduler("ddpm", CosineSchedule(), "sample"),
        "sr1024_unet": tiny_sr(3),
        "sr1024_scheduler": make_scheduler("ddpm", LinearSchedule(), "epsilon"),
        "stages": tiny_stages(),
        "max_length": 32,
    }
    pipe = ImagenPipeline(**{**parts, **changes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


def sample(pipe: ImagenPipeline, *args: Any, **kwargs: Any) -> Any:
    """A call that returns tensors, with generator 0 unless told otherwise."""
    return pipe(*args, **{"generator": seeded(), "output_type": "pt", **kwargs})


class Calls:
    """Records what one network is called with."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self.texts: list[torch.Tensor] = []
        self.samples: list[dict[str, Any]] = []
        self.hook = unet.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, unet: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if args:
            self.samples.append({"z": args[0], "timestep": args[1], **kwargs})
        else:
            self.texts.append(kwargs["text"])

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()
