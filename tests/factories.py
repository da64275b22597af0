"""Tiny real components for tests: tokenizers, a random T5, a random CLIP, random U-Nets, a cascade 16 -> 32 -> 64."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import models, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from imagen import ImagenPipeline
from imagen.cascade.adapter_files import save_adapter
from imagen.cascade.adapters import attach
from imagen.diffusion.sampling import make_scheduler
from imagen.diffusion.schedules import CosineSchedule, LinearSchedule
from imagen.stages.folder import ADAPTER as WEIGHTS
from imagen.stages.folder import SavedStage, write_run
from imagen.text.pretrain import train_tokenizer
from imagen.text.reading import TextDefaults
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


@cache
def tiny_clip_tokenizer() -> CLIPTokenizer:
    """A real CLIP tokenizer (byte-level pairs, start and end tokens), whose commonest words are one token each."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    own, suffix = CLIPTokenizer().backend_tokenizer, "</w>"
    own.model = models.BPE(continuing_subword_prefix="", end_of_word_suffix=suffix, unk_token=end)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[start, end],
        initial_alphabet=alphabet,
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    own.train_from_iterator(SENTENCES * 5, trainer)
    learned = json.loads(own.to_str())["model"]
    return CLIPTokenizer(vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]])


def tiny_whole_clip(seed: int = 0, positions: int = 20, layers: int = 2) -> CLIPModel:
    """A random CLIP of both towers, texts of width `WIDTH`, whose every weight counts."""
    torch.manual_seed(seed)
    common = {"intermediate_size": 32, "num_attention_heads": 2}
    tokenizer = tiny_clip_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    text = {"vocab_size": len(tokenizer), "hidden_size": WIDTH, "max_position_embeddings": positions, **ids}
    vision = {"hidden_size": 8, "image_size": 8, "patch_size": 4, "num_hidden_layers": 1}
    text_config = {**text, "num_hidden_layers": layers, **common}
    model = CLIPModel(CLIPConfig(text_config=text_config, vision_config={**vision, **common}, projection_dim=8))
    return redraw(model, seed).requires_grad_(False)


def tiny_clip(seed: int = 0, positions: int = 20) -> CLIPTextModel:
    """The text tower of such a CLIP, alone."""
    return tiny_whole_clip(seed, positions).text_model


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


def save_stage(model: Path, slot: str, unet: Any, rule: Any, **stage: Any) -> SavedStage:
    """A stage as a run exports it into its model folder; `stage` are fields of a SavedStage."""
    unet.save_pretrained(model / "unet")
    rule.save_pretrained(model / "scheduler")
    given = {"text": TextDefaults(), "max_length": 16, **stage}
    saved = SavedStage(slot=slot, unet=model / "unet", scheduler=model / "scheduler", **given)
    write_run(model, saved)
    return saved


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


def save_adapters(folder: Path) -> None:
    """Adapters of to_q that change pictures, of a tiny base stage and a tiny 16 -> 32 one, in folder/base and sr256."""
    for name, network in (("base", tiny_base()), ("sr256", tiny_sr(2))):
        attach(network, 2, 4.0, ["to_q"])
        for key, parameter in network.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, generator=seeded())
        (folder / name).mkdir()
        save_adapter(folder / name / WEIGHTS, dict(network.named_parameters()), 2, 4.0, ["to_q"])


def tiny_base_alone() -> ImagenPipeline:
    """A pipeline of a base stage alone that makes pictures of 64 px, as the commands of evaluation judge them."""
    pipe = tiny_pipeline(stages={**tiny_stages(), "base": {"size": 64, "guidance_scale": 3.0}}, max_length=99)
    pipe.register_modules(sr256_unet=None, sr256_scheduler=None, sr1024_unet=None, sr1024_scheduler=None)
    return pipe


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A folder of a drawn CLIP in the layout of the released ones, that sees 8 px and reads 80 tokens."""
    side = {"height": 8, "width": 8}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size=side)
    for part in (tiny_whole_clip(seed, 80), tiny_clip_tokenizer(), processor):
        part.save_pretrained(folder)
    return folder


def save_siglip(folder: Path, seed: int = 0) -> Path:
    """A folder of a drawn SigLIP that sees 8 px and reads 80 tokens, with the T5's tokenizer."""
    common = {"intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "hidden_size": WIDTH}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    text = {"vocab_size": len(tiny_tokenizer()), "max_position_embeddings": 80, "projection_size": WIDTH, **ids}
    config = SiglipConfig(text_config={**common, **text}, vision_config={**common, "image_size": 8, "patch_size": 4})
    processor = SiglipImageProcessorPil(size={"height": 8, "width": 8})
    for part in (redraw(SiglipModel(config), seed), tiny_tokenizer(), processor):
        part.save_pretrained(folder)
    return folder
