"""Read every picture and caption of a training configuration once, before any training.

python -m imagen.cli.check_data --config my.yaml
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagen.data import Note, PictureDataset, ShapesDataset, StreamDataset

if TYPE_CHECKING:
    from imagen.training.telling.skipped import SkipFile

EXAMPLES = 3  # keys shown of each reason


class Examined:
    """A dataset for a loader's workers: item number -> what training would note about it."""

    def __init__(self, source: PictureDataset) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> list[Note]:
        return self.source.examine(number)[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where training would not stop over bad pictures, 1 where it would, 2 for a user's error."""
    from imagen.cascade.training.config.parsing import parse
    from imagen.errors import ConfigError

    try:
        config = parse(arguments, "check_data", "Read every picture and caption of a run's configuration once.")
        from imagen.cascade.training.inputs.source import make_source
        from imagen.cascade.training.task import as_begun

        source = make_source(as_begun(config))
        if isinstance(source, ShapesDataset):
            raise ConfigError("data.kind shapes is drawn, not stored: there is nothing to check")
    except ConfigError as error:
        print(f"check_data: error: {error}", file=sys.stderr)
        return 2
    from imagen.training.telling.skipped import SkipFile

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

    if isinstance(source, StreamDataset):
        every: Any = (about for _, about in source.examine())
        total = None
    else:
        every = DataLoader(Examined(source), batch_size=None, num_workers=workers)  # type: ignore[arg-type]
        total = len(source)
    notes: list[Note] = []
    for about in tqdm(every, total=total, unit="pictures", disable=None):
        found.read += 1
        found.add(about)
        notes += about
    return found.read, notes


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
