"""Where the time of a training step goes: a run of the trainer as it is, a clock at the borders of its parts.

python benchmarks/training_step.py --config configs/shapes/base64.yaml [--steps 8] [--out FILE] [--before OTHER.json]
    [--text.encoder pretrained/shapes and other keys of a configuration]

Two steps warm up, `--steps` are measured, two run under torch.profiler, which counts what waits for the device and
names the costly operators. A part's time leaves out that of parts within it. On CUDA the clock waits for the device at
every border, so that a part's work counts as its own; the parts then add up to more than a step, which is why as many
steps are measured without borders.

FILE.md and FILE.json are written. Steps are added to those that FILE.json has of an earlier call, so two trees can take
turns: PYTHONPATH=OTHER_TREE python benchmarks/training_step.py ... --out before, with this tree --before before.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import accelerate
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import imagen
from imagen.cascade.training import task as stage_task
from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.inputs import batches
from imagen.cascade.training.inputs.texts import Texts
from imagen.training import trainer as loop

WARM, PROFILED = 2, 2
PARTS = ("loader", "text", "noise", "batch", "network", "loss", "backward", "clip", "transfer", "optimizer", "EMA")
NAMES = (*PARTS, "zero_grad", "else", "after the step")
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "cudaStreamSynchronize", "cudaDeviceSynchronize"}


class Clock:
    """Own wall time and CPU time of parts that lie within each other, step by step."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.open, self.borders = cuda, list[str](), True
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.tolists: Counter[str] = Counter()
        self.mark = self.now()

    def now(self) -> tuple[float, float]:
        """Wall and CPU seconds, all work of the device done."""
        if self.cuda and self.borders:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def charge(self) -> None:
        """Give the time since the last border to the innermost open part."""
        now = self.now()
        if self.open:
            for place in range(2):
                self.spent[self.open[-1]][place] += now[place] - self.mark[place]
        self.mark = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part, for the time of a `with` block."""
        self.charge()
        self.open.append(name)
        try:
            with record_function(f"part {name}"):
                yield
        finally:
            self.charge()
            self.open.pop()

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function as a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed

    def take(self) -> dict[str, list[float]]:
        """What was spent since the last call."""
        spent, self.spent = dict(self.spent), defaultdict(lambda: [0.0, 0.0])
        return spent


def watch(trainer: loop.Trainer, clock: Clock) -> None:
    """Put the clock's borders into a trainer."""

    def within(owner: Any, name: str, part: str) -> None:
        setattr(owner, name, clock.around(getattr(owner, name), part))

    for owner, name, part in (
        (trainer.task, "batch", "batch"),
        (trainer.task, "losses", "loss"),
        (trainer.accelerator, "backward", "backward"),
        (trainer.accelerator, "clip_grad_norm_", "clip"),
        (trainer, "_reduce", "transfer"),
        (trainer.optimizer, "step", "optimizer"),
        (trainer.optimizer, "zero_grad", "zero_grad"),
        (trainer.ema, "update", "EMA"),
        (trainer, "save", "resume point"),
        (Texts, "__call__", "text"),
        (batches, "draw_noise", "noise"),
        (batches, "row_seeds", "noise"),
        (stage_task, "draw_batch", "noise"),
    ):
        within(owner, name, part)
    began: list[Any] = []

    def enter(*_: Any) -> None:
        began.append(clock.part("network"))
        began[-1].__enter__()

    def leave(*_: Any) -> None:
        began.pop().__exit__(None, None, None)

    trainer.module.register_forward_pre_hook(enter)
    trainer.module.register_forward_hook(leave)
    batches_of, tolist = loop.batches_of, torch.Tensor.tolist

    @contextmanager
    def watched(loader: Any) -> Iterator[Iterator[dict[str, Any]]]:
        with batches_of(loader) as found:
            yield iter(clock.around(found.__next__, "loader"), None)

    def counted(self: torch.Tensor) -> Any:
        clock.tolists[clock.open[-1] if clock.open else "else"] += 1
        return tolist(self)

    loop.batches_of, torch.Tensor.tolist = watched, counted  # type: ignore[assignment, method-assign]


class Steps:
    """Replaces the trainer's two halves of a step, and keeps what every step took."""

    def __init__(self, trainer: loop.Trainer, clock: Clock, steps: int) -> None:
        self.clock, self.steps = clock, steps
        self.half, self.after = trainer._train_step, trainer._after_step
        self.rows: list[dict[str, list[float]]] = []
        self.plain: list[float] = []
        self.profiler: Any = None
        self.count = 0
        trainer._train_step, trainer._after_step = self.first, self.second  # type: ignore[method-assign]

    def first(self, given: Any) -> bool:
        """The step itself."""
        if self.count == WARM + self.steps * (1 + self.clock.cuda):
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.clock.cuda else [])]
            self.clock.tolists.clear()
            self.profiler = profile(activities=activities)
            self.profiler.__enter__()
        self.clock.borders = self.count < WARM + self.steps
        self.began = time.perf_counter()
        with self.clock.part("else"):
            return self.half(given)

    def second(self, stop: bool) -> None:
        """What follows a step; the last one writes a resume point, which is no part of it."""
        with self.clock.part("after the step"):
            self.after(stop)
        spent = self.clock.take()
        if WARM <= self.count < WARM + self.steps:
            self.rows.append(spent)
        elif self.clock.cuda and self.count < WARM + 2 * self.steps:
            self.plain.append(time.perf_counter() - self.began)
        self.count += 1
        self.point = spent.get("resume point", [0.0, 0.0])


