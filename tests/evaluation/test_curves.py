"""What is read from results, and what stands in the plots: by the axes' own content, before they become pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from imagen.evaluation import curves
from imagen.evaluation.__main__ import build_parser, main
from imagen.evaluation.curves import plot_alignment, plot_metrics, plot_sweep, read_alignment, read_metrics
from imagen.evaluation.stats import Share


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every plot that is saved, in order."""
    saved: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: saved.append(self.axes[0]) or path.touch())
    return saved


def lines(plot: Any) -> dict[str, tuple[list[float], list[float]]]:
    named = [line for line in plot.get_lines() if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in named}


def result(step: int | None, single: int, overall: int, sides: tuple[int, ...] = (64,)) -> dict[str, Any]:
    shares = {"single": Share(single, 10).to_json(), "overall": Share(overall, 40).to_json()}
    return {"kind": "alignment", "train_step": step, "results": {str(side): {"shares": shares} for side in sides}}


def test_alignment_is_drawn_over_the_steps_in_order_whatever_the_files(axes: list[Any], tmp_path: Path) -> None:
    plot_alignment([result(200, 5, 12), result(50, 1, 4), result(100, 3, 9)], 64, tmp_path / "a.png")
    (plot,) = axes
    assert lines(plot) == {
        "single": ([50, 100, 200], pytest.approx([10, 30, 50])),
        "overall": ([50, 100, 200], pytest.approx([10, 22.5, 30])),
    }
    (band,) = plot.collections
    corners = band.get_paths()[0].vertices
    for step, share in ((50, Share(4, 40)), (100, Share(9, 40)), (200, Share(12, 40))):
        heights = corners[corners[:, 0] == step][:, 1]
        assert (heights.min(), heights.max()) == pytest.approx(tuple(100 * bound for bound in share.interval))
    assert "64 px" in plot.get_ylabel()
    assert plot.get_xlabel() == "training step"
    assert plot.get_ylim() == (-2, 102), "0 and 100 % are in the plot"
    assert [text.get_text() for text in plot.get_legend().get_texts()] == ["single", "overall"]


def test_a_sweep_is_a_line_of_each_number_of_steps_over_the_scales_in_order(axes: list[Any], tmp_path: Path) -> None:
    cells = [
        {"steps": steps, "guidance": scale, "shares": {"overall": Share(right, 20), "single": Share(0, 5)}}
        for steps, scale, right in ((8, 3.0, 12), (8, 1.0, 0), (4, 2.0, 20), (8, 2.0, 7), (4, 1.0, 3))
    ]
    plot_sweep(cells, 256, tmp_path / "deep" / "s.png")
    (plot,) = axes
    drawn = {}
    for container in plot.containers:
        line, _, (bars,) = container.lines
        scales, middle = line.get_data()
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        drawn[container.get_label()] = (list(scales), list(middle), ends)
    assert [*drawn] == ["8 steps", "4 steps"]
    for label, scales, right in (("8 steps", [1, 2, 3], [0, 7, 12]), ("4 steps", [1, 2], [3, 20])):
        assert drawn[label][0] == scales
        assert drawn[label][1] == pytest.approx([5 * number for number in right])
        expected = [[100 * bound for bound in Share(number, 20).interval] for number in right]
        np.testing.assert_allclose(drawn[label][2], expected, atol=1e-9)
    assert "256 px" in plot.get_xlabel()
    assert plot.get_ylim() == (-2, 102)
    assert (tmp_path / "deep" / "s.png").exists()


def test_metrics_are_drawn_smoothed_over_the_raw_values(axes: list[Any], tmp_path: Path) -> None:
    runs = {"one": ([1.0, 2.0, 3.0], [4.0, 2.0, 6.0]), "two": ([5.0], [1.0])}
    plot_metrics(runs, "loss", 2, tmp_path / "m.png")
    (plot,) = axes
    assert lines(plot) == {"one": ([1, 2, 3], [4, 3, 4]), "two": ([5], [1])}
    raw = [line for line in plot.get_lines() if line.get_label().startswith("_")]
    assert [list(line.get_ydata()) for line in raw] == [[4, 2, 6], [1]]
    assert [line.get_color() for line in raw] == [
        line.get_color() for line in plot.get_lines() if line.get_label() in runs
    ]
    assert plot.get_ylabel() == "loss"


@pytest.mark.parametrize("key", ["val_loss", "val_loss/", "lr", "skipped"])
def test_what_is_measured_is_drawn_as_it_is(axes: list[Any], tmp_path: Path, key: str) -> None:
    falling = ([100.0, 200.0, 300.0], [0.4, 0.1, 0.071])
    plot_metrics({"run": falling}, key, 50, tmp_path / "m.png")
    assert lines(axes[0]) == {"run": falling}
    assert len(axes[0].get_lines()) == 1


