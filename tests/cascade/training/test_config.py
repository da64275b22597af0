"""Configurations: what is read is what was written, and every mistake is one line that names the remedy."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from imagen.cascade.adapters import check_targets
from imagen.cascade.training.config.parsing import parse
from imagen.cascade.training.config.run import RunConfig
from imagen.cascade.training.start.network import make_unet
from imagen.cascade.training.task import StageTask
from imagen.cli.train import main
from imagen.convert.configs import unet_arguments
from imagen.errors import ConfigError
from imagen.training.config.parsing import known_keys, to_yaml
from imagen.training.config.resumed import changed_keys, flatten
from tests.convert.released import IF_I_XL

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
BEHIND = {"base64_card": "base64"}  # what is read behind another file, and changes it
STAGE_FILES = [
    path
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if path.parent.name != "accelerate" and path.stem not in ("presets", "clip64", *BEHIND)
]


@pytest.mark.parametrize("name", BEHIND)
def test_a_file_that_is_read_behind_another_changes_it_alone_where_it_says(name: str) -> None:
    whole, part = (str(CONFIGS / "shapes" / f"{one}.yaml") for one in (BEHIND[name], name))
    words = ["--config", whole]
    alone, both = (flatten(asdict(parse(given))) for given in (words, [*words, "--config", part]))
    said = flatten(yaml.safe_load(Path(part).read_text()))
    assert {key: both[key] for key in said} == said
    assert {key for key in both if both[key] != alone[key]} == {*said}


def test_yaml_overrides_and_resolved_file_agree(write_config, tmp_path):
    config = parse(
        ["--config", str(write_config()), "--optim.lr", "3e-4", "--unet.model_channels=16", "--train.steps", "9"]
    )
    assert (config.optim.lr, config.unet["model_channels"], config.train.steps) == (3e-4, 16, 9)
    assert config.unet["kind"] == "BaseUNet"  # the rest of the file stays
    saved = tmp_path / "resolved.yaml"
    saved.write_text(to_yaml(config))
    assert parse(["--config", str(saved)]) == config


def test_help_says_what_every_key_means(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "steps of linear warm-up (the paper: 10,000) (type: int" in said
    keys = [key for key in known_keys(RunConfig) if not key.startswith("validation.data.")]
    sections = {key.rpartition(".")[0] for key in keys}
    texts = {
        key: said.rpartition(f" --{key} ")[2].partition("(type:")[0].split() for key in keys if key not in sections
    }
    assert len(texts) > 80
    assert not {key: text for key, text in texts.items() if len(text) < 3}


def test_print_config_prints_the_resolved_values(write_config, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--config", str(write_config()), "--optim.lr", "0.25", "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["optim"]["lr"] == 0.25


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (["--optim.lrr", "1"], "unknown key 'optim.lrr' in the command line; did you mean 'optim.lr'?"),
        (["--trian.steps", "1"], "did you mean 'train.steps'?"),
        (["--unet.model_chanels", "8"], "did you mean 'unet.model_channels'?"),
        (["--unet.kind", "BaseUnet"], "unet.kind 'BaseUnet' is unknown; expected BaseUNet"),
        (["--optim.lr", "fast"], "wrong value for 'optim.lr'"),
        (["--unet.norm_groups", "many"], "wrong value for 'unet.norm_groups'"),
        (["--stage.size", "9"], "stage.size 9 is not a multiple of 2"),
        (["--stage.lowres_size", "4"], "stage.lowres_size 4: base takes none"),
        (["--stage.aug_space", "upsampled"], "stage.aug_space 'upsampled': base has no low-resolution input"),
        (["--sampling.threshold_cap", "0.5"], "sampling.threshold_cap is 0.5"),
        (["--sampling.guidance_scale", "-1"], "sampling.guidance_scale is -1"),
        (["--sampling.num_inference_steps", "smart5"], "sampling.num_inference_steps is 'smart5'; expected one of"),
        (
            ["--sampling.sampler", "unipc", "--sampling.num_inference_steps", "smart27"],
            "takes no list of timesteps",
        ),
        (["--sampling.guidance", "apgg"], "sampling.guidance 'apgg': 'apgg' is unknown; did you mean 'apg'?"),
        (
            ["--sampling.lowres_consistency", "-1"],
            "sampling.lowres_consistency is -1; expected an integer of at least 0",
        ),
        (
            ["--sampling.lowres_consistency", "4"],
            "lowres_consistency 4: pictures of 3 channels are made from 0",
        ),
        (["--unet.lowres_channels", "3"], "unet.lowres_channels 3: base has no low-res input"),
        (["--unet.text_dim", "32"], "text.encoder is null"),
        (["--unet.norm_groups", "5"], "unet: "),
        (["--unet.norm_groups", "0"], "unet: norm_groups must be at least 1, got 0"),
        (["--unet.head_channels", "0"], "unet: head_channels must be at least 1, got 0"),
        (["--unet.model_channels", "-8"], "unet: model_channels must be at least 1, got -8"),
        (["--unet.in_channels", "4", "--unet.out_channels", "4"], "data.kind shapes have three channels: set it to 3"),
        (["--train.accumulation", "3"], "train.batch_size 4 must be a multiple of train.accumulation (3)"),
        (["--train.steps", "0"], "train.steps 0 must be positive"),
        (["--ema.decay", "1.5"], "ema.decay 1.5 must lie in [0, 1)"),
        (["--stage.loss.low", "9"], "loss low 9.0 must lie between 0 and gamma"),
        (["--text.encoder", "/nowhere/t5", "--unet.text_dim", "32"], "text.encoder '/nowhere/t5' does not exist"),
        (["--data.kind", "folder"], "data.path is missing"),
        (["--data.kind", "folder", "--data.path", "/nowhere"], "there is no folder '/nowhere'"),
        (["--train.init_from", "/nowhere"], "train.init_from '/nowhere' does not exist: train that stage first"),
        (["--config", "/nowhere.yaml"], "cannot read --config '/nowhere.yaml'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(write_config, capsys, override, expected):
    assert main(["--config", str(write_config()), *override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ")
    assert expected in error
    assert error.count("\n") == 1


def test_unknown_key_in_the_file_names_file_and_nearest(write_config):
    with pytest.raises(
        ConfigError, match="unknown key 'train.batchsize' in .*config.yaml; did you mean 'train.batch_size'"
    ):
        parse(["--config", str(write_config(**{"train.batchsize": 3}))])


def changed(saved, config):
    return changed_keys(saved, config, StageTask(config).changes)


def test_which_changes_may_be_made_to_a_run(config):
    saved = asdict(config())
    assert changed(saved, config(**{"train.log_every": 7, "grid.every": 3, "train.num_workers": 1})) == ([], [])
    warned, refused = changed(saved, config(**{"optim.lr": 0.5}))
    assert warned == ["optim.lr 0.001 -> 0.5"]
    assert refused == []
    warned, refused = changed(saved, config(**{"train.seed": 1, "unet.model_channels": 16, "stage.size": 16}))
    assert warned == []
    assert refused == ["stage.size 8 -> 16", "train.seed 0 -> 1", "unet.model_channels 8 -> 16"]
    # another optimizer has another state; another learning rate of the same one does not
    assert changed(saved, config(**{"optim.muon_lr": 0.5})) == ([], ["optim.muon_lr None -> 0.5"])
    assert changed(saved, config(**{"optim.kind": "adafactor"})) == ([], ["optim.kind adamw -> adafactor"])
    with_muon = asdict(config(**{"optim.muon_lr": 0.1}))
    assert changed(with_muon, config(**{"optim.muon_lr": 0.5})) == (["optim.muon_lr 0.1 -> 0.5"], [])


def test_an_option_added_later_does_not_change_an_older_run(config):
    saved = asdict(config())
    del saved["stage"]["aug_space"]
    assert changed(saved, config()) == ([], [])


def test_flatten():
    assert flatten({"a": {"b": (1, 2)}, "c": {}}) == {"a.b": [1, 2], "c": {}}


def test_the_shipped_configurations_are_where_these_tests_look():
    assert len(STAGE_FILES) >= 12, f"only {len(STAGE_FILES)} configurations in {CONFIGS}"


@pytest.mark.parametrize("path", STAGE_FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_configuration_builds_on_the_meta_device(path):
    config = parse(["--config", str(path)])
    if not config.unet:  # taken from train.init_from, a stage of DeepFloyd IF
        config = replace(config, unet={"kind": "BaseUNet", **unet_arguments(IF_I_XL, "published"), "out_channels": 3})
    unet = make_unet(config, device="meta")
    check_targets(unet, () if config.lora.rank is None else config.lora.targets)
    assert sum(parameter.numel() for parameter in unet.parameters()) > 0
    assert "#" in path.read_text()[:2], "the head comment says command, hardware, cost and expected result"


def test_a_run_dir_that_is_a_file_is_one_line(write_config, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert main(["--config", str(write_config())]) == 2
    assert f"run_dir '{tmp_path / 'run'}' is a file" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "run").read_text() == "mine"
