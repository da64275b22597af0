"""Peak memory of sampling with DeepFloyd IF-I-XL and IF-II-L, by calculation: no weights, no GPU.

    python -m benchmarks.if_memory

Both networks are built at full size on the meta device and run once, as a step of guided sampling does (two rows a
picture), while every storage that an operation makes is counted from its birth to its end. What a real device adds (the
allocator's rounding, a convolution's workspace, the CUDA context) is not in the figures. Attention counts as it does
where scores are written out; a fused kernel needs less.
"""

from __future__ import annotations

import argparse
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import T5Config, T5EncoderModel

from imagen.convert.configs import unet_arguments
from tests.convert.released import IF_I_XL, IF_II_L
from unets import BaseUNet

#: T5 v1.1-XXL, of which IF uses the encoder.
T5_XXL = T5Config(
    d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=32128
)
TOKENS = 77
GB = 1e9


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive, and their peak."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in network.state_dict().values()}  # counted as weights

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._seen:
                self._seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return out


def weights(network: nn.Module) -> int:
    """Bytes of the parameters, each counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


@torch.no_grad()
def activations(network: nn.Module, inputs: dict[str, Any]) -> int:
    """Peak bytes of what one call makes."""
    with Live(network) as live:
        network(**inputs)
    return live.peak


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
        encoder = T5EncoderModel(T5_XXL).half().eval()
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
