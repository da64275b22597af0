"""The Inception-v3 of the FID: TensorFlow's graph of 2015-12-05 as it was ported to PyTorch, without torchvision.

Szegedy et al. 2015 (arXiv:1512.00567) describe the network; Heusel et al. 2017 (arXiv:1706.08500) measure with one
published set of its weights. Those are of a graph that differs from the network of torchvision in three things: its
average pools divide by the pixels that are there and not by the padding, the last block pools by the maximum, and its
classifier has 1008 classes. Weights of this graph alone are the standard, and they are told by the checksum of the
file, which pytorch-fid publishes as pt_inception-2015-12-05-6726825d.pth and torch-fidelity, the same bytes, as
weights-inception-2015-12-05-6726825d.pth.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the published file of weights, 95628359 bytes."""
GIVE = "give pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or a file of weights with the same names"
CLASSES = 1008
Kernel = int | tuple[int, int]


class Convolution(nn.Module):
    """A convolution without bias, batch norm (epsilon 0.001) and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of convolutions side by side, and a pool; their outputs are joined over channels, in this order.

    Args:
        inputs: channels of what comes in.
        chains: each a list of (name, channels, kernel); of a name that ends in "a" and the next in "b" both read what
            came before them, and both are outputs.
        pool: "mean" and "max" keep the size, with a convolution of ``pooled`` channels behind; "half" is the maximum
            at stride 2, with none, and the last convolution of every chain has stride 2, too.
    """

    def __init__(self, inputs: int, chains: list[list[tuple[str, int, Kernel]]], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.pool, self.chains = pool, [[name for name, _, _ in chain] for chain in chains]
        for chain in chains:
            before = inputs
            for name, outputs, kernel in chain:
                halved = pool == "half" and name == chain[-1][0]
                high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
                padding = 0 if halved else (high // 2, wide // 2)
                self.add_module(name, Convolution(before, outputs, kernel, 2 if halved else 1, padding))
                before = before if name.endswith("a") else outputs
        if pool != "half":
            self.branch_pool = Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            state = x
            for name in chain:
                after = self.get_submodule(name)(state)
                if name.endswith("a"):
                    outputs.append(after)
                else:
                    state = after
            outputs.append(state)
        return torch.cat([*outputs, self._pooled(x)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "half":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "max":
            return self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
        return self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))


def _block_a(inputs: int, pooled: int) -> Mixed:
    """Figure 5 of the paper: 35 x 35, two 3 x 3 in place of a 5 x 5."""
    wide: list[tuple[str, int, Kernel]] = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    return Mixed(inputs, [[("branch1x1", 64, 1)], wide, _double(96, 3)], "mean", pooled)


def _double(outputs: int, count: int) -> list[tuple[str, int, Kernel]]:
    chain: list[tuple[str, int, Kernel]] = [("branch3x3dbl_1", 64, 1)]
    return chain + [(f"branch3x3dbl_{at}", outputs, 3) for at in range(2, count + 1)]


def _block_c(inner: int) -> Mixed:
    """Figure 6: 17 x 17, rows and columns of seven."""
    row, column = (1, 7), (7, 1)
    single: list[tuple[str, int, Kernel]] = [
        ("branch7x7_1", inner, 1),
        ("branch7x7_2", inner, row),
        ("branch7x7_3", 192, column),
    ]
    double: list[tuple[str, int, Kernel]] = [
        ("branch7x7dbl_1", inner, 1),
        ("branch7x7dbl_2", inner, column),
        ("branch7x7dbl_3", inner, row),
        ("branch7x7dbl_4", inner, column),
        ("branch7x7dbl_5", 192, row),
    ]
    return Mixed(768, [[("branch1x1", 192, 1)], single, double], "mean", 192)


def _block_d() -> Mixed:
    """17 x 17 to 8 x 8."""
    short: list[tuple[str, int, Kernel]] = [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)]
    long: list[tuple[str, int, Kernel]] = [
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
        ("branch7x7x3_4", 192, 3),
    ]
    return Mixed(768, [short, long], "half")


def _block_e(inputs: int, pool: str) -> Mixed:
    """Figure 7: 8 x 8, rows and columns of three side by side."""
    row, column = (1, 3), (3, 1)
    single: list[tuple[str, int, Kernel]] = [
        ("branch3x3_1", 384, 1),
        ("branch3x3_2a", 384, row),
        ("branch3x3_2b", 384, column),
    ]
    double: list[tuple[str, int, Kernel]] = [
        ("branch3x3dbl_1", 448, 1),
        ("branch3x3dbl_2", 384, 3),
        ("branch3x3dbl_3a", 384, row),
        ("branch3x3dbl_3b", 384, column),
    ]
    return Mixed(inputs, [[("branch1x1", 320, 1)], single, double], pool, 192)


class Inception(nn.Module):
    """Pictures (B, 3, 299, 299), (levels - 128) / 128 -> the 2048 features behind its last pool.

    The names of its parts are those of the published file.
    """

    dim = 2048

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = _block_a(192, 32)
        self.Mixed_5c = _block_a(256, 64)
        self.Mixed_5d = _block_a(288, 64)
        self.Mixed_6a = Mixed(288, [[("branch3x3", 384, 3)], _double(96, 3)], "half")
        self.Mixed_6b = _block_c(128)
        self.Mixed_6c = _block_c(160)
        self.Mixed_6d = _block_c(160)
        self.Mixed_6e = _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b = _block_e(1280, "mean")
        self.Mixed_7c = _block_e(2048, "max")
        self.fc = nn.Linear(2048, CLASSES)  # of no use to features; the file holds it

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


def load_inception(path: Path) -> tuple[Inception, bool]:
    """The network in eval mode with a file's weights (``.pth`` or ``.safetensors``), and whether it is the standard.

    Only the published file itself is: its SHA-256 is known, and that of its tensors in another file is not.

    Raises:
        ValueError: the file cannot be read, or holds other weights than the network has.
    """
    with path.open("rb") as stream:
        standard = hashlib.file_digest(stream, "sha256").hexdigest() == SHA256
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        reason = type(error).__name__  # what torch writes is long, and advises to trust the file
        raise ValueError(f"{str(path)!r} holds no weights that can be read ({reason}); {GIVE}") from error
    # Meta: nothing is drawn that the file replaces.
    with torch.device("meta"):
        network = Inception()
    _check_state(path, state, network)
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state = {**state, key: torch.zeros(value.shape, dtype=value.dtype)}
    network.load_state_dict(state, assign=True)
    return network.float().requires_grad_(False).eval(), standard


def _check_state(path: Path, state: object, network: Inception) -> None:
    """Refuse a file that holds other weights than the network has. Raises: ValueError, naming the first."""
    needed = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    told = f"{str(path)!r} does not hold the weights of the FID's Inception: "
    if not isinstance(state, Mapping):
        raise ValueError(f"{told}it is a {type(state).__name__}; {GIVE}")
    given = {key for key in state if not str(key).endswith("num_batches_tracked")}
    if odd := sorted(map(str, needed.keys() ^ given)):
        what = "lacks" if odd[0] in needed else "has"
        raise ValueError(f"{told}it {what} {odd[0]}, one of {len(odd)} names that differ; {GIVE}")
    for key, value in needed.items():
        shape = tuple(getattr(state[key], "shape", ()))
        if shape != tuple(value.shape):
            raise ValueError(f"{told}{key} is {shape}, expected {tuple(value.shape)}; {GIVE}")
