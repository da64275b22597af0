"""Scores while a stage trains: of the average's samples, the same on any number of processes and after a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessorPil

from imagen import ImagenPipeline
from imagen.cascade.training import scores as module
from imagen.cascade.training.config.run import LossPerLevelConfig, RunConfig
from imagen.cascade.training.config.sections import ScoresConfig
from imagen.cascade.training.drawing import picture_generators
from imagen.cascade.training.scores import Scores
from imagen.cascade.training.start.network import make_unet
from imagen.cascade.training.task import StageTask
from imagen.cascade.training.validation import validation_source
from imagen.data.config import DataConfig
from imagen.diffusion.augmentation import resize
from imagen.errors import ConfigError
from imagen.scores.encoders import DualEncoder, clip_score
from imagen.scores.features import load_features
from imagen.scores.frechet import Moments, frechet_distance
from imagen.scores.kernel import kernel_distance
from imagen.training.processes import Processes
from imagen.training.trainer import Trainer
from tests.factories import WIDTH, redraw, tiny_clip_tokenizer, tiny_whole_clip

Config = Callable[..., RunConfig]
HELD_OUT = {"kind": "shapes", "split": "heldout"}
pytestmark = pytest.mark.filterwarnings("ignore:.*texts are longer than")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole CLIP called tiny."""
    path = tmp_path_factory.mktemp("features") / "tiny"
    tiny_whole_clip(positions=30).save_pretrained(path)
    tiny_clip_tokenizer().save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(path)
    return str(path)


def changes(clip: str, **scores: Any) -> dict[str, Any]:
    asked = {"features": clip, "every": 2, "count": 5, "num_inference_steps": 2, "batch_size": 2, **scores}
    return {"validation": {"every": 1, "samples": 2, "levels": 2, "data": HELD_OUT, "scores": asked}}


def made(settings: RunConfig, processes: Processes | None = None) -> Scores:
    task = StageTask(settings)
    task.load(torch.device("cpu"), processes or Processes(), None)
    assert task.scores is not None
    return task.scores


def measured(settings: RunConfig) -> dict[str, float]:
    return made(settings).measure(redraw(make_unet(settings), 1))


def test_what_is_logged_is_of_the_exported_stage_s_samples_and_the_held_out_pictures(
    config: Config, clip: str, t5: str, read_metrics: Any
) -> None:
    text = {"text.encoder": t5, "unet.text_dim": WIDTH, "train.steps": 3}
    settings = config(**text, **changes(clip, guidance_scale=2.5, seed=3))
    Trainer(StageTask(settings)).fit()
    lines = [line for line in read_metrics(settings.run_dir) if "val_loss" in line]
    keys = ["scores/fd[tiny]", "scores/kd[tiny]", "scores/clip"]
    assert [[key for key in line if key.startswith("scores/")] for line in lines] == [[], keys, keys]
    pipe = ImagenPipeline.from_pretrained(settings.run_dir)
    held = [validation_source(settings)[row] for row in range(5)]
    captions = [sample.caption for sample in held]
    how = {"sampler": "ddim", "num_inference_steps": 2, "guidance_scale": 2.5}
    samples = pipe(captions, generator=picture_generators(3, "scores", range(5)), **how).images
    truth = module.finish(torch.stack([sample.image for sample in held]), "pil")
    network, encoder = load_features(clip), DualEncoder.load(clip)
    x, y = network.features(samples), network.features(truth)
    expected = [
        frechet_distance(Moments.of(x), Moments.of(y)),
        kernel_distance(x, y),
        clip_score(encoder.images(samples), encoder.texts(captions)).mean().item(),
    ]
    assert expected[0] > 1e-4
    assert [lines[-1][key] for key in keys] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_pictures_that_are_the_held_out_ones_are_at_no_distance(
    config: Config, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(**changes(clip))
    scores = made(settings)
    monkeypatch.setattr(scores, "_sample", lambda unet, raw, rows: raw["image"])
    record = scores.measure(make_unet(settings))
    truth = scores._held_out[0]
    assert record == {"scores/fd[tiny]": pytest.approx(0, abs=1e-8), "scores/kd[tiny]": kernel_distance(truth, truth)}


def test_the_processes_share_the_work_and_the_weights_alone_change_the_numbers(config: Config, clip: str) -> None:
    settings = config(**changes(clip), **{"unet.dropout": 0.2})
    unet, scores = redraw(make_unet(settings), 1).train(), made(settings)
    torch.manual_seed(5)
    record = scores.measure(unet)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1)), "nothing is drawn from torch's own generator"
    assert unet.training
    parts: list[list[torch.Tensor]] = [[], []]
    for rank, tables in enumerate(parts):

        def add(part: torch.Tensor, tables: list[torch.Tensor] = tables) -> torch.Tensor:
            tables.append(part.clone())
            return part + torch.rand(part.shape)  # so that it is a set with a spread

        made(settings, Processes(rank, 2, add)).measure(unet)
    sums = [first + second for first, second in zip(*parts, strict=True)]
    assert len(sums) == 2, "of the held-out pictures and of samples"
    assert all((part == 0).any() for tables in parts for part in tables)

    def given(part: torch.Tensor) -> torch.Tensor:
        return sums.pop(0)

    assert made(settings, Processes(0, 2, given)).measure(unet) == record
    other = redraw(make_unet(settings), 2)
    assert made(settings).measure(other) != record


