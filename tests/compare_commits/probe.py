"""What is run in each of the two trees, in a process of its own: draws, trains, loads, and writes down what comes out.

Only interfaces that outlive a refactoring are used: train.py and its configuration, sample.py, the compose command,
`from imagen import ImagenPipeline`, saved folders. This file imports nothing of the tree that it lies in.

Every check has a folder of its own under RESULTS, with arrays, pictures, metrics and weights; or an error.txt.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

PROMPTS = ["a red circle above a blue square", "three yellow stars on a navy background", "a striped blue circle"]
SAMPLERS = ("dpm++", "ddim", "unipc", "euler", "heun")
MODEL = "pretrained/shapes"
BASES = ("base, text, muon", "base, learned variance")
UPPER = "super-resolution, crop"


class Probe:
    """One side's checks.

    Args:
        side: "before" or "after".
        work: the folder that both sides share; this one writes into work/results/side and work/runs/side.
        quick: fewer steps, nothing at 1024 px.
    """

    def __init__(self, side: str, work: Path, quick: bool) -> None:
        self.side, self.work, self.quick = side, work, quick
        self.results, self.runs = work / "results" / side, work / "runs" / side
        self.steps = 20 if quick else 50

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[Path]:
        """The folder of a check's results; what goes wrong is kept there too, and the next check follows."""
        folder, start = self.results / name, time.monotonic()
        folder.mkdir(parents=True)
        try:
            yield folder
        except Exception as error:
            traceback.print_exc()
            (folder / "error.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        print(f"{self.side:>7}: {name} ({time.monotonic() - start:.0f} s)", flush=True)

    # --- pictures ----------------------------------------------------------------------------------------------------

    def pictures(self) -> None:
        """The shipped model, through everything that a call can ask for."""
        pipe = load(MODEL)
        y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
        few: dict[str, Any] = {"size": 256, "num_inference_steps": [4, 2]}
        calls: dict[str, dict[str, Any]] = {
            "64 to 256 px": few,
            "stored steps": {"size": 64},
            "rectangular": {**few, "height": 192, "width": 320},
            "from a picture": {"size": 256, "image": torch.stack([x, y, x * y]), "aug_level": 0.1},
            "colours kept": {**few, "lowres_consistency": 8, "aug_level": 0.3},
            "negative prompt": {**few, "negative_prompt": "a blue square", "guidance_scale": [5.0, 2.0]},
            "several of a prompt": {"size": 64, "num_inference_steps": 4, "num_images_per_prompt": 2},
            "guidance off": {"size": 64, "num_inference_steps": 4, "guidance_scale": 1.0},
            "list of timesteps": {"size": 64, "num_inference_steps": "fast27"},
        }
        if not self.quick:
            calls["64 to 1024 px"] = {"prompt": PROMPTS, "num_inference_steps": [6, 2, 2]}
        for name, call in calls.items():
            with self.check(f"pictures: {name}") as folder:
                draw(pipe, folder, **call)
        with self.check("pictures: diffusers' DPM-Solver") as folder:
            pipe.base_scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.base_scheduler.config)
            draw(pipe, folder, size=64, num_inference_steps=6)
        for sampler in SAMPLERS[:1] if self.quick else SAMPLERS:
            with self.check(f"pictures: sample.py --sampler {sampler}") as folder:
                size = ["--size", "256", "--steps", "64=6,256=2"]
                out = ["--seed", "5", "--save-stages", "--out", str(folder)]
                run("sample.py", PROMPTS[0], "--sampler", sampler, *size, *out)

    # --- training ----------------------------------------------------------------------------------------------------

    def train(self, name: str, run_dir: Path, steps: int) -> None:
        """The run `name`, from where it stands to `steps`."""
        config = self.work / "configs" / f"{name}.yaml"
        run("train.py", "--config", str(config), "--run_dir", str(run_dir), "--train.steps", str(steps))

    def training(self) -> None:
        """Every kind of stage in two halves; the state between them is kept for the other side to go on from."""
        self.runs.mkdir(parents=True)
        for config in sorted((self.work / "configs").glob("*.yaml")):
            run_dir = self.runs / config.stem
            with self.check(f"training: {config.stem}") as folder:
                self.train(config.stem, run_dir, self.steps // 2)
                shutil.copytree(run_dir, self.runs / "half" / config.stem)
                self.train(config.stem, run_dir, self.steps)
                collect(run_dir, folder)

    def resuming(self) -> None:
        """The first half by the side before, the second by this one."""
        for config in sorted((self.work / "configs").glob("*.yaml")):
            with self.check(f"resuming: {config.stem}") as folder:
                run_dir = self.runs / config.stem
                if self.side == "after":
                    run_dir = self.runs / "continued" / config.stem
                    shutil.copytree(self.work / "runs" / "before" / "half" / config.stem, run_dir)
                    self.train(config.stem, run_dir, self.steps)
                collect(run_dir, folder)

    # --- stored models -----------------------------------------------------------------------------------------------

    def formats(self) -> None:
        """Pipelines in every stored format."""
        for model in sorted((self.work / "pipelines").iterdir()):
            with self.check(f"stored: pipeline, {model.name}") as folder:
                pipe = load(model)
                describe(pipe, folder)
                draw(pipe, folder, size=256, num_inference_steps=[2, 2])

    def stages(self) -> None:
        """Stages that the side before exported, alone and composed; and exports in every stored format."""
        runs = self.work / "runs" / "before"
        for stage in sorted((self.work / "stages").iterdir()):
            with self.check(f"stored: stage, format {stage.name}") as folder:
                self.compose(folder, "--base64", str(stage))
        for base in BASES:
            with self.check(f"stored: {base}") as folder:
                self.compose(folder, "--base64", str(runs / base))
        with self.check("stored: two stages composed") as folder:
            self.compose(folder, "--base64", str(runs / BASES[0]), "--sr256", str(runs / UPPER))

    def compose(self, folder: Path, *stages: str) -> None:
        """Compose stages into a pipeline, describe it and draw with it."""
        out = self.runs / "composed" / folder.name
        run("imagen.training.compose", *stages, "--out", str(out))
        pipe = load(out)
        describe(pipe, folder)
        draw(pipe, folder)


def load(folder: str | Path) -> Any:
    """The pipeline in `folder`."""
    from imagen import ImagenPipeline

    pipe = ImagenPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, folder: Path, **call: Any) -> None:
    """The pictures of every stage of a call, (B, C, H, W) float32, as folder/SIZE.npy."""
    given = {"prompt": PROMPTS[:1], "generator": torch.Generator().manual_seed(7), "output_type": "pt", **call}
    for size, pictures in pipe(**given).stages.items():
        np.save(folder / f"{size}.npy", pictures.numpy())


