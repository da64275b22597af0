"""The text that chooses a guidance: its order, its way there and back, its errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from imagen.diffusion.guidance import CFG, GUIDANCES, Guide, Wrapper, check_guidance, parse_guidance
from tests.diffusion.guided import TIMESTEP, Z, run


@dataclass(frozen=True)
class Shift(Wrapper):
    """A number added to what another guidance makes."""

    by: float = 0.5

    def start(self) -> Guide:
        inner = self.of.start()
        return lambda step: inner(step) + self.by


@dataclass(frozen=True)
class Double(Wrapper):
    """Twice what another guidance makes."""

    def start(self) -> Guide:
        inner = self.of.start()
        return lambda step: 2 * inner(step)


@pytest.fixture
def more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two more guidances: a class and a line each."""
    monkeypatch.setitem(GUIDANCES, "shift", Shift)
    monkeypatch.setitem(GUIDANCES, "double", Double)


@pytest.mark.usefixtures("more")
def test_the_first_part_acts_last() -> None:
    plain = run("cfg")(Z, TIMESTEP).x0
    assert torch.equal(run("double+shift(by=3)+cfg")(Z, TIMESTEP).x0, 2 * (plain + 3))
    assert torch.equal(run("shift(by=3)+double")(Z, TIMESTEP).x0, 2 * plain + 3)


@pytest.mark.usefixtures("more")
def test_a_setting_reads_back_what_it_writes() -> None:
    for text, made in (
        ("cfg", CFG()),
        (" shift ( by = -1e+3 ) + cfg ", Shift(CFG(), by=-1000)),
        ("shift", Shift(CFG(), by=0.5)),
        ("double()+shift(by=0.1)", Double(Shift(CFG(), by=0.1))),
        ("shift(by=1e+300)", Shift(CFG(), by=1e300)),
        ("shift(by=inf)", Shift(CFG(), by=float("inf"))),
    ):
        assert parse_guidance(text) == made
        assert parse_guidance(str(made)) == made
        assert check_guidance(check_guidance(text)) == check_guidance(text) == str(made)
    assert check_guidance("double+shift(by=-2)") == "double+shift(by=-2)+cfg"
    assert check_guidance("interval(high=2)+apg") == "interval(low=-inf, high=2)+apg(eta=0, norm=inf, momentum=0)"
    assert check_guidance("interval(low=2)+rescaled") == "interval(low=2, high=inf)+rescaled(phi=0.7)+cfg"


@pytest.mark.usefixtures("more")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read ''; expected name"),
        ("cfg+", "cannot read ''"),
        ("cfg)", "cannot read 'cfg\\)'"),
        ("shift(by=1", "cannot read"),
        ("cgf", "'cgf' is unknown; did you mean 'cfg'\\? known: "),
        ("zzz", "'zzz' is unknown; known: "),
        ("shift(bye=1)", "shift has no option 'bye'; did you mean 'by'\\? known: by"),
        ("shift(of=1)", "shift has no option 'of'"),
        ("cfg(scale=7)", "cfg has no option 'scale'; known: none"),
        ("shift(by=big)", "by=big of shift is no number"),
        ("shift(by)", "by of shift is no number"),
        ("shift(by=1, by=2)", "shift is given by twice"),
        ("cfg+shift", "cfg combines the branches and stands last"),
        ("cfg+cfg", "cfg combines the branches and stands last"),
        ("shift+double+shift", "has shift twice"),
        ("shift+interval(low=0)+cfg", "interval has to stand first"),
        ("shift+double+interval(low=0)", "interval has to stand first"),
        ("interval(low=0)+interval(high=2)", "has interval twice"),
        ("interval", "not both infinite"),
        ("interval(low=-inf, high=inf)", "not both infinite"),
        ("interval(low=1, high=1)", "low=1.0, high=1.0; expected low < high in log-SNR"),
        ("interval(high=nan)", "expected low < high"),
        ("interval(low=2, high=1)", "low=2.0, high=1.0; expected low < high in log-SNR"),
        ("interval(low=nan)", "expected low < high"),
        ("apg(eta=2)", "eta=2.0; expected 0 to 1"),
        ("apg(eta=-0.1)", "eta=-0.1; expected 0 to 1"),
        ("apg(norm=0)", "norm=0.0; expected a positive length"),
        ("apg(norm=nan)", "norm=nan; expected a positive length"),
        ("apg(momentum=-1)", "momentum=-1.0; expected a number between"),
        ("apg(momentum=1)", "momentum=1.0; expected a number between"),
        ("apg(eta=nan)", "eta=nan"),
        ("apg(norn=1)", "apg has no option 'norn'; did you mean 'norm'\\? known: eta, norm, momentum"),
        ("apg+cfg", "apg combines the branches and stands last"),
        ("rescaled(phi=1.5)", "phi=1.5; expected 0"),
        ("rescaled(phi=-0.1)", "phi=-0.1; expected 0"),
        ("rescaled(phi=nan)", "phi=nan; expected 0"),
        ("rescaled+rescaled", "has rescaled twice"),
        ("rescaled+interval(low=0)", "interval has to stand first"),
        ("auto+cfg", "auto combines the branches and stands last"),
        (7, "guidance is 7; expected a text"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_the_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_guidance(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "apg(eta=0, norm=1e-09, momentum=-0.999)",
        "apg(eta=1, norm=inf, momentum=0.999)",
        "rescaled(phi=0)+cfg",
        "rescaled(phi=1)+cfg",
        "interval(low=-inf, high=-5)+cfg",
        "interval(low=1, high=1.001)+cfg",
        "interval(low=5, high=inf)+rescaled(phi=0.5)+apg(eta=0.5, norm=2, momentum=0)",
    ],
)
def test_the_nearest_values_that_an_option_may_have_pass(text: str) -> None:
    assert check_guidance(text) == text


def test_the_setting_is_checked_without_torch() -> None:
    code = """
import sys
from imagen.diffusion.guidance import check_guidance
check_guidance("interval(low=0)+cfg")
sys.exit(sorted({"torch", "numpy"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
