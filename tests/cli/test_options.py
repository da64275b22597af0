"""Commands whose options are a function's arguments: every mistake is one line that names the option."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imagen.cli import compose, pretrain_text


@pytest.mark.parametrize(("main", "words", "told"), [
    (compose.main, ["--base"], "compose: error: argument --base: expected one argument"),
    (compose.main, ["--dtype", "x", "--out", "o"], "compose: error: wrong value for '--dtype': x; expected one"),
    (compose.main, [], "compose: error: --out is missing"),
    (compose.main, ["--out", ""], "compose: error: --out is empty ('')"),
    (compose.main, ["--base=", "--out", "o"], "compose: error: --base is empty ('')"),
    (compose.main, ["--out", "o", "--max_shard_size", "foo"], "compose: error: --max_shard_size 'foo' is no size: "),
    (compose.main, ["--out", "o", "--max_shard_size", "0MB"], "compose: error: --max_shard_size '0MB' is no size: "),
    (compose.main, ["--out", "o", "--max_shard_size", "14"], "compose: error: --max_shard_size '14' is no size: "),
    (compose.main, ["--out", "o", "--max_shard_size", "1.5 gb"], "compose: error: no stage given"),
    (compose.main, ["--out", "o", "--bse", "x"], "compose: error: unrecognized arguments: --bse x"),
    (pretrain_text.main, [], "pretrain_text: error: --out is missing"),
    (pretrain_text.main, ["--out", ""], "pretrain_text: error: --out is empty ('')"),
    (pretrain_text.main, ["--out", "o", "--t5.steps", "x"], "pretrain_text: error: wrong value for '--t5.steps': x; "),
    (pretrain_text.main, ["--out", "o", "--t5.steps", "-1"], "pretrain_text: error: steps is -1; expected"),
])  # fmt: skip
def test_a_mistake_is_one_line(
    main: Callable[[list[str]], int], words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(told), said
    assert said.count("\n") == 1
    assert "class" not in said
