"""Peak memory of one guided call of the paper's 256 -> 1024 network (appendix F.3), by calculation: no weights, no GPU.

    python -m benchmarks.paper_memory

The network of configs/paper/sr1024.yaml at full size in bfloat16, two rows a picture, counted as
:mod:`benchmarks.if_memory` counts; what a device's allocator and convolution library need comes on top.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from benchmarks.if_memory import GB
from benchmarks.speed.work import activations, weights
from unets import EfficientUNet

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "paper" / "sr1024.yaml"
SHAPES = ((512, 512), (1024, 1024), (1536, 1024), (2048, 2048))
TOKENS = 128
ROWS = 2  # of a picture with guidance


@torch.no_grad()
def measured(height: int, width: int) -> tuple[int, int]:
    """Bytes of the weights, and of what one call for a picture of these sides makes at its peak."""
    arguments = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["unet"]
    with torch.device("meta"):
        network = EfficientUNet(**{name: value for name, value in arguments.items() if name != "kind"})
        network = network.bfloat16().eval()
        picture = torch.empty(ROWS, 3, height, width, dtype=torch.bfloat16)
        text = torch.empty(ROWS, TOKENS, arguments["text_dim"], dtype=torch.bfloat16)
        inputs = {"sample": picture, "timestep": torch.empty(ROWS), "lowres": picture.clone()}
        inputs |= {"context": network(text=text), "aug_timestep": torch.empty(ROWS)}
        return weights(network), activations(network, inputs)


def main() -> None:
    """Print the table of docs/sampling.md."""
    print(f"bfloat16, one picture with guidance, {TOKENS} tokens; GB = 1e9 bytes")
    for height, width in SHAPES:
        held, made = measured(height, width)
        each = made / (height * width)
        print(f"{height} x {width}: weights {held / GB:.2f}, one call {made / GB:.2f} ({each:.0f} bytes a pixel)")


if __name__ == "__main__":
    main()
