"""sample.py where files are odd or broken and memory ends: read rightly, or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagen.cli.png import read_settings
from tests.factories import tiny_pipeline


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_of_prompts_may_begin_with_a_mark_and_hold_any_letters(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa red circle\r\ntwo\u2028blue star\n", encoding="utf-8")
    assert run("--prompts", str(tmp_path / "prompts.txt"), "--size", "16") == 0
    assert [read_settings(run.out / name)["prompt"] for name in names(run.out)] == [
        "a red circle",
        "two\u2028blue star",
    ]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer/tokenizer.json", "{"),
        ("base_unet/config.json", "[]"),
        ("base_scheduler/scheduler_config.json", '{"_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.2]}'),
        ("base_scheduler/scheduler_config.json", '{"_class_name": "DDPMScheduler", "prediction_type": "foo"}'),
    ],
)
def test_a_broken_part_is_one_line_that_names_the_model_or_the_stage(run, tmp_path, capsys, file, content):
    folder = tmp_path / "model"
    tiny_pipeline().save_pretrained(folder)
    (folder / file).write_text(content)
    assert run("a red circle", model=str(folder)) == 2
    error = capsys.readouterr().err.strip()
    assert error.splitlines()[-1].startswith("sample.py: error: ")
    assert str(folder) in error or "stage base: " in error


def test_what_no_memory_holds_is_told(run, capsys):
    assert run("a red circle", "--size", "16", "--height", "3200000", "--width", "3200000") == 1
    assert "do not fit into the memory of cpu" in capsys.readouterr().err
