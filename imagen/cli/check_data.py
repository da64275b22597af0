"""Read every picture and caption of a training configuration once, before any training.

python -m imagen.cli.check_data --config my.yaml
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagen.data import ShapesDataset
from imagen.data.census import Census
from imagen.data.decode import Raw, Unusable
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.data.records import Item
from imagen.data.sources import Note
from imagen.errors import ConfigError, run_command

if TYPE_CHECKING:
    from imagen.cascade.training.config.sections import TextConfig
    from imagen.training.telling import SkipFile

EXAMPLES = 3  # keys shown of each reason
Tokens = Callable[[str], int]  # in a caption


class Look(NamedTuple):
    """What an item shows: its key, notes, captions as training would see them, and a digest of the stored picture."""

    key: str
    notes: list[Note]
    captions: tuple[str, ...] = ()
    digest: bytes | None = None


@dataclass
class Findings:
    """What was found: every item once in the counts, every file once in the census."""

    items: int = 0
    skipped: int = 0
    repaired: int = 0
    notes: list[Note] = field(default_factory=list)
    census: Census = field(default_factory=Census)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where training would not stop over bad pictures, 1 where it would, 2 for a user's error."""
    return run_command("check_data", partial(check, arguments), mistakes=ConfigError)


def check(arguments: Sequence[str] | None) -> int:
    """Examine what the arguments describe; returns whether training would stop. Raises: ConfigError."""
    from imagen.cascade.training.config.parsing import parse

    config = parse(arguments, "check_data", "Read every picture and caption of a run's configuration once.")
    from imagen.cascade.training.inputs.source import make_source
    from imagen.cascade.training.task import as_begun
    from imagen.training.telling import SkipFile

    source = make_source(as_begun(config))
    if isinstance(source, ShapesDataset):
        raise ConfigError("data.kind shapes is drawn, not stored: there is nothing to check")

    path = Path(config.run_dir) / "checked.jsonl"
    path.unlink(missing_ok=True)
    skips = SkipFile(path, source.length, config.data.max_skipped_share)
    tokens = None if config.data.embedding else counter(config.text)
    found = examine(source, config.train.num_workers, skips, tokens, config.text.max_length)
    print(report(found))
    if found.notes:
        print(f"all of them: {path}")
    nothing = found.skipped == found.items  # however many of a stream may be bad
    if nothing or skips.exceeded:
        print(f"training would stop: {'no picture can be used' if nothing else skips.verdict()}")
    return int(nothing or skips.exceeded)


def counter(text: TextConfig) -> Tokens | None:
    """What counts the tokens of captions; None where there is no encoder, or, which is told, no tokenizer of it."""
    if text.encoder is None:
        return None
    from transformers import AutoTokenizer

    from imagen.text.encoder import as_read, token_count
    from imagen.text.folders import component_folders

    try:
        tokenizer = AutoTokenizer.from_pretrained(component_folders(text.encoder)[0])
    except (OSError, ValueError):
        told = f"how long captions are is not looked at: no tokenizer at {text.encoder!r}"
        print(f"check_data: {told}; python -m imagen.cli.pretrain_text makes one", file=sys.stderr)
        return None
    return lambda caption: token_count(tokenizer, as_read(caption, text.lowercase))


def examine(
    source: PictureDataset | StreamDataset, workers: int, skips: SkipFile, tokens: Tokens | None = None, most: int = 0
) -> Findings:
    """Look at every item once, in order; every note is also written to the skip file as it comes.

    Args:
        tokens: counts those of a caption, of which the text encoder reads ``most``; None: lengths are not looked at.
    """
    from tqdm import tqdm

    found, first = Findings(), dict[bytes, str]()
    for look in tqdm(_looks(source, workers, found.census), total=source.length, unit="pictures", disable=None):
        about = [*look.notes]
        longest = max((tokens(caption) for caption in look.captions), default=0) if tokens else 0
        if longest > most:
            about.append(Note(look.key, "noted", f"has a caption of {longest} tokens; text.max_length {most} cuts it"))
        if look.digest is not None and (other := first.setdefault(look.digest, look.key)) != look.key:
            about.append(Note(look.key, "noted", f"is an exact copy of {other!r}"))
        found.items += 1
        skips.read += 1
        actions = {note.action for note in about}
        found.skipped += "skipped" in actions
        found.repaired += "repaired" in actions
        skips.add(about)
        found.notes += about
    skips.add(found.census.left)
    found.notes += found.census.left
    return found


def _looks(source: PictureDataset | StreamDataset, workers: int, census: Census) -> Iterator[Look]:
    from torch.utils.data import DataLoader

    if isinstance(source, StreamDataset):
        for key, item, number in source.items(census):
            yield _look(source, key, item, number)
        return
    census.update(source.records.census())
    every: Iterable[Look] = DataLoader(
        range(len(source)),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        collate_fn=partial(_looked, source),
    )
    yield from every


def _looked(source: PictureDataset, number: int) -> Look:
    key, item = source.item(number)
    return _look(source, key, item, number)


def _look(source: PictureDataset | StreamDataset, key: str, item: Item, number: int) -> Look:
    sample, notes = source.examined(key, item, number)
    if sample is None or isinstance(item, Unusable):
        return Look(key, notes)
    return Look(key, notes, tuple(map(source.prepare.phrase, item.captions)), _digest(item.image))


def _digest(image: Raw) -> bytes:
    """Of what is stored; copies that were stored again, in another format, are none."""
    stored = image.read_bytes() if isinstance(image, Path) else image if isinstance(image, bytes) else image.tobytes()
    return blake2b(stored, digest_size=16).digest()


def report(found: Findings) -> str:
    """Lines for people: which files there are, how many pictures are usable, then every reason with its number, the
    first of its kind in full, and its first keys.
    """
    usable = found.items - found.skipped
    lines = [str(found.census)] if found.census.counts else []
    lines.append(
        f"{found.items} pictures: {usable} usable, {found.repaired} of them repaired; {found.skipped} not usable"
    )
    kinds: dict[tuple[str, str], list[Note]] = {}
    for note in found.notes:
        kinds.setdefault((note.action, _kind(note.reason)), []).append(note)
    order = ("skipped", "repaired", "noted")
    for (action, _), notes in sorted(kinds.items(), key=lambda item: (order.index(item[0][0]), -len(item[1]))):
        keys = ", ".join(map(_shown, (note.key for note in notes[:EXAMPLES]))) + ", ..." * (len(notes) > EXAMPLES)
        alike = " or alike" if any(note.reason != notes[0].reason for note in notes) else ""
        lines.append(f"  {len(notes):6d} {action}: {notes[0].reason}{alike} ({keys})")
    return "\n".join(lines)


def _shown(key: str) -> str:
    """A key on one line: line breaks and other characters that show nothing are escaped, as Python writes them."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in key)


def _kind(reason: str) -> str:
    """The reason without the numbers and names of this one file."""
    return re.sub(r"[0-9]+|'[^']*'|\"[^\"]*\"", "#", reason)


if __name__ == "__main__":
    sys.exit(main())
