"""Where the time to the first 1024-pixel picture goes: ``python -m benchmarks.start``, one run, seconds of each part.

``cpu`` counts both cores. What ends the process is not in it: `/usr/bin/time python sample.py PROMPT` is the whole.
"""

from __future__ import annotations

import importlib
import tempfile
import time
from pathlib import Path

PROMPT = "a red circle above a blue square"


class Clock:
    """Prints what was done since it last did."""

    def __init__(self) -> None:
        self.last = self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        """Wall and CPU seconds."""
        return time.perf_counter(), time.process_time()

    def tell(self, part: str) -> None:
        """Print the seconds of a part that is done."""
        wall, cpu = (after - before for before, after in zip(self.last, self.now(), strict=True))
        print(f"{part:<24} wall {wall:6.2f}  cpu {cpu:6.2f}", flush=True)
        self.last = self.now()


def main() -> None:
    """Make one picture as sample.py does, with its settings of the process's memory."""
    from imagen.memory import reuse_freed_memory, uncollected

    clock = Clock()
    with uncollected(keep=True):
        for module in ("torch", "diffusers", "transformers.modeling_utils", "imagen.pipeline"):
            importlib.import_module(module)
            clock.tell(f"import {module}")
        from imagen.cli.png import write_png
        from imagen.pipeline import ImagenPipeline
        from imagen.stages.places import demo_folder

        pipe = ImagenPipeline.from_pretrained(demo_folder())
    reuse_freed_memory()
    clock.tell("load")
    pipe.set_progress_bar_config(disable=True)
    import torch

    out = pipe(
        PROMPT,
        generator=torch.Generator().manual_seed(0),
        callback_on_stage_end=lambda _pipe, size, _images: clock.tell(f"stage of {size} px"),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_png(out.images[0], Path(folder), "picture", {})
        clock.tell("write")


if __name__ == "__main__":
    main()
