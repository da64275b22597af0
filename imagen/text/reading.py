"""How prompts become what networks read: a part of a model as it was trained. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from imagen.checks import check_choice, check_keys

Padding = Literal["masked", "visible"]
Null = Literal["zero", "empty"]


@dataclass(frozen=True)
class TextDefaults:
    """How prompts become what the networks read: a part of the model as trained, not of a call.

    Attributes:
        padding: ``masked`` (ours): the networks never see it; ``visible`` (IF): every prompt is padded to the model's
            ``max_length`` and the networks read all positions.
        null: text of the unconditional half: ``zero`` (ours), one zero token, or ``empty`` (IF), the encoding of "".
        lowercase: strip and lower-case prompts before they are encoded, as IF's captions were.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """

    padding: Padding = "masked"
    null: Null = "zero"
    lowercase: bool = False

    def __post_init__(self) -> None:
        check_choice("padding", self.padding, get_args(Padding))
        check_choice("null", self.null, get_args(Null))
        if not isinstance(self.lowercase, bool):
            raise ValueError(f"lowercase is {self.lowercase!r}; expected true or false")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> TextDefaults:
        """Build from the ``text`` entry of ``model_index.json``; None, as in formats 0 and 1, is ours.

        Raises:
            ValueError: an unknown key, naming the nearest known one, or a value that is none.
        """
        values = {} if values is None else values
        if not isinstance(values, Mapping):
            raise ValueError(f"text is {values!r}; expected an object with the keys of {cls.__name__}")
        check_keys(values, [entry.name for entry in dataclasses.fields(cls)], "text")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"text: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Every field, as it is stored."""
        return dataclasses.asdict(self)
