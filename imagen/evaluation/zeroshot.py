"""Zero-shot classification: a picture is of the class whose name, said in a sentence, it is nearest to (Radford et al.
2021, section 3.1), by a CLIP or SigLIP that was trained on neither.

Each line of ``--classes`` is a class: what the data calls it (the folder a picture lies in, or its caption) and, behind
a tab, how it is said, where that differs. Several ``--template`` are an ensemble, the mean of their unit vectors.
Without ``--data`` the shapes world is asked (:mod:`imagen.evaluation.shapes_zeroshot`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imagen.checks import check_device
from imagen.disk import whole
from imagen.evaluation.pictures import open_classes
from imagen.evaluation.report import note, table, write_result
from imagen.evaluation.stats import Share

if TYPE_CHECKING:
    from imagen.scores.encoders import DualEncoder

TEMPLATE = "a picture of {}"
SHOWN = 100  # classes of a confusion matrix whose names are written


@dataclass(frozen=True)
class Classified:
    """What became of pictures.

    Attributes:
        names: of the classes.
        truth: (N,) the number of each picture's class.
        order: (N, C) numbers of the classes, the nearest first.
    """

    names: Sequence[str]
    truth: NDArray[np.intp]
    order: NDArray[np.intp]

    def top(self, count: int) -> Share:
        """How often the class is among the ``count`` nearest ones."""
        return Share.of((self.order[:, :count] == self.truth[:, None]).any(axis=1).tolist())

    @property
    def confusion(self) -> NDArray[np.intp]:
        """(C, C): how many pictures of each class (rows) were taken for each (columns)."""
        found = np.zeros((len(self.names), len(self.names)), dtype=np.intp)
        np.add.at(found, (self.truth, self.order[:, 0]), 1)
        return found

    def to_json(self) -> dict[str, Any]:
        """Shares, of each class too, and the matrix."""
        each = {name: Share.of((self.order[self.truth == n, 0] == n).tolist()) for n, name in enumerate(self.names)}
        shares = {f"top{count}": self.top(count) for count in (1, 5)}
        return {**shares, "classes": each, "confusion": self.confusion.tolist()}


def check_templates(templates: Sequence[str]) -> None:
    """Raises ValueError for one without ``{}``."""
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"--template {template!r} needs {{}} where the class goes, as in {TEMPLATE!r}")


def class_vectors(encoder: DualEncoder, said: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(C, D) unit vectors of classes, each the mean of its unit vectors in all templates, made a unit vector."""
    found = [encoder.texts([template.replace("{}", name) for name in said]) for template in templates]
    return torch.nn.functional.normalize(torch.stack(found).mean(dim=0), dim=1)


def classify(images: Tensor, truth: Sequence[int], classes: Tensor, names: Sequence[str]) -> Classified:
    """Classes of pictures (N, D) by class vectors (C, D)."""
    order = (images @ classes.T).argsort(dim=1, descending=True, stable=True)  # one that tells nothing is at chance
    return Classified(names, np.asarray(truth, dtype=np.intp), order.numpy())


def read_classes(path: Path) -> dict[str, str]:
    """What the data calls each class -> how it is said.

    Raises:
        ValueError: the file cannot be read, holds fewer than two classes, or one twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"--classes {str(path)!r} cannot be read: {reason}") from error
    pairs = [line.split("\t", 1) for line in lines if line]
    found = {pair[0].strip(): pair[-1].strip() for pair in pairs}
    if len(found) < len(pairs):
        names = [pair[0].strip() for pair in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"--classes {str(path)!r} has {twice!r} twice")
    if len(found) < 2:
        raise ValueError(f"--classes {str(path)!r} has {len(found)} classes; expected two at least, one on each line")
    return found


def add_clip_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every command that asks a CLIP."""
    told = "folder or Hub id of a CLIP, SigLIP or their like, such as pretrained/shapes-clip"
    parser.add_argument("--clip", required=True, metavar="DIR_OR_HUB_ID", help=told)
    parser.add_argument("--batch-size", type=int, default=64, help="pictures at once (default %(default)s)")
    parser.add_argument("--device", help="where to compute, such as cpu or cuda:1; default: a GPU if there is one")


def compute_device(args: argparse.Namespace) -> str:
    """That of ``--device``, or a GPU where there is one. Raises: ValueError, where it is not there."""
    return check_device("--device", args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def load_clip(args: argparse.Namespace) -> DualEncoder:
    """The encoder that the options name. Raises: ValueError."""
    from imagen.scores.encoders import DualEncoder

    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}; expected at least 1")
    return DualEncoder.load(args.clip, compute_device(args))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_clip_arguments(parser)
    add = parser.add_argument
    add("--data", metavar="PICTURES", help="a folder with a folder for each class, shards, a table or my.yaml")
    add("--classes", type=Path, metavar="FILE", help="the classes, one on each line; default: those of the data")
    add("--template", nargs="+", default=[TEMPLATE], metavar="TEXT", help="sentences around a class (%(default)s)")
    add("--num", type=int, help="the first pictures alone; of the shapes world, pictures of each kind (default: 400)")
    add("--seed", type=int, default=0, help="of the pictures of the shapes world (default 0)")


def run(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Classify, print the shares, write ``zeroshot.json`` and ``confusion.png``."""
    if args.data is None:
        from imagen.evaluation import shapes_zeroshot

        if args.classes is not None or args.template != [TEMPLATE]:
            raise ValueError("--classes and --template are for --data: the shapes world has its own")
        shapes_zeroshot.run(args, command)
        return
    if args.seed:
        raise ValueError(f"--seed {args.seed} is for the shapes world, and --data has its own pictures: leave it out")
    check_templates(args.template)
    known = None if args.classes is None else read_classes(args.classes)
    pictures = open_classes(args.data, args.num)
    encoder = load_clip(args)
    vectors, labels = list[Tensor](), list[str]()
    for batch in pictures.batches(args.batch_size):
        vectors.append(encoder.images([one.picture for one in batch], args.batch_size))
        labels += [str(one.caption) for one in batch]
        if strange := sorted({*labels} - {*(labels if known is None else known)}):
            raise ValueError(
                f"--data {args.data!r} has pictures of {strange[0]!r}, which --classes lacks; add it there"
            )
    if pictures.skipped:
        note(pictures.told())
    said = known if known is not None else {label: label for label in sorted(set(labels))}
    if len(said) < 2:
        raise ValueError(f"--data {args.data!r} has pictures of {list(said)} alone; name other classes with --classes")
    numbers = {name: number for number, name in enumerate(said)}
    classes = class_vectors(encoder, list(said.values()), args.template)
    found = classify(torch.cat(vectors), [numbers[label] for label in labels], classes, list(said))
    rows = [("pictures", "classes", "top-1, 95 % interval", "top-5")]
    print(table([*rows, (len(labels), len(said), found.top(1), found.top(5))]))
    save_confusion(args.out / "confusion.png", found)
    write_result(args, command, clip=encoder.name, result=found)


def save_confusion(path: Path, found: Classified) -> None:
    """A picture of the confusion matrix, rows sum to 1."""
    from matplotlib.figure import Figure

    matrix, names = found.confusion.astype(np.float64), list(found.names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.15 * len(names), 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(shown, label="share of the pictures of a class", shrink=0.8)
    if len(names) <= SHOWN:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(f"top-1 {100 * found.top(1).value:.1f} % of {len(found.truth)} pictures")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        figure.savefig(partial, dpi=100, format="png")