@pytest.mark.parametrize("key", ["loss", "loss_t0", "grad_norm"])
def test_what_is_drawn_anew_in_every_step_is_smoothed(axes: list[Any], tmp_path: Path, key: str) -> None:
    plot_metrics({"run": ([1.0, 2.0], [4.0, 2.0])}, key, 2, tmp_path / "m.png")
    assert lines(axes[0])["run"][1] == [4, 3]


@pytest.mark.parametrize("words", [["curves", "--metrics", "m.jsonl"], ["sweep", "--model", "nowhere"]])
def test_without_matplotlib_a_line_says_how_to_install_it_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str]
) -> None:
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    told = f"imagen.evaluation {words[0]}: error: plots need matplotlib, which is not installed: pip install"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)
    assert "[eval]" in line


@pytest.mark.parametrize(
    ("first", "last", "scale"),
    [([1.0, 2.0], [3.0], "log"), ([1.0, 0.0], [3.0], "linear"), ([1.0, 2.0], [3.0, -1.0], "linear")],
)
def test_the_scale_is_logarithmic_where_every_value_has_a_logarithm(
    axes: list[Any], tmp_path: Path, first: list[float], last: list[float], scale: str
) -> None:
    runs = {"one": ([1.0, 2.0][: len(first)], first), "two": ([1.0, 2.0][: len(last)], last)}
    plot_metrics(runs, "loss", 1, tmp_path / "m.png")
    assert axes[0].get_yscale() == scale


def write(path: Path, *entries: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries))
    return path


def test_metrics_are_the_finite_numbers_that_have_a_step(tmp_path: Path) -> None:
    path = write(
        tmp_path / "metrics.jsonl", {"step": 1, "loss": 2, "loss_2": 9.0}, {"loss": 3.0},
        {"step": 2, "loss": float("nan")}, {"step": 3, "loss": float("inf")}, {"step": 4, "loss": "many"},
        {"step": 5, "loss": None}, {"step": 6, "lr": 1.0},
        {"step": 7, "loss": 0.5, "val_loss/b": 1.0, "val_loss/a": 2.0}, {"step": 8, "val_loss/a": 3.0, "val_loss": 4.0},
    )  # fmt: skip
    assert read_metrics(path, "loss") == {"loss": ([1.0, 7.0], [2.0, 0.5])}
    found = read_metrics(path, "val_loss/")
    assert found == {"val_loss/b": ([7.0], [1.0]), "val_loss/a": ([7.0, 8.0], [2.0, 3.0])}
    assert [*found] == ["val_loss/b", "val_loss/a"]


