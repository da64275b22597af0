"""Many pictures of a model, one or more for each prompt, in shards that are kept as they are finished.

A shard is a tar file as training reads them (``data.kind: shards``): of every picture ``0000012.png``, its prompt in
``0000012.txt``, and prompt and seed in ``0000012.json``. It is there whole or not at all. What was asked for stands in
``samples.json`` beside the shards; the same command makes what is missing, another one is refused.

A picture depends on the model, its prompt and its seed. The batches are cut anew in every shard, so that neither an
interruption nor the number of processes changes which pictures are computed together: the same shards, bit for bit.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from imagen.checks import check_int
from imagen.disk import read_json, whole, write_text
from imagen.evaluation.generate import add_model_arguments, check_calls, fingerprint, load, sample, sampling_settings
from imagen.evaluation.launch import Launch
from imagen.evaluation.prompts import read_prompts

if TYPE_CHECKING:
    from imagen.pipeline import ImagenPipeline

MANIFEST = "samples.json"
FORMAT_VERSION = 1
SHARD_SIZE = 64  # what an interruption loses at most, of each process
ALONE = Launch()


class Wanted(NamedTuple):
    """A picture to sample.

    Attributes:
        number: among all, in the order of the prompts; it names the picture's files.
        text: the prompt.
        seed: of its generator.
    """

    number: int
    text: str
    seed: int


@dataclass(frozen=True)
class Samples:
    """Which pictures are asked for.

    Picture i of prompt p has the seed ``seed + p * per_prompt + i``, so that no two have the same.

    Attributes:
        prompts: in order; the same one may come twice.
        per_prompt: pictures of each.
        seed: of the first picture.
        size: side to stop at; None: the model's last stage.
        settings: arguments of the pipeline's call that are the same for all (steps, guidance, preset, ...).
        shard_size: pictures in a shard.

    Raises:
        ValueError: no prompts, or a number out of range.
    """

    prompts: Sequence[str]
    per_prompt: int = 1
    seed: int = 0
    size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shard_size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("there are no prompts; expected at least one")
        check_int("per_prompt", self.per_prompt, 1)
        check_int("shard_size", self.shard_size, 1)
        check_int("seed", self.seed, 0, 2**62)

    def __len__(self) -> int:
        return len(self.prompts) * self.per_prompt

    @property
    def shards(self) -> int:
        """How many there are; the last one may hold fewer pictures."""
        return -(-len(self) // self.shard_size)

    def of_shard(self, shard: int) -> list[Wanted]:
        """Its pictures."""
        start = shard * self.shard_size
        numbers = range(start, min(start + self.shard_size, len(self)))
        return [Wanted(number, self.prompts[number // self.per_prompt], self.seed + number) for number in numbers]


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard lies."""
    return folder / f"samples-{shard:05d}.tar"


def describe(pipe: ImagenPipeline, samples: Samples) -> dict[str, Any]:
    """All that decides the pictures: weights, how the stages sample, prompts and seeds; for ``samples.json``.

    Raises:
        ValueError: what the pipeline refuses.
    """
    stages = pipe.settings(size=samples.size, **samples.settings)
    networks = [f"{slot}_{part}" for slot in stages.slots for part in ("unet", "weak_unet")]
    used = ["text_encoder", *networks, "safety_checker"]
    model = {name: fingerprint(found) for name in used if (found := getattr(pipe, name)) is not None}
    rules = {slot: dict(getattr(pipe, f"{slot}_scheduler").config) for slot in stages.slots}
    facts = {slot: {name: value for name, value in rule.items() if name[0] != "_"} for slot, rule in rules.items()}
    model["schedulers"] = _digest(facts)
    reading = {name: pipe.config[name] for name in ("max_length", "text", "conditions")}
    told = {
        "format_version": FORMAT_VERSION,
        "model": model,
        "stages": {slot: stage.to_dict() for slot, stage in stages.slots.items()},
        "reading": reading,
        "size": list(stages)[-1],
        "prompts": {"count": len(samples.prompts), "sha256": _digest(list(samples.prompts))},
        "per_prompt": samples.per_prompt,
        "seed": samples.seed,
        "shard_size": samples.shard_size,
        "pictures": len(samples),
    }
    plain: dict[str, Any] = json.loads(json.dumps(told))  # as it is read again: tuples become lists
    return plain


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def make_samples(
    pipe: ImagenPipeline, samples: Samples, folder: Path, batch_size: int = 8, launch: Launch = ALONE
) -> list[Path]:
    """Sample what is not there yet; every process of a launch calls it, and each makes its share of the shards.

    Another batch size gives the same pictures but for the rounding of sums, the same one the same bits.

    Args:
        folder: of the shards and ``samples.json``; made where it is not there.

    Returns:
        the shards, all there, in order: on every process, when the last one is done.

    Raises:
        ValueError: a batch size below 1, what the pipeline refuses, or a folder with other samples.
        Stopped: another process ended before its shards were there.
    """
    check_calls(pipe, (), batch_size)
    pipe.reader.check(samples.prompts)  # one that is too long would end the work where it is met
    told = describe(pipe, samples)
    paths = [shard_path(folder, shard) for shard in range(samples.shards)]
    missing = [shard for shard, path in enumerate(paths) if not path.is_file()]  # before anybody makes one
    if launch.first:
        folder.mkdir(parents=True, exist_ok=True)
        _keep(folder, told)
    launch.wait()
    _check_same(folder, told)  # of a process that was given something else than the first
    mine = missing[launch.rank :: launch.world]
    count = sum(len(samples.of_shard(shard)) for shard in mine)
    with tqdm(total=count, desc="samples", unit=" pictures", disable=not (launch.first and count)) as bar:
        for shard in mine:
            wanted = samples.of_shard(shard)
            with whole(paths[shard]) as partial, tarfile.open(partial, "w") as archive:
                for start in range(0, len(wanted), batch_size):
                    batch = wanted[start : start + batch_size]
                    made = sample(pipe, batch, told["size"], samples.settings, batch_size)[told["size"]]
                    for one, picture in zip(batch, made, strict=True):
                        _add(archive, one, picture)
                    bar.update(len(batch))
    launch.wait()
    return paths


