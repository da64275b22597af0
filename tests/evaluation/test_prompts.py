"""What --prompts means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagen.data import ShapesDataset
from imagen.evaluation.prompts import named_suite, read_prompts
from imagen.evaluation.suites import suite


def test_a_file_has_a_prompt_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_bytes("\ufeffein roter Kreis\n\n  a star  \r\nein roter Kreis\n".encode())
    assert read_prompts("prompts.txt") == ["ein roter Kreis", "a star", "ein roter Kreis"]
    assert read_prompts("prompts.txt:2") == ["ein roter Kreis", "a star"]
    Path("heldout:2").write_text("a file of this name")
    assert read_prompts("heldout:2") == ["a file of this name"]
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("empty.txt").write_text("\n")
    for name, told in (
        ("lost.txt", "'lost.txt' are not there; expected a text file"), ("latin.txt", "are not UTF-8"),
        ("empty.txt", "holds 0; expected one at least"), ("prompts.txt:4", "holds 3; expected 4"),
        (".", "are not there"), ("heldout", "lacks how many prompts"), ("tune:0", "num is 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            read_prompts(name)


def test_a_suite_is_its_first_prompts() -> None:
    for name in ("heldout", "train", "tune"):
        assert read_prompts(f"{name}:5") == [prompt.text for prompt in suite(name, 5)]
    assert named_suite("other:5") is None


def test_captions_of_data(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "0.txt").write_text("first\nanother of the same")
    (tmp_path / "2.txt").write_text("last")
    config = tmp_path / "my.yaml"
    config.write_text(f"data: {{kind: folder, path: {tmp_path}, template: 'see {{}}'}}\n")
    assert read_prompts(str(config)) == ["see first", "see last"]
    assert read_prompts(f"{config}:1") == ["see first"]
    with pytest.raises(ValueError, match="holds 2; expected 3"):
        read_prompts(f"{config}:3")
    config.write_text("data: {kind: shapes}\n")
    own = ShapesDataset(16)
    assert read_prompts(f"{config}:3") == [own[index].caption for index in range(3)]
    with pytest.raises(ValueError, match="has no end"):
        read_prompts(str(config))