def part_of(event: Any) -> str:
    """The innermost part around a profiled event."""
    while event is not None:
        if event.name.startswith("part "):
            return str(event.name[5:])
        event = event.cpu_parent
    return "else"


def operators(profiler: Any) -> tuple[dict[str, int], list[list[Any]]]:
    """What waits for the device, by part, and the costliest operators: name, calls and own CPU milliseconds."""
    waits: Counter[str] = Counter(part_of(event) for event in profiler.events() if event.name in WAITS)
    averages = [item for item in profiler.key_averages() if not item.key.startswith(("part ", "ProfilerStep"))]
    averages.sort(key=lambda item: -item.self_cpu_time_total)
    total = sum(item.self_cpu_time_total for item in averages)
    rows = [
        [item.key, item.count / PROFILED, item.self_cpu_time_total / 1e3 / PROFILED, item.self_cpu_time_total / total]
        for item in averages[:15]
    ]
    return dict(waits), rows


def measure(words: list[str], steps: int) -> dict[str, Any]:
    """Train a few steps of the run that the words configure."""
    cuda = torch.cuda.is_available()
    total = WARM + steps * (1 + cuda) + PROFILED
    with tempfile.TemporaryDirectory() as folder:
        short = ["--run_dir", str(Path(folder) / "run"), "--train.steps", str(total), "--grid.every", "0"]
        config = parse([*words, *short])
        trainer = loop.Trainer(stage_task.StageTask(config))
        clock = Clock(cuda)
        watch(trainer, clock)
        measured = Steps(trainer, clock, steps)
        trainer.fit()
        measured.profiler.__exit__(None, None, None)
    waits, costly = operators(measured.profiler)
    tree = Path(imagen.__file__).parent
    git = ["git", "-C", str(tree), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "accelerate": accelerate.__version__}
    return {
        "command": " ".join(words),
        "commit": commit,
        "weights": sum(p.numel() for p in trainer.module.parameters()),
        "batch_size": config.train.batch_size,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "hardware": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU thread(s)",
        "rows": measured.rows,
        "plain": measured.plain,
        "waits": {name: count / PROFILED for name, count in waits.items()},
        "tolists": {name: count / PROFILED for name, count in clock.tolists.items()},
        "resume_point": [*measured.point, config.train.checkpoint_every],
        "operators": costly,
    }


# --- telling ---------------------------------------------------------------------------------------------------------


def medians(found: dict[str, Any], place: int) -> dict[str, float]:
    """Milliseconds of each part, the median over the steps; place 0 is wall, 1 CPU."""
    return {
        name: statistics.median([row.get(name, [0.0, 0.0])[place] for row in found["rows"]]) * 1e3 for name in NAMES
    }


def whole(found: dict[str, Any], place: int) -> float:
    """Milliseconds of a step, the median."""
    return statistics.median([sum(row.get(name, [0.0, 0.0])[place] for name in NAMES) for row in found["rows"]]) * 1e3


def table(sides: dict[str, dict[str, Any]]) -> list[str]:
    """The parts, of one tree or two."""
    heads, marks = ["|"], ["|---|"]
    for side in sides:
        heads.append(f" {side}: wall ms | CPU ms | of a step | waits |")
        marks.append("---|---|---|---|")
    lines = ["| " + "".join(heads), "".join(marks)]
    for name in (*NAMES, "a step"):
        cells = [f"| {name} |"]
        for found in sides.values():
            wall, cpu = (whole(found, place) if name == "a step" else medians(found, place)[name] for place in range(2))
            counts = (found["waits"], found["tolists"])
            waits = sum(sum(count.values()) if name == "a step" else count.get(name, 0) for count in counts)
            place = int(not found["plain"])  # on a CPU its own time: what else runs there is not in it
            share = (wall, cpu)[place] / whole(found, place)
            cells.append(f" {wall:.1f} | {cpu:.1f} | {share:.1%} | {waits:g} |")
        lines.append("".join(cells))
    return lines


def report(sides: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = table(sides)
    for side, found in sides.items():
        seconds, _, every = found["resume_point"]
        share = seconds / (every * whole(found, 0) / 1e3)
        steps, pictures, weights = len(found["rows"]), found["batch_size"], found["weights"]
        plain = (
            f"; without borders a step takes {statistics.median(found['plain']) * 1e3:.1f} ms" if found["plain"] else ""
        )
        lines += [
            "",
            f"{side}: {steps} steps of {pictures} pictures, {weights:,} weights{plain}.",
        ]
        lines += [f"A resume point with the export took {seconds:.2f} s, every {every} steps {share:.2%} of the time."]
        lines += [f"`{found['command']}`; commit {found['commit']}; {found['versions']}; {found['hardware']}."]
        lines += ["", f"| {side}: operator | calls a step | own CPU ms | of all |", "|---|---|---|---|"]
        lines += [
            f"| `{name}` | {calls:g} | {cost:.1f} | {part:.1%} |" for name, calls, cost, part in found["operators"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--before", type=Path)
    args, words = parser.parse_known_args()
    found = measure(words, args.steps)
    if args.out is not None:
        path = args.out.with_suffix(".json")
        if path.exists():
            earlier = json.loads(path.read_text())
            for name in ("rows", "plain"):
                found[name] = earlier[name] + found[name]
        path.write_text(json.dumps(found, indent=1) + "\n")
    sides = {} if args.before is None else {"before": json.loads(args.before.read_text())}
    print(text := report({**sides, "after" if sides else "now": found}))
    if args.out is not None:
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