def _add(archive: tarfile.TarFile, one: Wanted, picture: Image.Image) -> None:
    """A picture's files. Their headers hold no time and no owner: the same pictures are the same shard."""
    pixels = io.BytesIO()
    picture.save(pixels, "PNG")
    facts = json.dumps({"prompt": one.text, "seed": one.seed}).encode()
    caption = " ".join(one.text.split()).encode()  # a line is a caption
    for ending, content in (("png", pixels.getvalue()), ("txt", caption), ("json", facts)):
        member = tarfile.TarInfo(f"{one.number:07d}.{ending}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def _keep(folder: Path, told: Mapping[str, Any]) -> None:
    """Write ``samples.json``, or see that the one that is there says the same."""
    path, shards = folder / MANIFEST, list(folder.glob("*.tar"))
    if not shards:
        write_text(path, json.dumps(told, indent=1) + "\n")
    elif not path.is_file():
        raise ValueError(f"{str(folder)!r} holds shards, but not what made them ({MANIFEST}): give another folder")
    _check_same(folder, told)


def _check_same(folder: Path, told: Mapping[str, Any]) -> None:
    stored = read_json(folder / MANIFEST)
    others = [name for name in sorted({*stored, *told}) if stored.get(name) != told.get(name)]
    if others:
        raise ValueError(
            f"{str(folder)!r} holds samples of another {' and another '.join(others)}: give another folder, or clear it"
        )


def finished(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """What ``samples.json`` of a folder says, and its shards in order.

    Raises:
        ValueError: it cannot be read, or shards are missing.
    """
    told = read_json(folder / MANIFEST)
    try:
        count = -(-int(told["pictures"]) // int(told["shard_size"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{str(folder / MANIFEST)!r} is damaged: clear its folder") from error
    paths = [shard_path(folder, shard) for shard in range(count)]
    missing = sum(not path.is_file() for path in paths)
    if missing:
        raise ValueError(
            f"{str(folder)!r} lacks {missing} of {count} shards: let the command that samples them go on to its end"
        )
    return told, paths


def prompts_and_seeds(paths: Sequence[Path]) -> Iterator[Wanted]:
    """What each picture of these shards was sampled from, in order; no picture is decoded."""
    for path in paths:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    content = archive.extractfile(member)
                    assert content is not None, "a file, as _add wrote it"
                    facts = json.load(content)
                    yield Wanted(int(member.name.removesuffix(".json")), facts["prompt"], facts["seed"])


def add_arguments(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """The options that say what is sampled.

    Args:
        required: whether there is nothing to do without ``--model`` and ``--prompts``.
    """
    add_model_arguments(parser, ("guidance", "aug_level", "lowres_consistency"), required)
    add = parser.add_argument
    told = "a text file, a prompt each line; heldout:NUM, train:NUM or tune:NUM of the shapes world; or a YAML file "
    told += "whose section data has captions, FILE or FILE:NUM"
    add("--prompts", required=required, metavar="PROMPTS", help=told)
    add("--per-prompt", type=int, default=1, metavar="NUM", help="pictures of each prompt (default 1)")
    add("--size", type=int, help="side of the pictures in pixels (default: the model's last stage)")
    add("--preset", help="one of the model's presets in place of the stages' own settings")


def asked(args: argparse.Namespace) -> Samples:
    """What the options ask for. Raises: ValueError."""
    preset = {} if args.preset is None else {"preset": args.preset}
    settings = {**sampling_settings(args), **preset}
    return Samples(read_prompts(args.prompts), args.per_prompt, args.seed, args.size, settings)


def sample_model(args: argparse.Namespace, folder: Path, launch: Launch = ALONE) -> tuple[ImagenPipeline, list[Path]]:
    """The pipeline that the options name, and the shards of its pictures; as :func:`make_samples`."""
    samples = asked(args)
    pipe = load(args)
    return pipe, make_samples(pipe, samples, folder, args.batch_size, launch)