@pytest.mark.parametrize(
    ("entries", "key", "told"),
    [
        ([{"step": 1, "b": 1, "a": 2}], "loss", "has no values of 'loss' with a step; it has a, b, step$"),
        ([{"loss": 1}], "loss", "has no values of 'loss' with a step; it has loss$"),
        ([], "loss", "has no values of 'loss' with a step; it has nothing$"),
        ([{"step": 1, "loss": 1}], "val/", r"that begin with 'val/' .*; it has loss, step: was validation.every set"),
        ([{"step": 1, "loss": 1}, "{half"], "loss", "line 2 is not JSON: '{half'"),
    ],
)
def test_metrics_that_are_not_there_are_told_with_those_that_are(
    tmp_path: Path, entries: list[Any], key: str, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        read_metrics(write(tmp_path / "metrics.jsonl", *entries), key)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "is not a result of the alignment command"),
        ({"kind": "sweep", "train_step": 1}, "is not a result of the alignment command"),
        ({"train_step": 1}, "is not a result of the alignment command"),
        (result(None, 1, 1), "names no training step; run alignment with --train-step N"),
    ],
)
def test_what_is_no_alignment_over_training_is_refused(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_alignment(write(tmp_path / "a.json", content))
    good = result(0, 1, 1)
    assert read_alignment(write(tmp_path / "b.json", good)) == good, "the step 0 is one"


def test_every_run_and_every_key_has_its_own_line(axes: list[Any], tmp_path: Path) -> None:
    runs = [
        write(
            tmp_path / name / "metrics.jsonl",
            *({"step": step, "val_loss/log_snr_-3": step + 1, "val_loss/all": 1} for step in steps),
        )
        for name, steps in (("first", (1, 2)), ("second", (3,)))
    ]
    words = ["curves", "--metrics", *map(str, runs), "--out", str(tmp_path), "--window", "1"]
    assert main([*words, "--key", "val_loss/"]) == 0
    assert lines(axes[0]) == {
        "first  log SNR -3": ([1, 2], [2, 3]), "firstall": ([1, 2], [1, 1]),
        "second  log SNR -3": ([3], [4]), "secondall": ([3], [1]),
    }  # fmt: skip
    assert (tmp_path / "val_loss_each.png").exists()
    assert main([*words, "--key", "val_loss/all"]) == 0
    assert lines(axes[1]) == {"first": ([1, 2], [1, 1]), "second": ([3], [1])}
    assert (tmp_path / "val_loss" / "all.png").exists()


def test_runs_whose_folders_have_one_name_are_told_apart_by_those_above(
    axes: list[Any], tmp_path: Path, capsys: Any
) -> None:
    places = ("a/one/run", "b/one/run", "b/two/run")
    runs = [write(tmp_path / place / "metrics.jsonl", {"step": n, "loss": n}) for n, place in enumerate(places)]
    words = ["curves", "--out", str(tmp_path), "--metrics"]
    assert main([*words, *map(str, runs)]) == 0
    assert lines(axes[0]) == {place: ([n], [n]) for n, place in enumerate(places)}
    assert main([*words, *map(str, runs[1:])]) == 0
    assert lines(axes[1]) == {"one/run": ([1], [1]), "two/run": ([2], [2])}
    capsys.readouterr()
    assert main([*words, *map(str, [*runs, runs[1]])]) == 2
    told = f"--metrics has two files of the run {str(runs[1].parent)!r}: give one of each run\n"
    assert capsys.readouterr().err.endswith(told)


def test_metrics_and_alignment_are_drawn_by_one_call(axes: list[Any], tmp_path: Path, capsys: Any) -> None:
    metrics = write(tmp_path / "run" / "metrics.jsonl", *({"step": s, "loss": float(s)} for s in (1, 2, 3)))
    files = [write(tmp_path / f"{step}.json", result(step, 1, 1, (64, 256))) for step in (2, 1)]
    words = ["curves", "--metrics", str(metrics), "--alignment", *map(str, files), "--out", str(tmp_path / "out")]
    assert main([*words, "--window", "2"]) == 0
    assert lines(axes[0]) == {"run": ([1, 2, 3], [1, 1.5, 2.5])}
    assert lines(axes[1])["overall"][0] == [1, 2]
    told = capsys.readouterr().err.splitlines()
    assert told == [f"wrote {tmp_path / 'out' / name}.png" for name in ("loss", "alignment")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["alignment.png", "loss.png"]
    assert main([*words, "--window", "1", "--size", "64"]) == 0
    assert "64 px" in axes[3].get_ylabel()
    assert main([*words, "--window", "0"]) == 2
    assert "--window is 0; expected at least 1" in capsys.readouterr().err
    write(files[1], result(1, 1, 1, (64,)))
    assert main(words) == 2
    assert f"{files[1]} has no pictures of 256 px; choose another --size" in capsys.readouterr().err
    assert main(["curves", "--out", str(tmp_path)]) == 2
    assert "nothing to draw: give --metrics" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["alignment", "sweep", "guidances", "samplers", "superres", "curves"])
def test_every_command_writes_to_a_folder_of_its_name_unless_told_otherwise(name: str, capsys: Any) -> None:
    model = [] if name == "curves" else ["--model", "m"]
    assert build_parser().parse_args([name, *model]).out == Path("results") / name
    assert build_parser().parse_args([name, *model, "--out", "o"]).out == Path("o")
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args([name, *model, "--out", ""])
    said = capsys.readouterr().err
    assert (
        said
        == f"python -m imagen.evaluation {name}: error: argument --out: it is empty (''); give a folder to write to\n"
    )
    plain = vars(build_parser().parse_args([name, *model]))
    usual = {
        "alignment": {"num": 200, "split": "heldout", "size": 256, "num_1024": None, "train_step": None},
        "sweep": {"num": 40, "split": "tune", "size": 256, "stage": None},
        "guidances": {"num": 200, "split": "tune", "weak": None},
        "samplers": {"num": 160, "split": "tune"},
        "superres": {"num": 24, "num_1024": 8},
        "curves": {"metrics": [], "alignment": [], "key": "loss", "window": 50, "size": 256},
    }[name]
    assert plain.items() >= usual.items()
    for option, value in usual.items():
        if isinstance(value, int):
            with pytest.raises(SystemExit):
                build_parser().parse_args([name, *model, f"--{option.replace('_', '-')}", "many"])


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, capsys: Any) -> None:
    assert main(["curves", "--metrics", str(tmp_path / "nowhere.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("imagen.evaluation curves: error: ")
    assert "nowhere.jsonl cannot be read: No such file" in error
