"""What a sampling step does beside the network: its time, what it asks of the device, and how often it waits for it.

python benchmarks/sampling_step.py [--model pretrained/shapes] [--pairs 5] [--out FILE] [--before OTHER.json]

The base stage draws one picture, guided, in a few steps and in many; a step is their difference over the steps between,
so that what is done once a call is left out, as is the network. Times are CPU time on the CPU, medians. Operators and
waits are counted on the device that tests/device pretends, where a value that is looked at is noted as on CUDA.

FILE.md and FILE.json are written; another tree: PYTHONPATH=OTHER_TREE python benchmarks/sampling_step.py --out before,
then with this tree --before before.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import imagen
from imagen import ImagenPipeline

FEW, MANY = 4, 24
SAMPLERS = {
    "ddpm": diffusers.DDPMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
PRETEND = Path(__file__).resolve().parents[1] / "tests" / "device" / "pretend.py"


class Beside(TorchDispatchMode):
    """Counts operators that a device is asked for, views left out, but not those of a network."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.calls, self.inside = device, Counter[str](), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        there = any(isinstance(x, Tensor) and x.device.type == self.device for x in tree_leaves((args, out)))
        if there and not self.inside and not func.is_view:
            self.calls[func.overloadpacket.__name__] += 1
        return out


class Watched:
    """A pipeline whose network is told apart from all else.

    Attributes:
        spent: CPU seconds of the network, since it was set to 0.
    """

    def __init__(self, pipe: ImagenPipeline) -> None:
        self.pipe, self.spent, self.began, self.beside = pipe, 0.0, 0.0, Beside("cpu")
        pipe.base_unet.register_forward_pre_hook(self.enter)
        pipe.base_unet.register_forward_hook(self.leave)

    def enter(self, *_: Any) -> None:
        """The network begins."""
        self.beside.inside, self.began = True, time.process_time()

    def leave(self, *_: Any) -> None:
        """It is done."""
        self.spent += time.process_time() - self.began
        self.beside.inside = False

    def draw(self, steps: int) -> float:
        """CPU seconds of a call without its network's."""
        self.spent, begin = 0.0, time.process_time()
        generator = torch.Generator().manual_seed(0)
        self.pipe("a red circle above a blue square", size=64, num_inference_steps=steps, generator=generator)
        return time.process_time() - begin - self.spent

    def count(self, steps: int, pretend: Any) -> tuple[Counter[str], int]:
        """What a call asks of the device, by name, and how often it waits; the network's own waits are counted."""
        self.beside = Beside(pretend.NAME)
        with pretend.waits() as waits, self.beside:
            self.draw(steps)
        return self.beside.calls, len(waits)


def timed(watched: Watched, pairs: int) -> list[float]:
    """Microseconds of a step."""
    watched.draw(FEW)
    return [(watched.draw(MANY) - watched.draw(FEW)) / (MANY - FEW) * 1e6 for _ in range(pairs)]


def counted(watched: Watched, pretend: Any) -> dict[str, Any]:
    """Operators and waits of a step."""
    (more, late), (less, early) = (watched.count(steps, pretend) for steps in (MANY, FEW))
    more.subtract(less)
    each = {name: number / (MANY - FEW) for name, number in more.most_common() if number}
    return {"operators": each, "waits": (late - early) / (MANY - FEW)}


def pretended() -> Any:
    """The module of this tree, whichever tree is measured."""
    spec = importlib.util.spec_from_file_location("pretend", PRETEND)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretend"] = module
    spec.loader.exec_module(module)
    return module


def run(model: str, pairs: int) -> dict[str, Any]:
    """Every sampler, and what it takes to repeat them."""
    pipe = ImagenPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    watched = Watched(pipe)
    rules = {name: kind.from_config(pipe.base_scheduler.config) for name, kind in SAMPLERS.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, rule in rules.items():
        pipe.register_modules(base_scheduler=rule)
        rows[name] = {"us": timed(watched, pairs)}
    pretend = pretended()
    there = pretend.register()
    # earlier trees ask whatever device whether it has autocast
    getattr(torch, there.type).get_amp_supported_dtype = list
    pipe.to(there)
    for name, rule in rules.items():
        pipe.register_modules(base_scheduler=rule)
        rows[name] |= counted(watched, pretend)
    git = ["git", "-C", str(Path(imagen.__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    return {
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "hardware": f"{torch.get_num_threads()} CPU thread(s)",
        "rows": rows,
    }


def report(sides: dict[str, dict[str, Any]]) -> str:
    """Markdown: one row a sampler, three columns a tree."""
    head = "".join(f" {side}: us beside the network | operators | waits |" for side in sides)
    lines = [f"| sampler |{head}", "|---|" + "---|---|---|" * len(sides)]
    for name in SAMPLERS:
        found = [side["rows"][name] for side in sides.values()]
        cells = [
            f" {statistics.median(row['us']):.0f} ({min(row['us']):.0f} to {max(row['us']):.0f}) |"
            f" {sum(row['operators'].values()):.0f} | {row['waits']:g} |"
            for row in found
        ]
        lines.append(f"| {name} |{''.join(cells)}")
    for side, content in sides.items():
        most = {name: list(row["operators"].items())[:8] for name, row in content["rows"].items()}
        lines += ["", f"{side}: commit {content['commit']}; {content['versions']}; {content['hardware']}. Most called:"]
        lines += [f"- {name}: {', '.join(f'`{op}` {number:g}' for op, number in most[name])}" for name in SAMPLERS]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained/shapes")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--before", type=Path)
    args = parser.parse_args()
    found = run(args.model, args.pairs)
    sides = {} if args.before is None else {"before": json.loads(args.before.read_text())}
    print(text := report({**sides, "after" if sides else "now": found}))
    if args.out is not None:
        args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
