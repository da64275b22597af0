"""The text of a call: prompts or ready embeddings, and what stands in the unconditional half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers.utils import logging
from torch import Tensor

from imagen.checks import check_int
from imagen.conditions.condition import Given, Target
from imagen.conditions.text import cat_text, null_text
from imagen.text.encoder import as_read, encode, token_count, unknown_characters
from imagen.text.kinds import longest_text
from imagen.text.reading import TextDefaults
from unets.contract import Facts

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Text:
    """Embeddings of a call's P prompts and of the U = 1 or P texts of its unconditional half.

    Attributes:
        prompt: (P, L, D) in at least float32 and mask (P, L) bool, True at real tokens, on the CPU: networks that look
            which columns nobody reads need not wait for the device.
        negative: (U, L', D) and (U, L'), alike.
    """

    prompt: tuple[Tensor, Tensor]
    negative: tuple[Tensor, Tensor]
    name: ClassVar[str] = "prompt"

    def __len__(self) -> int:
        return len(self.prompt[0])

    def reads(self, network: Facts) -> bool:
        """Whether it was built with text."""
        return network.text_dim is not None

    def given(self, target: Target) -> Given:
        """The texts, each once, which the network projects here; and which of them the pictures see in each branch."""
        (text, mask), count = self.prompt, len(self)
        prompt = target.rows(count, text.device)
        rows = dict.fromkeys(target.branches, prompt)
        if "unconditional" in rows:
            rows["unconditional"] = self._behind(prompt)
            text, mask = cat_text(self.prompt, self.negative)
        return Given({"context": target.network(text=text, text_mask=mask)}, rows)

    def halves(self, pictures: int, guided: bool) -> Tensor:
        """What diffusers' callbacks know as prompt_embeds: a copy, a row for each of the B ``pictures``.

        Returns:
            (2B, L, D), the unconditional half first, where ``guided``; the other half alone, (B, L, D), where not.
        """
        prompt = torch.arange(len(self), device=self.prompt[0].device).repeat_interleave(pictures // len(self))
        if not guided:
            return self.prompt[0][prompt]
        return cat_text(self.prompt, self.negative)[0][torch.cat([self._behind(prompt), prompt])]

    def _behind(self, prompt: Tensor) -> Tensor:
        """The rows of the negative texts, put behind the prompts', that belong to rows of prompts."""
        count = len(self)
        return count + (prompt if len(self.negative[0]) == count else torch.zeros_like(prompt))


def as_list(name: str, prompt: str | Sequence[str]) -> list[str]:
    """One or several prompts -> a list. Raises: ValueError for anything else."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, Sequence) and prompt and all(isinstance(entry, str) for entry in prompt):
        return list(prompt)
    raise ValueError(f"{name} is {prompt!r}; expected a string or a non-empty list of strings")


class EncodedPrompt(NamedTuple):
    """What a call takes in place of prompts, each under its name there; the first two are what diffusers returns.

    Attributes:
        prompt_embeds, prompt_mask: (P, L, D) in at least float32 and (P, L) bool, True at real tokens.
        negative_prompt_embeds, negative_prompt_mask: (1 or P, L', D) and (1 or P, L'), or None without guidance.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    prompt_mask: Tensor
    negative_prompt_mask: Tensor | None


