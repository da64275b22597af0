"""What a key of a configuration takes, in words, and what is said of a value that it does not take."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from jsonargparse import Namespace

from imagen.errors import require

Hint: TypeAlias = Any  # a type as it stands behind a field or an argument
WORDS: Mapping[Hint, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}


def alternatives(hint: Hint) -> tuple[Hint, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def is_free(hint: Hint) -> bool:
    """Whether it is a mapping of free keys."""
    return any(typing.get_origin(one) in (dict, Mapping) for one in alternatives(hint))


def section(hint: Hint) -> type | None:
    """The dataclass that it is, or is beside null."""
    return next((one for one in alternatives(hint) if isinstance(one, type) and dataclasses.is_dataclass(one)), None)


def in_words(hint: Hint) -> str:
    """A type as people call it: "a number or null", "one of adamw, adafactor", "a list of 2 numbers"."""
    several = alternatives(hint)
    if len(several) > 1:
        return " or ".join(in_words(one) for one in several)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"{'one of ' if len(inner) > 1 else ''}{', '.join(map(str, inner))}"
    if origin in (tuple, list, Sequence):
        count = "" if origin is not tuple or Ellipsis in inner else f"{len(inner)} "
        kind = in_words(inner[0])
        return f"a list of {count}{f'{kind[2:]}s' if kind.startswith('a ') else kind}"
    if section(hint) is not None or is_free(hint):
        return "keys below it (or leave it out)"
    return WORDS.get(hint, "another value")


def mistaken(text: str, known: Mapping[str, Hint]) -> str:
    """jsonargparse's complaint of a value, in one line, in our words; any other text as it is.

    Args:
        known: the type of each key, dotted.
    """
    keys = list(re.finditer(r'Parser key "([^"]+)": ', text))
    if not keys or keys[0].start() or keys[0][1] not in known:
        return text
    key, rest = keys[0][1], text[keys[0].end() :]
    for inner in keys[1:]:  # of a section that may be null the key below it is told within
        if f"{key}.{inner[1]}" not in known:
            break
        key, rest = f"{key}.{inner[1]}", text[inner.end() :]
    found = re.match(r"(?:.*?(?:Got|Given) value:|Unable to load config)(?: |$)(.*)$", rest)
    if found is None:
        return text
    value = f" {found[1]}".partition(" - ")[0].strip() or "nothing"  # behind it a section's is told twice
    return f"wrong value for {key!r}: {value}; expected {in_words(known[key])}"


def check_values(settings: Namespace, known: Mapping[str, Hint]) -> None:
    """Refuse what jsonargparse lets through: null where it means nothing, sections that hold no keys, texts without a
    letter, and true where 1 is meant, which equals it.

    Args:
        settings: what was parsed, its sections not yet made.
        known: the type of each key, dotted.

    Raises:
        ConfigError: naming the first.
    """
    for key, hint in known.items():
        value = settings.get(key, settings)  # itself where a section above is not there
        keyed = section(hint) is not None and not (value is None or isinstance(value, Namespace))
        null = value is None or (hint is str and value == "null")  # as it comes from the command line
        nothing = null and hint is not Any and type(None) not in alternatives(hint)
        shown = "null" if null else repr(value)
        mistaken = keyed or nothing or (isinstance(value, bool) and _is_number(hint))
        require(value is settings or not mistaken, f"{key} is {shown}; expected {in_words(hint)}")
        empty = value == "" and str in alternatives(hint)
        without = ", or null for none" if type(None) in alternatives(hint) else ""
        require(not empty, f"{key} is empty (''); write what it is to be{without}")


def _is_number(hint: Hint) -> bool:
    """Whether it takes whole numbers that are listed, and not true or false."""
    choices = [choice for one in alternatives(hint) if typing.get_origin(one) is Literal for choice in one.__args__]
    return any(isinstance(choice, int) for choice in choices) and not any(
        isinstance(choice, bool) for choice in choices
    )
