"""The part of a pipeline that runs a call's stages, with the caller's callback in between, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.callbacks import IPAdapterScaleCutoffCallback, MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import Tensor

from imagen.cascade.pictures import finish
from imagen.cascade.route import ByStage
from imagen.cascade.runner import Job, Stage, run_stage
from imagen.cascade.text import Text
from imagen.diffusion.loop import LoopState
from imagen.stages.spec import SAFETY

STATE = ("z", "latents")
"""Two names of the noisy picture after a step: ours, and the one that diffusers' callbacks know."""
TENSORS = (*STATE, "x0", "prompt_embeds")
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
    pipe: Any, callback: Callable[..., dict[str, Any] | None] | None, names: Sequence[str], stages: Sequence[Stage]
) -> Callable[[LoopState], None]:
    """The caller's callback with its tensors, for the loop; it also carries a request to stop.

    Args:
        callback: a function, or one of diffusers' callbacks, which name their tensors themselves.
        names: the tensors that a function is given.
        stages: those that run.

    Raises:
        ValueError: a tensor that no step has, or a callback for what is not here; when called, an answer that is none.
    """
    who = "callback_on_step_end_tensor_inputs"
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end is {callback!r}; expected a function or one of diffusers' callbacks")
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        who, names = type(callback).__name__, callback.tensor_inputs
    if any(isinstance(one, IPAdapterScaleCutoffCallback) for one in getattr(callback, "callbacks", [callback])):
        raise ValueError("IPAdapterScaleCutoffCallback sets the scale of an IP-Adapter, and this pipeline takes none")
    unknown = [name for name in names if name not in TENSORS]
    if unknown:
        raise ValueError(f"{who} names {unknown[0]!r}; expected some of {', '.join(TENSORS)}")
    if "prompt_embeds" in names and all(stage.unet.facts.text_dim is None for stage in stages):
        raise ValueError(
            f"{who} names 'prompt_embeds', and no stage that runs reads text (text_dim=None); leave it out"
        )

    def after_step(state: LoopState) -> None:
        if callback is not None:
            own = {"z": state.z, "latents": state.z, "x0": state.x0}
            tensors = {name: own[name] if name in own else pipe._prompt_embeds() for name in names}
            given = dict(tensors)  # a callback may write its answer into what it is given
            state.z = _answer(callback(pipe, state.step, state.timestep, tensors), given, state.z)
        state.stop = pipe.interrupt

    return after_step


def _answer(changed: Any, given: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """The state after a callback's answer.

    diffusers' own callbacks answer with rows of what they were given (the conditional half alone): these are no change.

    Raises:
        ValueError: an answer that is none, or that has something else changed.
    """
    changed = {} if changed is None else changed
    mapping = isinstance(changed, Mapping)
    states = [changed[name] for name in STATE if name in changed] if mapping else [changed]
    strange = [type(state).__name__ for state in states if not (mapping and isinstance(state, Tensor))]
    if strange:
        raise ValueError(f'callback_on_step_end returned a {strange[0]}; expected None or {{"z": a tensor}}')
    others = {name: value for name, value in changed.items() if name not in STATE}
    if not all(_rows_of(value, given.get(name)) for name, value in others.items()):
        raise ValueError(
            f"callback_on_step_end returned {sorted(changed)}; only z can be replaced (or latents, the same)"
        )
    replaced = [state for state in states if state is not z]
    if any(state is not replaced[0] for state in replaced):
        raise ValueError("callback_on_step_end returned two states, as z and as latents; these are one, return one")
    return replaced[0] if replaced else z


def _rows_of(value: Any, given: Tensor | None) -> bool:
    """Whether it is what was given, or a view of it."""
    if value is given or not isinstance(value, Tensor) or given is None:
        return value is given
    return value.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()


class RunningMixin:
    """Runs stages under progress bars, with what a pipeline holds to check and mark pictures."""

    _interrupt: bool = False
    _stage: Stage | None = None
    _job: Job | None = None
    _guidance_scale: float | None = None
    progress_bar: Callable[..., Any]  # of diffusers' DiffusionPipeline
    maybe_free_model_hooks: Callable[[], None]

    @property
    def num_timesteps(self) -> int | None:
        """Steps of the stage that runs; None between calls."""
        return None if self._stage is None else self._stage.settings.steps

    @property
    def guidance_scale(self) -> float | None:
        """Guidance of the stage that runs, as a callback last set it (``pipe._guidance_scale``); None between calls."""
        return self._guidance_scale

    @property
    def stage(self) -> str | None:
        """Slot of the stage that runs, for callbacks; None between calls."""
        return None if self._stage is None else self._stage.slot

    @property
    def interrupt(self) -> bool:
        """Whether the running call was asked to stop; a callback sets ``pipe._interrupt = True`` (as in diffusers)."""
        return self._interrupt

    def _prompt_embeds(self) -> Tensor:
        """The text of the stage that runs, as diffusers' callbacks are given it (:meth:`Text.halves`)."""
        assert self._stage is not None
        assert self._job is not None
        text = next(condition for condition in self._job.conditions if isinstance(condition, Text))
        return text.halves(len(self._job.seeds), "unconditional" in self._stage.branches)

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
                self._stage, self._job, size = stage, job, stage.settings.size
                self._guidance_scale = stage.settings.guidance_scale
                with self.progress_bar(total=stage.settings.steps) as bar:
                    title = getattr(self, "_progress_bar_config", {}).get("desc")
                    bar.set_description(" ".join(filter(None, [title, stage.slot, f"{size}px"])))

                    def advance(state: LoopState, bar: Any = bar) -> None:
                        bar.update()
                        after_step(state)

                    def scale(stage: Stage = stage) -> float:
                        return stage.changed_scale(self._guidance_scale)

                    done, shown = run_stage(stage, job, x, advance, scale)
                x = list(done)
                images = finish(shown, output_type, *(getattr(self, name) for name in SAFETY))
                made.add(stage.slot, size, images)
                if stage_end is not None:
                    stage_end(self, size, images)
                if self._interrupt:
                    break
        finally:
            self._stage = self._job = self._guidance_scale = None
            self.maybe_free_model_hooks()
        return made
