"""What the files of one item in a shard are: picture, captions, fields, by their endings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from .census import Census, Role
from .decode import Unusable, parse_json
from .naming import is_picture, split_item
from .records import Captions, Places, Record, caption_lines
from .table import CAPTION_COLUMNS, caption_cell

FileT = TypeVar("FileT")


def item_captions(endings: Collection[str], read: Callable[[str], bytes], places: Places) -> Captions:
    """Captions of an item whose files have these endings, from ``.txt``, ``.json`` or ``.cls``, but where a field is;
    empty without any.

    Raises:
        Unusable: the file with the captions cannot be read.
    """
    ending = _caption_file(endings, places)
    if ending is None:
        return ()
    if ending != "json" or places.ending is not None:
        return caption_lines(read(ending), f"caption .{ending}")
    values, taken = _json_of(read), _files_of(places)
    usual = [name for name in CAPTION_COLUMNS if ("json", name) not in taken]
    names = usual if places.caption is None else [places.caption]
    return caption_cell(next((values[name] for name in names if name in values), None))


def _caption_file(endings: Collection[str], places: Places) -> str | None:
    """The ending of the file that holds an item's captions; None: it has none."""
    taken = _files_of(places)
    files = ("txt", "cls") if places.ending is None else (places.ending.lstrip(".").lower(),)
    ending = next((one for one in files if one in endings and (one, None) not in taken), None)
    return "json" if ending is None and places.ending is None and "json" in endings else ending


def _files_of(places: Places) -> list[tuple[str, str | None]]:
    return [_file_and_key(place) for place in places.fields.values()]


def _json_of(read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        values = parse_json(read("json"))
    except ValueError as error:
        raise Unusable(f".json is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise Unusable(".json is no JSON object")
    return values


def item_record(key: str, endings: Collection[str], read: Callable[[str], bytes], places: Places) -> Record:
    """The record of an item whose files have these endings, of which ``places`` says what some are.

    Raises:
        Unusable: no picture, no file or key of a field, or damaged captions.
    """
    files = {name: _file_and_key(place) for name, place in places.fields.items()}
    pictures = _pictures(endings, places)
    if not pictures:
        raise Unusable(f"has no picture, only {', '.join(sorted(endings))}")
    if len(pictures) > 1 and places.rules != 1:
        raise Unusable(f"has {len(pictures)} pictures, {', '.join(pictures)}: keep one, or name the others' fields")
    ending = pictures[0]
    fields: dict[str, Any] = {}
    for name, (needed, column) in files.items():
        if needed not in endings:
            raise Unusable(f"has no {name} .{needed}")
        fields[name] = read(needed) if column is None else _json_of(read).get(column)
    usual = f".txt, .cls or .json with {' or '.join(places.free(CAPTION_COLUMNS))}"
    looked = f"looked for {usual if places.ending is None else places.ending}; data.caption_ending names another"
    return Record(f"{key}.{ending}", read(ending), item_captions(endings, read, places), fields, looked=looked)


def _pictures(endings: Collection[str], places: Places) -> list[str]:
    """Endings of an item's pictures that are no fields."""
    others = [ending for ending, _ in _files_of(places)]
    return sorted(ending for ending in endings if is_picture(ending, places.rules) and ending not in others)


def _file_and_key(place: str) -> tuple[str, str | None]:
    """The ending of the file that a field is in, in lower case, and the key of one in ``.json``."""
    if place.startswith("json:"):
        return "json", place.removeprefix("json:")
    return place.lstrip(".").lower(), None


def _named(places: Places) -> list[str]:
    """The endings that a configuration names."""
    captions = [] if places.ending is None else [places.ending.lstrip(".").lower()]
    return [ending for ending, key in _files_of(places) if key is None] + captions


def split(
    stem: str, files: Mapping[str, FileT], places: Places, census: Census
) -> Iterator[tuple[str, dict[str, FileT], str | None]]:
    """(path of an item, its files by ending, what is wrong with one of them) of files of one path up to the first dot.

    What is wrong stands in the place of a file.
    """
    items = {"": dict(files)} if places.rules == 1 else split_item(files, _named(places))
    in_items = {f"{more}.{ending}" for more, found in items.items() for ending in found}
    for rest in files:
        if f".{rest}" not in in_items:
            census.add(Role.FURTHER if is_picture(rest) else Role.OTHER, f"{stem}.{rest}")
    for more, found in items.items():
        count(f"{stem}{more}", found, places, census)
        fault = next((entry for entry in found.values() if isinstance(entry, str)), None)
        yield f"{stem}{more}", found, fault


def count(stem: str, endings: Collection[str], places: Places, census: Census) -> None:
    """What the files of an item are."""
    pictures, captions = _pictures(endings, places), _caption_file(endings, places)
    fields = [ending for ending, _ in _files_of(places)]
    for ending in endings:
        if ending in pictures:
            role = Role.PICTURE if places.rules != 1 or ending == pictures[0] else Role.FURTHER
        elif ending in fields:
            role = Role.FIELD
        elif ending == captions:
            role = Role.CAPTION if pictures else Role.ALONE
        else:
            role = Role.OTHER
        census.add(role, f"{stem}.{ending}".rstrip("."))
