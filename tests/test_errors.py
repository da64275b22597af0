"""The mistake of a user: one line, with the section in front, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from imagen.errors import ConfigError, config_errors


def test_what_is_wrong_is_one_line_behind_the_section_s_name() -> None:
    with pytest.raises(ConfigError) as caught, config_errors("text.cache: "):
        raise ValueError("no cache there,\n    only files")
    assert str(caught.value) == "text.cache: no cache there, only files"
    assert isinstance(caught.value.__cause__, ValueError)


def test_other_errors_pass_unless_they_are_named() -> None:
    with pytest.raises(OSError, match="^full$"), config_errors("data: "):
        raise OSError("full")
    with pytest.raises(ConfigError, match="^data: full$"), config_errors("data: ", also=OSError):
        raise OSError("full")
    with config_errors("data: "):
        pass
