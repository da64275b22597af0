"""ImagenPipeline: prompt -> 64 px -> 256 px -> 1024 px, as a diffusers pipeline (paper sections 2.1 to 2.4)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imagen.cascade import pictures
from imagen.cascade.adapting import AdapterMixin
from imagen.cascade.assembly import assemble
from imagen.cascade.parts import check_parts, float32_kept, load_parts, named_dtype, of_runs, tell_class, tell_lost
from imagen.cascade.plan import join, plan, start_noise
from imagen.cascade.presets import Preset, read_presets, with_preset
from imagen.cascade.route import ByStage, Wish, check_sizes
from imagen.cascade.runner import Job, Stage
from imagen.cascade.running import TENSORS, ImagenPipelineOutput, RunningMixin, step_callback
from imagen.cascade.seeds import picture_seeds
from imagen.cascade.speed import SpeedMixin
from imagen.cascade.text import PromptMixin
from imagen.checks import check_choice, check_int, check_keys
from imagen.conditions.call import called
from imagen.errors import one_line
from imagen.stages.model import find_model
from imagen.stages.spec import FORMAT_VERSION, OF_CALLS, SAFETY, SLOTS, StageDefaults, read_stages
from imagen.text.kinds import TextEncoder, check_max_length
from imagen.text.reading import TextDefaults
from unets.contract import any_network
from unets.network import Network

if TYPE_CHECKING:
    AnyNetwork = Network
else:
    AnyNetwork = any_network()  # diffusers compares a component's class with the annotation

NETWORKS = [f"{slot}_{kind}" for slot in SLOTS for kind in ("unet", "weak_unet")]
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")


class ImagenPipeline(AdapterMixin, PromptMixin, RunningMixin, SpeedMixin, DiffusionPipeline):
    """Frozen text encoder (T5 or CLIP), base U-Net and super-resolution U-Nets, each with its own diffusers scheduler.

    Every slot may be empty: without the later stages the cascade stops early, without the base stage it starts from a
    picture (``image=``), without tokenizer and encoder it takes ``prompt_embeds`` or runs networks built without text.

    Args:
        tokenizer, text_encoder: a T5's, or a CLIP's text tower, frozen.
        base_unet, sr256_unet, sr1024_unet: networks of :data:`unets.NETWORKS`.
        base_weak_unet, sr256_weak_unet, sr1024_weak_unet: worse ones of the same inputs and outputs, for autoguidance.
        base_scheduler, sr256_scheduler, sr1024_scheduler: diffusers schedulers. What a network predicts stands in
            ``prediction_type``, its noise schedule in ``trained_betas``; one of the same config may take its place.
        stages: sizes and sampling defaults per slot, each a dict of the fields of
            :class:`imagen.stages.spec.StageDefaults`; the usual sizes and our defaults where none are given.
        format_version: of ``stages``; older ones are migrated.
        conditions: what is stored of conditions beside text, by name (:mod:`imagen.conditions.call`).
        presets: ways to sample all stages, by name and slot (:mod:`imagen.cascade.presets`); None: the usual three.
    """

    model_cpu_offload_seq = "->".join(["text_encoder", *NETWORKS])
    _exclude_from_cpu_offload: ClassVar[list[str]] = [*SAFETY]
    _optional_components: ClassVar[list[str]] = [
        *("tokenizer", "text_encoder", *SAFETY, *NETWORKS),
        *(f"{slot}_scheduler" for slot in SLOTS),
    ]
    _callback_tensor_inputs: ClassVar[list[str]] = list(TENSORS)

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        text_encoder: TextEncoder | None = None,
        base_unet: AnyNetwork | None = None,
        base_scheduler: SchedulerMixin | None = None,
        sr256_unet: AnyNetwork | None = None,
        sr256_scheduler: SchedulerMixin | None = None,
        sr1024_unet: AnyNetwork | None = None,
        sr1024_scheduler: SchedulerMixin | None = None,
        stages: Mapping[str, Any] | None = None,
        max_length: int = 128,
        text: Mapping[str, Any] | None = None,
        format_version: int | None = FORMAT_VERSION,
        safety_checker: PreTrainedModel | None = None,
        feature_extractor: Any = None,
        watermarker: Any = None,
        base_weak_unet: AnyNetwork | None = None,
        sr256_weak_unet: AnyNetwork | None = None,
        sr1024_weak_unet: AnyNetwork | None = None,
        conditions: Mapping[str, Any] | None = None,
        presets: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            base_unet=base_unet,
            base_scheduler=base_scheduler,
            sr256_unet=sr256_unet,
            sr256_scheduler=sr256_scheduler,
            sr1024_unet=sr1024_unet,
            sr1024_scheduler=sr1024_scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            watermarker=watermarker,
            base_weak_unet=base_weak_unet,
            sr256_weak_unet=sr256_weak_unet,
            sr1024_weak_unet=sr1024_weak_unet,
        )
        read = read_stages(stages, format_version)
        stored = {slot: defaults.to_dict() for slot, defaults in read.items()}
        max_length = check_max_length(max_length, getattr(text_encoder, "config", None))
        reading = TextDefaults.from_dict(text).to_dict()
        self.register_to_config(stages=stored, max_length=max_length, text=reading, format_version=FORMAT_VERSION)
        self.register_to_config(conditions={name: dict(facts) for name, facts in (conditions or {}).items()})
        self.register_to_config(presets=read_presets(presets, read))
        tell_lost(self, NETWORKS, stages is not None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | Sequence[str | Path], **kwargs: Any) -> Self:
        """Load a saved pipeline from a folder or a Hub id; arguments as in diffusers.

        The folder of a training run will do, or those of several stages: a list, or ``"runs/base64,runs/sr256"``. They
        take ``dtype`` and components.

        A folder that a subclass saved is loaded by that class and, with a warning, by this one.

        The weights are safetensors (``use_safetensors=False`` reads pickled ones), in float32 unless ``dtype`` (or
        ``torch_dtype``) says otherwise; "auto" is :func:`imagen.cascade.parts.fast_dtype`. ``sr1024_unet=None`` leaves
        a component out, and unfetched.

        Raises:
            ValueError: no such model, a part of it is missing or damaged, or its format is newer than this code.
        """
        skip = [name for name in cls._optional_components if name in kwargs]
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        pickled = kwargs.setdefault("use_safetensors", True) is not True
        model = find_model(pretrained_model_name_or_path, kwargs.get("variant"), skip, pickled, **hub)
        kwargs["dtype"] = named_dtype(kwargs.pop("torch_dtype", None) or kwargs.get("dtype"))
        if model.folder is None:
            own = of_runs(kwargs, cls._get_signature_keys(cls)[0])
            return cls(**assemble(model.stages, own, remedy="tokenizer= and text_encoder="))
        folder = model.folder
        tell_class(folder, cls)
        try:
            kwargs.update(load_parts(folder, kwargs))
            pipe: Self = super().from_pretrained(str(folder), **kwargs)
        except OSError as error:
            name = str(pretrained_model_name_or_path)
            raise ValueError(f"model {name!r} cannot be loaded: {one_line(error)}") from error
        check_parts(pipe, folder, kwargs, NETWORKS)
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    def to(self, *args: torch.device | torch.dtype | str | int | None, **kwargs: object) -> Self:
        """Move and cast as in diffusers; T5's ``wo`` stays in float32 where float16 is asked for, as when loaded so."""
        with float32_kept(self.components.values(), [*args, *kwargs.values()]):
            return super().to(*args, **kwargs)

    # --- what is there --------------------------------------------------------------------------------------------

    def _stages(self, preset: str | None = None, size: int | None = None) -> dict[str, Stage]:
        stored = read_stages(self.config["stages"], FORMAT_VERSION)
        stages: dict[str, Stage] = {}
        for slot in SLOTS:
            unet, scheduler, weak = (getattr(self, f"{slot}_{part}") for part in ("unet", "scheduler", "weak_unet"))
            if unet is not None and scheduler is not None:
                stages[slot] = Stage(slot, unet, scheduler, stored[slot], weak=weak)
        own = {slot: stage.settings for slot, stage in stages.items()}
        chosen = with_preset(preset, own, self.config["presets"], size)
        return {slot: stage._replace(settings=chosen[slot]) for slot, stage in stages.items()}

    @property
    def stage_defaults(self) -> dict[str, StageDefaults]:
        """Defaults of the stages that are there (network and scheduler both), by slot, in the order they run."""
        return {slot: stage.settings for slot, stage in self._stages().items()}

    def set_stage_defaults(self, slot: str, **changes: Any) -> None:
        """Change stored defaults of one stage, for later calls and for :meth:`save_pretrained`.

        Raises:
            ValueError: an unknown slot or field, a value out of range, or sizes that leave a stage here without the one
                that it starts from.
        """
        stored = dict(self.config["stages"])
        before = stored[check_choice("stage", slot, SLOTS)]
        changed = StageDefaults.from_dict({**before, **changes}, f"stage {slot}")
        here = self.stage_defaults
        check_sizes(here, {name: changed if name == slot else stage for name, stage in here.items()})
        stored[slot] = changed.to_dict()
        self.register_to_config(stages=stored)

    @property
    def presets(self) -> dict[str, Preset]:
        """The model's own presets by name: what each sets of each stage. A copy: they are a model's from its making."""
        return copy.deepcopy(dict(self.config["presets"]))

    def settings(
        self,
        image: Any = None,
        size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        preset: str | None = None,
        **settings: Any,
    ) -> ByStage[StageDefaults]:
        """What a call with these arguments would run: the side (or slot) of each stage, in order, and its settings.

        Args:
            settings: those of :data:`imagen.stages.spec.OF_CALLS`, as the call takes them.

        Raises:
            ValueError: as the call.
        """
        check_keys(settings, list(OF_CALLS), "settings")
        stages, _ = plan(self._stages(preset, size), image, Wish(size, height, width, settings))
        return ByStage((stage.slot, stage.settings.size, stage.settings) for stage in stages)

    # --- the call ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        num_inference_steps: int | str | Sequence[int | str] | Mapping[int | str, int | str] | None = None,
        guidance_scale: float | Sequence[float] | Mapping[int | str, float] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        image: Any = None,
        size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        aug_level: float | Sequence[float] | Mapping[int | str, float] | None = None,
        lowres_consistency: int | Sequence[int] | Mapping[int | str, int] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        prompt_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_mask: Tensor | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("z", "latents"),
        callback_on_stage_end: Callable[..., None] | None = None,
        sr_batch_size: int | None = None,
        guidance: str | Sequence[str] | Mapping[int | str, str] | None = None,
        label: int | str | Sequence[int | str | None] | None = None,
        mask: Any = None,
        latents: Tensor | Sequence[Tensor | None] | Mapping[int | str, Tensor] | None = None,
        sampler: str | Sequence[str] | Mapping[int | str, str] | None = None,
        preset: str | None = None,
    ) -> ImagenPipelineOutput | tuple[Any, ByStage[Any]]:
        """Sample pictures.

        A setting "per stage" is one value for all stages that run, a list with one for each, or a dict keyed by size;
        what is not given is the stage's stored default (:attr:`stage_defaults`).

        Args:
            prompt: P prompts. negative_prompt: one, or one for each; it takes the null text's place.
            num_images_per_prompt: pictures of each prompt; B = P * this.
            num_inference_steps: network evaluations (heun: two a step), or a list (:mod:`imagen.diffusion.timesteps`).
            guidance_scale: w of eq. 2, per stage, >= 0; 1 is off and saves the unconditional half.
            generator: one, expanded so that picture i depends on it and i alone; or a list, one per picture.
            image: picture(s) to start from, one or one per prompt (:func:`imagen.cascade.pictures.load_pictures`); it
                enters at the last super-resolution stage whose input it fills.
            size: side to stop at; None: the last stage that can be reached.
            height, width: of the last stage's picture, earlier ones in proportion; None: square.
            aug_level: noise on the low-res picture, per super-resolution stage, in [0, 1] (section 2.4).
            lowres_consistency: side of the cells whose mean colour is the low-res picture's, in its pixels; 0 is off.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W); arrays and tensors are float32 in [0, 1].
            return_dict: False returns (images, stages).
            prompt_embeds, prompt_mask: (P, L, D) and (P, L) in place of prompts; no mask: all tokens are real.
            negative_prompt_embeds, negative_prompt_mask: (1 or P, L, D) and (1 or P, L).
            callback_on_step_end: ``f(pipe, step, timestep, tensors)`` after each step, or one of diffusers' callbacks,
                which say themselves what they are given; may return {"z": another} and set ``pipe._guidance_scale``.
            callback_on_step_end_tensor_inputs: of "z", (B, C, H, W) after the step, "latents", its name in diffusers,
                "x0", its clean estimate, and "prompt_embeds", both halves of the text, to look at.
            callback_on_stage_end: ``f(pipe, size, images)`` when a stage is done.
            sr_batch_size: pictures a super-resolution network sees at once; None: by their size. Changes memory only.
            guidance: what guides, per stage: "cfg", "interval(low=-1)+apg", ... (:mod:`imagen.diffusion.guidance`).
            label: class by number or name, one or one per prompt, of models with classes; None: no class.
            mask: picture(s) whose transparent parts are painted anew, one or one per prompt: RGBA, or as ``image`` with
                opacity for a last channel; of models trained to. None: all is painted.
            latents: start noise in place of the drawn one, standard normal (B, C, H, W), for the first stage that runs,
                or per stage (:func:`imagen.cascade.plan.start_noise`); what else is drawn stays as it is.
            sampler: step rule, per stage: "ddim", "dpm++(use_exponential_sigmas)" (:mod:`imagen.diffusion.samplers`).
            preset: one of :attr:`presets` by name, such as "fast", in place of the stored defaults in this call; what
                the call itself sets holds.

        Raises:
            ValueError: an input that no stage here can serve, naming it and what to do.
        """
        settings = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance": guidance,
            "sampler": sampler,
            "aug_level": aug_level,
            "lowres_consistency": lowres_consistency,
        }
        wish = Wish(size, height, width, settings)
        available = self._stages(preset, size)
        stages, given = plan(available, image, wish)
        num_images_per_prompt = check_int("num_images_per_prompt", num_images_per_prompt, 1)
        sr_batch_size = None if sr_batch_size is None else check_int("sr_batch_size", sr_batch_size, 1)
        after_step = step_callback(self, callback_on_step_end, callback_on_step_end_tensor_inputs, stages)
        for stage in stages:
            pictures.check_output_type(output_type, stage.channels)
        reader = self.reader
        positive = reader.read("prompt", prompt, prompt_embeds, prompt_mask)
        negative = reader.read("negative_prompt", negative_prompt, negative_prompt_embeds, negative_prompt_mask)
        device, networks = self._execution_device, [stage.unet.facts for stage in stages]
        shown = None if mask is None else pictures.load_pictures(mask, stages[-1].channels + 1, wish.aspect)
        others = called({"label": label, "mask": shown}, self.config["conditions"], networks, device)
        conditions, count = join(stages, positive, negative, others, len(given), device, reader.null)
        noise = start_noise(latents, available, stages, count * num_images_per_prompt)
        seeds = picture_seeds(generator, count * num_images_per_prompt)
        job = Job(conditions, seeds, device, sr_batch_size, noise)
        start = [picture for picture in given for _ in range(len(seeds) // len(given))]  # one, or one per prompt
        made = self.run_stages(stages, job, start, after_step, output_type, callback_on_stage_end)
        images = list(made.slots.values())[-1]
        return ImagenPipelineOutput(images=images, stages=made) if return_dict else (images, made)
