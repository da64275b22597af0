"""Scores of pictures as the papers report them, for anybody's pictures.

PICTURES are judged as a set beside ``--against``, in the features of ``--features``: the Frechet distance ``fd``, the
kernel distance ``kd``, and ``manifold``, precision, recall, density and coverage; by their captions: ``clip``; or each
beside the picture of ``--against`` in its place: ``psnr``, ``ssim``, ``mae`` and ``lpips``. What is called FID and KID
is in the features of the standard Inception, told by its checksum, and no other. With ``--model`` and ``--prompts`` the
pictures are sampled first, on as many processes as torchrun or accelerate starts; the same command goes on behind what
is there. Truth beside truth, a part of ``--against`` beside its others, is the floor that no model can be told below.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen.checks import check_int
from imagen.evaluation import paired, sampling
from imagen.evaluation.generate import sampling_settings
from imagen.evaluation.launch import Launch
from imagen.evaluation.neighbours import nearest_pictures
from imagen.evaluation.pictures import open_pictures
from imagen.evaluation.report import note, table, write_result
from imagen.evaluation.scoring import OF_SETS, Features, floor, read_features, scores_of, scores_of_seeds
from imagen.evaluation.zeroshot import compute_device, load_clip
from imagen.scores.features import FeatureNetwork, load_features
from imagen.scores.resize import RESIZES
from imagen.scores.sets import Array
from imagen.scores.statistics import load_statistics, save_statistics

FEW = 2000
STATISTICS = ".safetensors"
METRICS = (*OF_SETS, "clip", *paired.METRICS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    told = "a folder, shards, a table, my.yaml or shapes:heldout:NUM; several are judged each, in a column of its own"
    add("pictures", nargs="*", metavar="PICTURES", help=told)
    told = "what they should be like: PICTURES, or statistics that --keep-statistics wrote (.safetensors)"
    add("--against", metavar="PICTURES_OR_STATS", help=told)
    add("--metrics", nargs="+", choices=METRICS, help="default: all that the other options allow")
    told = (
        "networks: folders or Hub ids of CLIP, SigLIP, DINOv2, ViT, or the FID's Inception as a file; default: --clip's"
    )
    add("--features", nargs="+", default=[], metavar="DIR_OR_FILE", help=told)
    add("--clip", metavar="DIR_OR_HUB_ID", help="the CLIP of the CLIP score")
    add("--resize", choices=RESIZES, help="how pictures are resized for an Inception (default tf1, that of the FID)")
    add("--train", metavar="PICTURES", help="find the nearest of these for each picture: was it copied?")
    add("--lpips", metavar="FILE", help="torchvision's AlexNet or VGG-16, the network of LPIPS")
    add("--data-range", type=float, default=255.0, help="of psnr and ssim, in the pictures' unit (default 255)")
    add("--masks", metavar="PICTURES", help="of pairs: what counts is above 0")
    add(
        "--keep-statistics", type=Path, metavar="FILE", help="keep those of --against, of the one network of --features"
    )
    add("--num", type=int, help="the first pictures of each set alone")
    add("--k", type=int, default=5, help="neighbour of manifold's balls (default 5)")
    add("--resamples", type=int, default=200, help="half-samples of each interval (default 200)")
    sampling.add_arguments(parser)


def check(args: argparse.Namespace) -> list[str]:
    """The metrics to compute, when all options go together.

    Raises:
        ValueError: naming the one that lacks another, or has no effect.
    """
    if (args.model is None) != (args.prompts is None):
        raise ValueError("--model and --prompts go together: a model to sample, and what")
    if not args.pictures and args.model is None:
        raise ValueError("there are no pictures to judge: name them, or sample them with --model and --prompts")
    if args.model is None and (sampling_settings(args) or args.preset or args.per_prompt != 1 or args.seed):
        raise ValueError("there is nothing to sample: give --model and --prompts, or leave out how it is sampled")
    for name, low in (("num", 1), ("k", 1), ("resamples", 2), ("batch_size", 1)):
        if getattr(args, name) is not None:
            check_int(f"--{name.replace('_', '-')}", getattr(args, name), low)
    kept = args.against is not None and args.against.endswith(STATISTICS)
    if args.keep_statistics is not None and (args.against is None or kept):
        raise ValueError(
            f"--keep-statistics {str(args.keep_statistics)!r} keeps those of --against: give pictures there"
        )
    possible = {
        **dict.fromkeys(OF_SETS, args.against is not None and bool(args.features or args.clip)),
        "clip": args.clip is not None,
        **dict.fromkeys(paired.METRICS, args.against is not None and not kept),
        "lpips": args.against is not None and args.lpips is not None and not kept,
    }
    needs = {**dict.fromkeys(OF_SETS, "--against and --features"), "clip": "--clip", "lpips": "--against and --lpips"}
    wanted = args.metrics or [one for one, can in possible.items() if can and (one not in paired.METRICS or args.lpips)]
    for one in wanted:
        if not possible[one]:
            raise ValueError(f"--metrics {one} needs {needs.get(one, '--against, as pictures')}")
    if not wanted and args.train is None and args.keep_statistics is None:
        raise ValueError("nothing is measured: give --against and --features, --clip, or --metrics of pairs")
    _check_read(args, {*wanted})
    return list(dict.fromkeys(wanted))


def _check_read(args: argparse.Namespace, wanted: set[str]) -> None:
    """Refuse an option that nothing reads, given what is measured. Raises: ValueError."""
    looks = bool(wanted & {*OF_SETS} or args.train or args.keep_statistics)
    readers = {
        "--lpips": (args.lpips, "lpips" in wanted, "--metrics lpips"),
        "--masks": (args.masks, bool(wanted & {"psnr", "ssim", "mae"}), "--metrics psnr, ssim and mae"),
        "--clip": (args.clip, "clip" in wanted or (looks and not args.features), "--metrics clip"),
        "--features": (args.features, looks, "--metrics fd, kd and manifold, and by --train"),
        "--resize": (args.resize, looks, "--metrics fd, kd and manifold, and by --train"),
        "--against": (args.against, bool(wanted - {"clip"} or args.keep_statistics), "metrics beside another set"),
    }
    for option, (value, is_read, reader) in readers.items():
        if value and not is_read:
            raise ValueError(f"{option} {value!r} is read by {reader}: ask for them, or leave it out")
    names = _network_names(args)
    if looks and not names:
        raise ValueError("--train and --keep-statistics need a feature network: give --features")
    if args.resize is not None and not any(Path(name).is_file() for name in names):
        raise ValueError(f"--resize {args.resize} is for the FID's Inception, and --features names none: leave it out")
    if args.keep_statistics is not None and len(names) != 1:
        raise ValueError(f"--keep-statistics keeps those of one network, and there are {len(names)}")


def _network_names(args: argparse.Namespace) -> list[str]:
    """Folders, Hub ids or files."""
    return list(args.features) or ([args.clip] if args.clip else [])


def networks_of(args: argparse.Namespace, metrics: Sequence[str]) -> list[FeatureNetwork]:
    """The feature networks, as far as they are looked at. Raises: ValueError, two of one name among others."""
    if not ({*metrics} & {*OF_SETS} or args.train or args.keep_statistics):
        return []
    names, device = _network_names(args), compute_device(args)
    found = [load_features(name, device, args.resize if Path(name).is_file() else None) for name in names]
    labels = [network.label for network in found]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"--features has two networks called {twice!r}: rename the folder of one")
    return found


def reference(args: argparse.Namespace, networks: Sequence[FeatureNetwork]) -> dict[str, Array]:
    """The features of --against by label; kept where --keep-statistics says so."""
    name = args.against
    if name.endswith(STATISTICS):
        if len(networks) != 1:
            raise ValueError(f"--against {name!r} holds the statistics of one network, and there are {len(networks)}")
        return {networks[0].label: load_statistics(name, networks[0]).features}
    found = read_features(open_pictures(name, args.size, args.num), networks, None, args.batch_size)
    if args.keep_statistics is not None:
        made_of = f"{found.count} pictures of {name}" + (f", {args.size} px" if args.size else "")
        save_statistics(args.keep_statistics, found.of[networks[0].label], networks[0], made_of)
        note(f"wrote {args.keep_statistics}")
    return dict(found.of)


def column(x: Features, y: dict[str, Array], metrics: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """The scores of a set: with intervals, and over seeds where each prompt has several pictures."""
    found: dict[str, Any] = {"count": x.count, "scores": scores_of(x, y, metrics, args.k, args.resamples)}
    if x.seeds():
        found |= {"seeds": x.per_prompt, "over_seeds": scores_of_seeds(x, y, metrics, args.k)}
    return found


def shown(columns: dict[str, dict[str, Any]]) -> str:
    """Columns of scores as a table: a line for each score, and for its mean over seeds."""
    rows: list[list[object]] = [["score", *(f"{name} ({one['count']})" for name, one in columns.items())]]
    for kind, suffix in (("scores", ""), ("over_seeds", ", over seeds")):
        names = dict.fromkeys(name for one in columns.values() for name in one.get(kind, {}))
        rows += [[f"{name}{suffix}", *(one.get(kind, {}).get(name, "-") for one in columns.values())] for name in names]
    return table(rows)


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Sample where that is asked for, compute all scores, print the table, write ``scores.json``."""
    metrics = check(args)
    launch, names, pipe = Launch.of_environment(), list(args.pictures), None
    networks = networks_of(args, metrics) if launch.first else []
    encoder = load_clip(args) if launch.first and "clip" in metrics else None
    needs_reference = bool({*metrics} & {*OF_SETS}) or args.keep_statistics is not None
    y = reference(args, networks) if launch.first and needs_reference else {}  # what is wrong is told before sampling
    if args.model is not None:
        pipe, _ = sampling.sample_model(args, args.out / "samples", launch)
        names.append(str(args.out / "samples"))
    if not launch.first:
        return
    columns: dict[str, dict[str, Any]] = {}
    for name in names:
        pictures = open_pictures(name, args.size, args.num)
        x = read_features(pictures, networks, encoder, args.batch_size) if networks or encoder else Features(name, {})
        columns[name] = column(x, y, metrics, args) if x.count else {"count": 0, "scores": {}}
        if 0 < x.count < FEW and y:
            note(f"{name}: {x.count} pictures, fewer than {FEW}: compare distances with those of as many alone")
        if args.train is not None:
            columns[name]["nearest"] = nearest_pictures(args, x, networks[0], args.out / f"nearest_{len(columns)}.png")
        if {*metrics} & {*paired.METRICS}:
            found = paired.scores(args, name, metrics)
            columns[name]["scores"] |= found.pop("scores")
            columns[name] |= found
    most = min((one["count"] for one in columns.values() if one["count"]), default=0)
    if y:
        count = min(most, min(map(len, y.values())) // 2)
        if truth := floor(y, count, metrics, args.k, args.resamples):
            columns["truth beside truth"] = {"count": count, "scores": truth}
    print(shown(columns))
    write_result(args, command, pipe, columns=columns)