def test_a_run_that_goes_on_measures_what_an_unbroken_one_does_and_training_does_not_notice(
    config: Config, clip: str, tmp_path: Path, read_metrics: Any
) -> None:
    runs = {}
    for name, ends in (("whole", (4,)), ("broken", (2, 4)), ("quiet", (4,))):
        asked = {} if name == "quiet" else changes(clip)
        settings = config(run_dir=str(tmp_path / name), **asked)
        for steps in ends:
            Trainer(StageTask(replace(settings, train=replace(settings.train, steps=steps)))).fit()
        runs[name] = (
            [line for line in read_metrics(settings.run_dir) if "val_loss" in line],
            (tmp_path / name / "model/unet/diffusion_pytorch_model.safetensors").read_bytes(),
        )
    assert runs["whole"] == runs["broken"]
    assert [line["step"] for line in runs["whole"][0] if "scores/fd[tiny]" in line] == [2, 4]
    assert runs["quiet"][1] == runs["whole"][1]


@pytest.mark.parametrize("change", [{"seed": 1}, {"num_inference_steps": 3}, {"guidance_scale": 9.0}, {"count": 4}])
def test_every_setting_acts(config: Config, clip: str, t5: str, change: dict[str, Any]) -> None:
    text = {"text.encoder": t5, "unet.text_dim": WIDTH}
    before = measured(config(**text, **changes(clip)))
    assert measured(config(**text, **changes(clip))) == before
    assert measured(config(**text, **changes(clip, **change))) != before
    assert measured(config(**text, **changes(clip, batch_size=3))) == pytest.approx(before, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("crop", [None, 8])
def test_super_resolution_starts_from_the_held_out_pictures_inputs(
    config: Config, clip: str, monkeypatch: pytest.MonkeyPatch, crop: int | None
) -> None:
    stage = {"name": "sr256", "size": 16, "lowres_size": 8, "prediction_type": "v_prediction"}
    given = {"stage": stage, "unet.lowres_channels": 3, **changes(clip, count=2)}
    given["validation"]["data"] = {**HELD_OUT, "crop": crop}
    settings, seen, run = config(**given, **{"data.crop": crop}), [], module.run_stage

    def spy(stage: Any, job: Any, lowres: Any) -> Any:
        out = run(stage, job, lowres)
        seen.append((torch.stack(list(lowres)), out[0]))
        return out

    monkeypatch.setattr(module, "run_stage", spy)
    scores = made(settings)
    record = scores.measure(redraw(make_unet(settings), 1))
    assert list(record) == ["scores/fd[tiny]", "scores/kd[tiny]"], "no text, no CLIP score"
    ((lowres, samples),) = seen
    held = [scores.validation.source[row] for row in range(2)]
    shown = torch.stack([sample.image for sample in held])
    assert samples.shape == shown.shape == (2, 3, crop or 16, crop or 16)
    assert torch.equal(lowres, torch.stack([sample.lowres for sample in held if sample.lowres is not None]))
    assert lowres.shape[-1] == shown.shape[-1] // 2
    assert (lowres - resize(shown, lowres.shape[-1])).abs().mean() < 0.2, "of the same pictures"


@pytest.mark.parametrize(("given", "told"), [
    ({"every": 3}, r"validation.scores.every 3 must be a multiple of validation.every \(2\)"),
    ({"every": 0}, "validation.scores.every 0 must be positive"), ({"count": 1}, "validation.scores.count 1 must be"),
    ({"features": ""}, "validation.scores.features is missing"), ({"batch_size": 0}, "validation.scores.batch_size 0"),
    ({"seed": -1}, "validation.scores.seed -1"), ({"num_inference_steps": 0}, "validation.scores.num_inference_steps"),
    ({"guidance_scale": -1.0}, "validation.scores.guidance_scale -1.0"),
])  # fmt: skip
def test_a_section_that_cannot_be_is_told(given: dict[str, Any], told: str) -> None:
    data = DataConfig(split="heldout")
    with pytest.raises(ConfigError, match=told):
        LossPerLevelConfig(every=2, data=data, scores=ScoresConfig(**{"features": "clip", "every": 4, **given}))
    with pytest.raises(ConfigError, match=r"a multiple of validation.every \(0\)"):
        LossPerLevelConfig(data=data, scores=ScoresConfig("clip"))


def test_what_is_not_there_is_told_before_anything_is_trained(config: Config, clip: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation.scores.features: "):
        made(config(**changes(str(tmp_path / "lost"))))
    few = tmp_path / "few"
    few.mkdir()
    for name in ("a", "b", "c"):
        module.finish(torch.zeros(1, 3, 8, 8), "pil")[0].save(few / f"{name}.png")
    given = changes(clip, count=4)
    given["validation"]["data"] = {"kind": "folder", "path": str(few)}
    five = {"unet.in_channels": 5, "unet.out_channels": 5, "data": {"kind": "folder", "path": str(tmp_path)}}
    with pytest.raises(ConfigError, match="look at pictures of 1 or 3 channels, this stage's have 5"):
        StageTask(config(**given, **five))
    with pytest.raises(ConfigError, match="validation.scores.count 4 is more than the 3 pictures"):
        made(config(**given))
    given["validation"]["scores"]["count"] = 3
    assert made(config(**given)).settings.count == 3
