"""Read every picture and caption of a training configuration once, before any training.

python -m imagen.cli.check_data --config my.yaml
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imagen.data import ShapesDataset
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.data.sources import Note
from imagen.errors import ConfigError, run_command

if TYPE_CHECKING:
    from imagen.training.telling import SkipFile

EXAMPLES = 3  # keys shown of each reason


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
    found = SkipFile(path, source.length, config.data.max_skipped_share)
    length, notes = examine(source, config.train.num_workers, found)
    print(report(length, notes))
    if notes:
        print(f"all of them: {path}")
    if found.exceeded:
        print(f"training would stop: {found.verdict()}")
    return int(found.exceeded)


def examine(source: PictureDataset | StreamDataset, workers: int, found: SkipFile) -> tuple[int, list[Note]]:
    """Number of items, and notes on all of them, in order; each is also written to the skip file as it comes."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    every: Iterable[list[Note]]
    if isinstance(source, StreamDataset):
        every, total = (about for _, about in source.examine()), None
    else:
        numbers, total = range(len(source)), len(source)
        every = DataLoader(numbers, batch_size=None, num_workers=workers, collate_fn=partial(_notes, source))  # type: ignore[arg-type]
    notes: list[Note] = []
    for about in tqdm(every, total=total, unit="pictures", disable=None):
        found.read += 1
        found.add(about)
        notes += about
    return found.read, notes


def _notes(source: PictureDataset, number: int) -> list[Note]:
    """What training would note about an item."""
    return source.examine(number)[1]


def report(length: int, notes: Sequence[Note]) -> str:
    """Lines for people: how many of how many, then every reason with its number and first keys."""
    keys = {action: {note.key for note in notes if note.action == action} for action in ("skipped", "repaired")}
    good = length - len(keys["skipped"])
    lines = [f"{length} pictures: {good} usable, {len(keys['repaired'])} of them repaired; {length - good} not usable"]
    counts = Counter((note.action, _kind(note.reason)) for note in notes)
    for (action, kind), count in sorted(counts.items(), key=lambda item: (item[0][0] != "skipped", -item[1])):
        examples = [note.key for note in notes if (note.action, _kind(note.reason)) == (action, kind)][:EXAMPLES]
        more = ", ..." if count > len(examples) else ""
        lines.append(f"  {count:6d} {action}: {kind} ({', '.join(examples)}{more})")
    return "\n".join(lines)


def _kind(reason: str) -> str:
    """The reason without the numbers of this one file."""
    return re.sub(r"[0-9]+", "#", reason)[:100]


if __name__ == "__main__":
    sys.exit(main())
