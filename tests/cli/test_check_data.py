"""What python -m imagen.cli.check_data tells of the pictures that it has read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from imagen.cli.check_data import Findings, examine, main, report
from imagen.data.folder import FolderRecords
from imagen.data.pictures import PictureDataset, StreamDataset
from imagen.data.prepare import Prepare, Want
from imagen.data.sources import Note
from imagen.data.tar import ShardStream
from imagen.training.telling import SkipFile
from tests.cascade.training.conftest import TINY, merge
from tests.data.test_shards import tar


def findings(items: int, notes: list[Note]) -> Findings:
    keys = {action: {note.key for note in notes if note.action == action} for action in ("skipped", "repaired")}
    return Findings(items, len(keys["skipped"]), len(keys["repaired"]), notes)


def test_skipped_ones_are_told_first_and_of_each_sort_the_commonest() -> None:
    notes = [Note("r0", "repaired", "turned"), Note("n", "noted", "is small")]
    notes += [Note(f"s{n}", "skipped", f"has {n} channels") for n in range(2)]
    notes += [Note(f"e{n}", "skipped", "is not UTF-8") for n in range(4)]
    notes += [Note(f"m{n}", "repaired", "P made RGB") for n in range(3)]
    notes += [Note("r0", "repaired", "P made RGB"), Note("t/" + "u" * 200, "skipped", "x" * 99 + "12345")]
    assert report(findings(20, notes)).splitlines() == [
        "20 pictures: 13 usable, 4 of them repaired; 7 not usable",
        "       4 skipped: is not UTF-8 (e0, e1, e2, ...)",
        "       2 skipped: has 0 channels or alike (s0, s1)",
        f"       1 skipped: {'x' * 99}12345 (t/{'u' * 200})",
        "       4 repaired: P made RGB (m0, m1, m2, ...)",
        "       1 repaired: turned (r0)",
        "       1 noted: is small (n)",
    ]
    assert report(findings(3, [Note(f"m{n}", "repaired", "P") for n in range(3)])).splitlines()[1:] == [
        "       3 repaired: P (m0, m1, m2)"
    ]
    copies = [Note("b", "noted", "is an exact copy of 'a'"), Note("d", "noted", "is an exact copy of 'c'")]
    assert report(findings(4, copies)).splitlines()[1:] == ["       2 noted: is an exact copy of 'a' or alike (b, d)"]
    broken = [Note("a\nb\t\x1b[1mé.png", "noted", "is small")]
    assert report(findings(1, broken)).splitlines()[1:] == [r"       1 noted: is small (a\nb\t\x1b[1mé.png)"]
    assert report(findings(5, [])) == "5 pictures: 5 usable, 0 of them repaired; 0 not usable"


def pictures() -> dict[str, bytes]:
    """Seven: the third is empty, the sixth no picture, the fourth and the seventh named wrongly, that one of ink."""
    found = {}
    for number in range(7):
        path = Path(f"{number}.png")
        image, kind = Image.fromarray(np.full((4, 4, 3), number, np.uint8)), "JPEG" if number in (3, 6) else "PNG"
        image.convert("CMYK" if number == 6 else "RGB").save(path, kind)
        found[path.name] = {2: b"", 5: b"no picture"}.get(number, path.read_bytes())
        path.write_bytes(found[path.name])
    return found


@pytest.mark.parametrize("kind", ["folder", "stream"])
def test_every_picture_is_read_once_and_told_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")
    prepare, files = Prepare(Want(4, captions="optional")), pictures()
    source: PictureDataset | StreamDataset
    if kind == "folder":
        source = PictureDataset(FolderRecords(tmp_path / "p"), prepare)
        keys = [f"{number}.png" for number in (2, 3, 5, 6, 6)]
    else:
        names = sorted(files)
        for shard, some in enumerate((names[:3], names[3:])):
            tar(tmp_path / f"{shard}.tar", {name: files[name] for name in some})
        source = StreamDataset(ShardStream([str(tmp_path / "*.tar")]), prepare, lanes=2)
        keys = ["0.tar/2", "1.tar/3", "1.tar/5", "1.tar/6", "1.tar/6"]
    found = SkipFile(tmp_path / "checked.jsonl", source.length, 0.2)
    seen = examine(source, 0, found)
    expected: list[Any] = [*zip(keys, ["skipped", "repaired", "skipped", "repaired", "repaired"], strict=True)]
    assert (seen.items, seen.skipped, seen.repaired, found.read) == (7, 2, 2, 7)
    assert [(note.key, note.action) for note in seen.notes] == expected
    written = [json.loads(line) for line in (tmp_path / "checked.jsonl").read_text().splitlines()]
    assert [(line["key"], line["action"]) for line in written] == expected
    assert found.exceeded == (kind == "folder"), "2 of 7; of a stream more are read before it ends a run"


@pytest.mark.parametrize(("names", "code"), [((), 1), (("bad",), 1), (("bad", "good"), 0)])
def test_a_stream_of_which_nothing_can_be_used_would_stop_a_run(
    tmp_path: Path, names: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """However few there are: of others a thousand are read before a share of them counts."""
    good = io.BytesIO()
    Image.new("RGB", (8, 8)).save(good, "PNG")
    tar(tmp_path / "a.tar", {f"{name}.png": good.getvalue() if name == "good" else b"" for name in names})
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(
            merge(TINY, {"run_dir": str(tmp_path / "run"), "data.kind": "shards", "data.streaming": True,
                         "data.path": str(tmp_path / "a.tar"), "data.lanes": 1})
        )
    )  # fmt: skip
    assert main(["--config", str(tmp_path / "c.yaml")]) == code
    told = capsys.readouterr().out
    assert ("training would stop: no picture can be used" in told) == bool(code)
