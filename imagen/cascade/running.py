"""The part of a pipeline that runs a call's stages, and says of them what callbacks ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from imagen.cascade.route import ByStage
from imagen.cascade.runner import Job, Stage, run_stage
from imagen.cascade.safety import finish
from imagen.diffusion.loop import LoopState
from imagen.stages.spec import SAFETY


class RunningMixin:
    """Runs stages under progress bars, with what a pipeline holds to check and mark pictures."""

    _interrupt: bool = False
    _stage: Stage | None = None
    progress_bar: Callable[..., Any]  # of diffusers' DiffusionPipeline
    maybe_free_model_hooks: Callable[[], None]

    @property
    def num_timesteps(self) -> int | None:
        """Steps of the stage that runs; None between calls."""
        return None if self._stage is None else self._stage.settings.steps

    @property
    def guidance_scale(self) -> float | None:
        """Guidance of the stage that runs; None between calls."""
        return None if self._stage is None else self._stage.settings.guidance_scale

    @property
    def stage(self) -> str | None:
        """Slot of the stage that runs, for callbacks; None between calls."""
        return None if self._stage is None else self._stage.slot

    @property
    def interrupt(self) -> bool:
        """Whether the running call was asked to stop; a callback sets ``pipe._interrupt = True`` (as in diffusers)."""
        return self._interrupt

    def run_stages(
        self,
        stages: Sequence[Stage],
        job: Job,
        x: Sequence[Tensor],
        after_step: Callable[[LoopState], None],
        output_type: str,
        stage_end: Callable[..., None] | None,
    ) -> ByStage[Any]:
        """Run the stages, each under a progress bar, each from the pictures of the one before."""
        made: ByStage[Any] = ByStage()
        self._interrupt = False
        try:
            for stage in stages:
                self._stage = stage
                size, steps = stage.settings.size, stage.settings.steps
                with self.progress_bar(total=steps) as bar:
                    title = getattr(self, "_progress_bar_config", {}).get("desc")
                    bar.set_description(" ".join(filter(None, [title, stage.slot, f"{size}px"])))

                    def advance(state: LoopState, bar: Any = bar) -> None:
                        bar.update()
                        after_step(state)

                    done = run_stage(stage, job, x, advance)
                x = list(done)
                images = finish(done, output_type, size, *(getattr(self, name) for name in SAFETY))
                made.add(stage.slot, size, images)
                if stage_end is not None:
                    stage_end(self, size, images)
                if self._interrupt:
                    break
        finally:
            self._stage = None
            self.maybe_free_model_hooks()
        return made