class PromptReader(NamedTuple):
    """What turns a call's prompts into the texts that the networks read.

    Attributes:
        tokenizer, text_encoder: a T5's or a CLIP's, or None where only embeddings are taken.
        max_length: most tokens of a prompt.
        defaults: how the model was trained to read.
    """

    tokenizer: Any
    text_encoder: Any
    max_length: int
    defaults: TextDefaults

    def read(
        self, name: str, prompt: str | Sequence[str] | None, embeds: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        """Embeddings (P, L, D) and mask (P, L) of what the caller gave, or None for nothing.

        Raises:
            ValueError: prompts and embeddings at once, a mask alone, no encoder, or a prompt that is too long.
        """
        if prompt is not None and embeds is not None:
            raise ValueError(f"{name} and {name}_embeds are both given; they say the same thing, give one")
        if embeds is not None:
            return check_embeds(f"{name}_embeds", embeds, mask)
        if mask is not None:
            raise ValueError(f"a mask is given without {name}_embeds, which it belongs to; a {name} brings its own")
        return None if prompt is None else self.encode(as_list(name, prompt))

    def encode(self, prompts: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts, or one -> embeddings (P, L, D) in at least float32 and mask (P, L); what would be cut is refused.

        Raises:
            ValueError: there is no encoder, or a prompt has more than ``max_length`` tokens.
        """
        prepared, padding = self.check(prompts), self.defaults.padding
        for prompt in prepared:
            if unknown := unknown_characters(self.tokenizer, prompt):
                logger.warning(f"prompt {prompt!r}: the text encoder does not know {unknown!r}, and reads it as <unk>")
        text, mask = encode(self.tokenizer, self.text_encoder, prepared, self.max_length, padding=padding)
        return text, mask.to(text.device)

    def check(self, prompts: str | Sequence[str]) -> list[str]:
        """The prompts as they are encoded. Raises: ValueError, as :meth:`encode`, naming the first that is too long."""
        if self.tokenizer is None or self.text_encoder is None:
            raise ValueError("this pipeline has no tokenizer and text_encoder: load them, or pass prompt_embeds")
        prepared = [as_read(prompt, self.defaults.lowercase) for prompt in as_list("prompts", prompts)]
        for prompt in prepared:
            length = token_count(self.tokenizer, prompt)
            if length > self.max_length:
                shown = prompt if len(prompt) <= 60 else f"{prompt[:57]}..."
                longest = longest_text(self.text_encoder.config)
                room = "T5 itself has no limit" if longest is None else f"its encoder can read {longest}"
                advice = f"{room}: raise max_length if the networks were trained on longer ones"
                if longest is not None and self.max_length >= longest:
                    advice = "its encoder has no more positions"
                raise ValueError(
                    f"prompt {shown!r} has {length} tokens and this model reads {self.max_length}; shorten it (nothing "
                    f"is cut silently; {advice})"
                )
        return prepared

    def null(self, dim: int) -> tuple[Tensor, Tensor]:
        """The text of the unconditional half, of width ``dim``: (1, L, D) and mask (1, L).

        Raises:
            ValueError: the model needs the encoding of an empty prompt and there is no encoder.
        """
        if self.defaults.null == "zero":
            return null_text(1, dim)
        if self.tokenizer is None or self.text_encoder is None:
            raise ValueError(
                "this model's unconditional half is the encoding of an empty prompt and there is no text_encoder: load "
                "it, pass negative_prompt_embeds, or turn guidance off (guidance_scale=1)"
            )
        return self.encode([""])


class PromptMixin:
    """The part of a pipeline that reads prompts."""

    tokenizer: object
    text_encoder: object
    config: Mapping[str, Any]  # this and the next of diffusers' DiffusionPipeline
    _execution_device: torch.device

    @property
    def reader(self) -> PromptReader:
        """What turns prompts into the texts that the networks read."""
        defaults = TextDefaults.from_dict(self.config["text"])
        return PromptReader(self.tokenizer, self.text_encoder, self.config["max_length"], defaults)

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        do_classifier_free_guidance: bool = True,
        num_images_per_prompt: int = 1,
        device: torch.device | str | None = None,
        negative_prompt: str | Sequence[str] | None = None,
    ) -> EncodedPrompt:
        """Encode prompts for later calls, which need no text encoder: ``pipe(**pipe.encode_prompt(...)._asdict())``.

        The pictures are, to the bit, those of the call with the prompts themselves.

        Args:
            prompt: P prompts.
            do_classifier_free_guidance: whether to encode the unconditional half, too.
            num_images_per_prompt: repeats every row so often, as in diffusers, for a call that is given none; given to
                the call instead, it makes the same pictures for less.
            device: where the tensors go; None: where the pipeline computes.
            negative_prompt: one, or one for each prompt; None: what the model was trained with, mostly no text.

        Raises:
            ValueError: as the call; another number of negative prompts than one or P.
        """
        reader, times = self.reader, check_int("num_images_per_prompt", num_images_per_prompt, 1)
        device = self._execution_device if device is None else device
        text, mask = (part.to(device).repeat_interleave(times, dim=0) for part in reader.encode(prompt))
        if not do_classifier_free_guidance:
            return EncodedPrompt(text, None, mask, None)
        null = reader.null(text.shape[-1]) if negative_prompt is None else reader.encode(negative_prompt)
        check_negatives(len(null[0]), len(text) // times)
        times = 1 if len(null[0]) == 1 else times
        negative, negative_mask = (part.to(device).repeat_interleave(times, dim=0) for part in null)
        return EncodedPrompt(text, negative, mask, negative_mask)


def check_negatives(others: int, count: int) -> None:
    """Raises ValueError for another number of negative texts than one, or one for each prompt."""
    if others not in (1, count):
        raise ValueError(f"{others} negative prompts for {count} prompts; give one, or one for each")


def check_embeds(name: str, embeds: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Ready embeddings (P, L, D) and their mask (P, L) or None (all tokens real) -> at least float32, and bool.

    Raises:
        ValueError: shapes that do not fit, or a row without a real token.
    """
    if not isinstance(embeds, Tensor) or embeds.ndim != 3 or 0 in embeds.shape:
        found = f"shape {tuple(embeds.shape)}" if isinstance(embeds, Tensor) else f"type {type(embeds).__name__}"
        raise ValueError(f"{name} has {found}; expected a tensor (prompts, tokens, width)")
    if mask is not None and not isinstance(mask, Tensor):
        raise ValueError(f"the mask of {name} is a {type(mask).__name__}; expected a tensor (prompts, tokens)")
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    if mask.shape != embeds.shape[:2]:
        raise ValueError(f"the mask of {name} has shape {tuple(mask.shape)}; expected {tuple(embeds.shape[:2])}")
    if not mask.any(dim=1).all():
        raise ValueError(f"{name} has a row without a real token: its mask is 0 everywhere")
    return embeds.to(torch.promote_types(embeds.dtype, torch.float32)), mask.to(embeds.device)


def pair(prompt: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor], count: int, device: torch.device) -> Text:
    """Both halves, their embeddings on ``device``.

    Args:
        count: prompts wanted, or one, which is repeated (one prompt for several pictures to start from).

    Raises:
        ValueError: negative texts of another number than one or ``count``, or of another width.
    """
    (others, _, width), dim = negative[0].shape, prompt[0].shape[2]
    check_negatives(others, count)
    if width != dim:
        raise ValueError(f"the negative text has width {width}, the prompt {dim}; encode both alike")
    embeds, mask = (part.expand(count, *part.shape[1:]) for part in prompt)
    texts = (part.to(device, non_blocking=True) for part in (embeds, negative[0]))
    return Text((next(texts), mask.cpu()), (next(texts), negative[1].cpu()))
