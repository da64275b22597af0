"""The part of a pipeline that runs a call's stages, with the caller's callback in between, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor

from imagen.cascade.pictures import finish
from imagen.cascade.route import ByStage
from imagen.cascade.runner import Job, Stage, run_stage
from imagen.diffusion.loop import LoopState
from imagen.stages.spec import SAFETY

TENSORS = ("z", "x0")
"""What ``callback_on_step_end`` may ask for."""


@dataclass
class ImagenPipelineOutput(BaseOutput):
    """What a call returns.

    Attributes:
        images: the last stage's pictures: a list of PIL images, an array (B, H, W, C) or a tensor (B, C, H, W), floats
            in [0, 1]; prompt by prompt, ``num_images_per_prompt`` of each.
        stages: the same for every stage that ran, by its side in pixels (the last of that side) or its slot.
    """

    images: Any
    stages: ByStage[Any]


def step_callback(
    pipe: Any, callback: Callable[..., dict[str, Any] | None] | None, names: Sequence[str]
) -> Callable[[LoopState], None]:
    """The caller's callback with its tensors (``names``), for the loop; it also carries a request to stop.

    Raises:
        ValueError: a tensor that no step has; when called, a callback's answer that is none.
    """
    unknown = [name for name in names if name not in TENSORS]
    if unknown:
        raise ValueError(
            f"callback_on_step_end_tensor_inputs names {unknown[0]!r}; expected some of {', '.join(TENSORS)}"
        )

    def after_step(state: LoopState) -> None:
        if callback is not None:
            tensors = {name: getattr(state, name) for name in names}
            changed = callback(pipe, state.step, state.timestep, tensors)
            changed = {} if changed is None else changed
            if not isinstance(changed, Mapping) or not isinstance(changed.get("z", state.z), Tensor):
                found = type(changed.get("z") if isinstance(changed, Mapping) else changed).__name__
                raise ValueError(f'callback_on_step_end returned a {found}; expected None or {{"z": a tensor}}')
            if any(value is not tensors.get(name) for name, value in changed.items() if name != "z"):
                raise ValueError(f"callback_on_step_end returned {sorted(changed)}; only z can be replaced")
            state.z = changed.get("z", state.z)
        state.stop = pipe.interrupt

    return after_step


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
                self._stage, size = stage, stage.settings.size
                with self.progress_bar(total=stage.settings.steps) as bar:
                    title = getattr(self, "_progress_bar_config", {}).get("desc")
                    bar.set_description(" ".join(filter(None, [title, stage.slot, f"{size}px"])))

                    def advance(state: LoopState, bar: Any = bar) -> None:
                        bar.update()
                        after_step(state)

                    done = run_stage(stage, job, x, advance)
                x = list(done)
                images = finish(done, output_type, *(getattr(self, name) for name in SAFETY))
                made.add(stage.slot, size, images)
                if stage_end is not None:
                    stage_end(self, size, images)
                if self._interrupt:
                    break
        finally:
            self._stage = None
            self.maybe_free_model_hooks()
        return made
