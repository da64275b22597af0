"""The model card of a composed pipeline: what each stage is, what it was trained on, how far, and how that looked."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from imagen.disk import read_json, write_text
from imagen.errors import one_line
from imagen.stages.folder import RECORD

CARD, PICTURES = "README.md", "samples"
MADE = "<!-- written by imagen.training.compose; take this line out and the card is yours -->"
HEAD = """---
library_name: imagen
pipeline_tag: text-to-image
---

{made}

# {name}

A cascade of diffusion models in pixel space (Imagen, Saharia et al. 2022).

```bash
python sample.py {prompt} --model {folder}
```

| stage | picture | network | parameters | trained | loss | held-out loss |
|---|---|---|---|---|---|---|
"""


def run_folder(source: Path) -> Path | None:
    """The run that ``source``, its folder or its model folder, belongs to; None for a composed pipeline."""
    places = (source, source.parent)
    return next((one for one in places if (one / "config.yaml").is_file() and (one / "model" / RECORD).is_file()), None)


@dataclass(frozen=True)
class Trained:
    """What is known of a stage's training: its run, None for a stage of a composed pipeline, and facts of it."""

    run: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Path) -> Trained:
        """Of a run_dir, its model folder, or a composed pipeline. Raises: ValueError where its files are damaged."""
        run = run_folder(source)
        return cls() if run is None else cls(run, read_run_facts(run))


def write_card(pipeline: Any, trained: Mapping[str, Trained], out: Path) -> None:
    """Write ``out/README.md``, and beside it the last grid of each run; a card of somebody's own stays."""
    card = out / CARD
    if card.exists() and MADE not in card.read_text(encoding="utf-8", errors="replace"):
        return
    facts = {slot: known.facts for slot, known in trained.items()}
    rows = [row(slot, pipeline, facts[slot]) for slot in pipeline.stage_defaults]
    text = (
        HEAD.format(made=MADE, name=out.name, prompt=quoted(_prompt(facts)), folder=shlex.quote(out.name))
        + "\n".join(rows)
        + "\n"
    )
    for slot, known in trained.items():
        text += "" if known.run is None else _of_run(slot, known.run, known.facts, out)
    write_text(card, text)


def read_run_facts(run: Path) -> dict[str, Any]:
    """Configuration, step, images, and the last loss and held-out loss of a run's folder, where they are there.

    Raises:
        ValueError: a configuration that is none.
    """
    record, metrics = read_json(run / "model" / RECORD), run / "metrics.jsonl"
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{run / 'config.yaml'} is not valid YAML: {one_line(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get("data"), dict):
        raise ValueError(f"{run / 'config.yaml'} is no run's configuration: it has no section data")
    facts: dict[str, Any] = {"config": config}
    facts |= {key: record.get(key) for key in ("step", "images")}
    for line in metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else ():
        with contextlib.suppress(ValueError):  # the last line of a run that was killed may be cut
            facts |= {key: value for key, value in json.loads(line).items() if key in ("loss", "val_loss")}
    return facts


def row(slot: str, pipeline: Any, facts: Mapping[str, Any]) -> str:
    """The stage's line of the table."""
    unet, stage = getattr(pipeline, f"{slot}_unet"), pipeline.stage_defaults[slot]
    size = f"{stage.size} px" if stage.lowres_size is None else f"{stage.lowres_size} -> {stage.size} px"
    parameters = f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} million"
    trained = f"{facts['step']:,} steps, {facts['images']:,} pictures" if facts.get("images") else ""
    losses = [f"{facts[name]:.4f}" if facts.get(name) is not None else "" for name in ("loss", "val_loss")]
    cells = (f"`{slot}`", size, type(unet).__name__, parameters, trained, *losses)
    return f"| {' | '.join(cells)} |"


def quoted(prompt: str) -> str:
    """A prompt as a word of a shell's command, on one line."""
    return shlex.quote(" ".join(prompt.split()))


def _prompt(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A prompt that the networks were shown, or words for one."""
    prompts = [
        one for known in facts.values() for one in (known.get("config", {}).get("grid") or {}).get("prompts") or ()
    ]
    return prompts[0] if prompts else "what to show"


def _of_run(slot: str, run: Path, facts: Mapping[str, Any], out: Path) -> str:
    """How a stage was trained, with its last grid, which is copied."""
    text = f"\n## {slot}\n"
    grids = sorted((run / "samples").glob("step-*.png"))
    if grids:
        place = Path(PICTURES) / f"{slot}.png"
        (out / PICTURES).mkdir(exist_ok=True)
        shutil.copyfile(grids[-1], out / place)
        text += f"\n![samples of {slot}]({place.as_posix()})\n"
    data = {key: value for key, value in facts["config"]["data"].items() if value is not None}
    told = ", ".join(f"{key} {value}" for key, value in data.items() if key in ("kind", "path", "split"))
    config = yaml.safe_dump(facts["config"], sort_keys=False, allow_unicode=True)
    return f"{text}\nData: {told}.\n\n<details><summary>configuration</summary>\n\n```yaml\n{config}```\n\n</details>\n"
