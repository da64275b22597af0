"""Peak memory of sampling with DeepFloyd IF-I-XL and IF-II-L, by calculation: no weights, no GPU.

    python -m benchmarks.if_memory

Both networks are built at full size on the meta device and run once, as a step of guided sampling does (two rows a
picture), while every storage that an operation makes is counted from its birth to its end. What a real device adds (the
allocator's rounding, a convolution's workspace, the CUDA context) is not in the figures. Attention counts as it does
where scores are written out; a fused kernel needs less.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import T5Config, T5EncoderModel

from benchmarks.speed.sizes import T5_XXL
from benchmarks.speed.work import activations, weights
from imagen.convert.configs import unet_arguments
from tests.convert.released import IF_I_XL, IF_II_L
from unets import BaseUNet

TOKENS = 77
GB = 1e9


def stage(config: dict[str, Any], pictures: int) -> tuple[int, int]:
    """Bytes of a stage's weights and of one guided call for so many pictures, in float16."""
    with torch.device("meta"):
        network = BaseUNet(**unet_arguments(config, "config.json")).half().eval()
        rows, size = 2 * pictures, config["sample_size"]
        picture = torch.empty(rows, 3, size, size, dtype=torch.float16)
        inputs: dict[str, Any] = {
            "sample": picture,
            "timestep": torch.empty(rows),
            "text": torch.empty(rows, TOKENS, 4096, dtype=torch.float16),
        }
        if config["in_channels"] == 6:
            inputs |= {"lowres": picture.clone(), "aug_timestep": torch.empty(rows)}
    return weights(network), activations(network, inputs)


def text(pictures: int) -> tuple[int, int]:
    """The same of the encoder, for the prompts and the empty one."""
    with torch.device("meta"):
        encoder = T5EncoderModel(T5Config(**T5_XXL)).half().eval()
        tokens = torch.empty(2 * pictures, TOKENS, dtype=torch.long)
    return weights(encoder), activations(encoder, {"input_ids": tokens})


def main() -> None:
    """Print the table of docs/checkpoints.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=1, help="made at once")
    pictures = parser.parse_args().pictures
    parts = {"T5-XXL": text(pictures), "IF-I-XL": stage(IF_I_XL, pictures), "IF-II-L": stage(IF_II_L, pictures)}
    print(f"float16, {pictures} picture(s) with guidance, {TOKENS} tokens; GB = 1e9 bytes")
    for name, (held, made) in parts.items():
        print(f"{name:8}  weights {held / GB:5.2f}  one call {made / GB:5.2f}  together {(held + made) / GB:5.2f}")
    held = [part[0] for part in parts.values()]
    print(f"all at once {(sum(held) + max(part[1] for part in parts.values())) / GB:5.2f}")
    print(f"one at a time (enable_model_cpu_offload) {max(sum(part) for part in parts.values()) / GB:5.2f}")
    stages = [parts["IF-I-XL"], parts["IF-II-L"]]
    print(
        f"text encoded and freed, both stages held {(sum(s[0] for s in stages) + max(s[1] for s in stages)) / GB:5.2f}"
    )


if __name__ == "__main__":
    main()