def describe(pipe: Any, folder: Path) -> None:
    """The stages' defaults and schedulers as folder/stages.json."""
    found: dict[str, Any] = {}
    for slot, defaults in pipe.stage_defaults.items():
        scheduler = getattr(pipe, f"{slot}_scheduler")
        config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        found[slot] = {
            "defaults": dataclasses.asdict(defaults),
            "scheduler": {"class": type(scheduler).__name__, **config},
        }
    (folder / "stages.json").write_text(json.dumps(found, default=str), encoding="utf-8")


def collect(run_dir: Path, folder: Path) -> None:
    """Metrics, exported weights and grids of a run."""
    shutil.copyfile(run_dir / "metrics.jsonl", folder / "metrics.jsonl")
    for pattern in ("model/**/*.safetensors", "samples/*.png"):
        for path in run_dir.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def run(script: str, *arguments: str) -> None:
    """Run a script of the tree, or a module of it, as the command line would, within this process.

    Raises:
        RuntimeError: it exited with another status than 0; with the last line that it printed.
    """
    printed, argv = io.StringIO(), sys.argv
    sys.argv = [script, *arguments]
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            if script.endswith(".py"):
                runpy.run_path(script, run_name="__main__")
            else:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            last = (printed.getvalue().strip().splitlines() or [""])[-1]
            raise RuntimeError(f"{script} exited with {stop.code}: {last}") from None
    finally:
        sys.argv = argv


def main() -> None:
    """python probe.py SIDE WORK CHECK [CHECK ...] [--quick], in the folder of a tree."""
    parser = argparse.ArgumentParser()
    parser.add_argument("side", choices=("before", "after"))
    parser.add_argument("work", type=Path)
    parser.add_argument("checks", nargs="+", choices=("pictures", "training", "resuming", "formats", "stages"))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    import imagen

    here, found = Path(os.getcwd()).resolve(), Path(str(imagen.__file__)).resolve()
    if not found.is_relative_to(here):
        sys.exit(f"imagen comes from {found}, not from {here}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    probe = Probe(args.side, args.work, args.quick)
    for name in args.checks:
        getattr(probe, name)()


if __name__ == "__main__":
    main()
