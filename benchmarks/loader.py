"""Pictures a second of every source, beside a plain DataLoader over the same files and webdataset over the same shards.

python benchmarks/loader.py [--num 1500] [--side 384] [--size 64] [--workers 1] [--rounds 3] [--out FILE.md]

All do the same work: JPEG decoded, cut to a square, resized (bicubic, Pillow) to size x size, a float tensor in
[-1, 1], a batch of 32. The contestants take turns in every round, so that a machine's moods fall on all of them, and
the median counts. webdataset is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from imagen.data.folder import FolderRecords
from imagen.data.hub import HubRecords, HubStream
from imagen.data.order import StepSampler
from imagen.data.pictures import PictureDataset, StreamBatches, StreamDataset
from imagen.data.prepare import Prepare, Want
from imagen.data.sources import collate
from imagen.data.table import TableRecords
from imagen.data.tar import ShardRecords, ShardStream

BATCH = 32


def jpeg(number: int, side: int) -> bytes:
    """A picture that compresses like a photograph: smooth random colours with a little grain."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (side * 4 // 3, side), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, np.int16) + rng.integers(-6, 7, (side, side * 4 // 3, 3))
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def store(root: Path, num: int, side: int) -> None:
    """The same pictures as a folder, a CSV of it, tar shards, a saved dataset and parquet files."""
    import datasets

    (root / "folder").mkdir()
    (root / "shards").mkdir()
    archives = [tarfile.open(root / "shards" / f"{n:03d}.tar", "w") for n in range(4)]  # noqa: SIM115
    rows: list[dict[str, Any]] = []
    for number in range(num):
        data, text = jpeg(number, side), f"picture {number}"
        (root / "folder" / f"{number:05d}.jpg").write_bytes(data)
        (root / "folder" / f"{number:05d}.txt").write_text(text)
        for ending, content in (("jpg", data), ("txt", text.encode())):
            info = tarfile.TarInfo(f"{number:05d}.{ending}")
            info.size = len(content)
            archives[number * 4 // num].addfile(info, io.BytesIO(content))
        rows.append({"image": {"bytes": data, "path": None}, "text": text})
    for archive in archives:
        archive.close()
    lines = [f"{number:05d}.jpg,picture {number}" for number in range(num)]
    (root / "folder" / "list.csv").write_text("\n".join(["file_name,text", *lines]))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    whole = datasets.Dataset.from_list(rows, features)
    whole.save_to_disk(str(root / "saved"))
    (root / "parquet").mkdir()
    for part in range(4):
        whole.shard(4, part, contiguous=True).to_parquet(str(root / "parquet" / f"train-{part}.parquet"))


# --- what others would write -----------------------------------------------------------------------------------------


def plain(image: Image.Image, size: int) -> torch.Tensor:
    """The same decode and resize, by hand."""
    image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).float() / 127.5 - 1


class PlainDataset(Dataset[tuple[torch.Tensor, str]]):
    """A folder as a tutorial reads it."""

    def __init__(self, root: Path, size: int) -> None:
        self.paths, self.size = sorted(root.glob("*.jpg")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        path = self.paths[index]
        with Image.open(path) as image:
            return plain(image, self.size), path.with_suffix(".txt").read_text()


def plain_loader(root: Path, size: int, workers: int) -> Iterable[Any]:
    """torch's DataLoader over it, shuffled."""
    return DataLoader(PlainDataset(root / "folder", size), BATCH, shuffle=True, num_workers=workers, drop_last=True)


def webdataset_loader(root: Path, size: int, workers: int) -> Iterable[Any]:
    """webdataset over the shards, shuffled in a buffer of 1,000, with its own decoder."""
    import webdataset

    shards = [str(path) for path in sorted((root / "shards").glob("*.tar"))]
    pipeline = webdataset.WebDataset(shards, shardshuffle=4, empty_check=False).shuffle(1000).decode("pil")
    pipeline = pipeline.to_tuple("jpg", "txt").map_tuple(lambda image: plain(image, size), str)
    return DataLoader(pipeline.batched(BATCH, partial=False), batch_size=None, num_workers=workers)


# --- this project's --------------------------------------------------------------------------------------------------


def by_index(records: Any, size: int, workers: int, steps: int) -> Iterable[Any]:
    """A map-style source as training loads it."""
    source = PictureDataset(records, Prepare(Want(size)))
    sampler = StepSampler(source.length, BATCH, num_steps=steps)
    return DataLoader(source, batch_sampler=sampler, num_workers=workers, collate_fn=collate)


def as_stream(stream: Any, size: int, workers: int, steps: int) -> Iterable[Any]:
    """A stream as training loads it: one worker with as many threads."""
    batches = StreamBatches(StreamDataset(stream, Prepare(Want(size))), BATCH, num_steps=steps, threads=max(1, workers))
    return DataLoader(batches, batch_size=None, num_workers=min(workers, 1))


def contestants(root: Path, size: int, workers: int, steps: int) -> Iterator[tuple[str, Callable[[], Iterable[Any]]]]:
    """(name, what makes its loader), the peers first."""
    yield "plain DataLoader, files", lambda: plain_loader(root, size, workers)
    try:
        import webdataset  # noqa: F401

        yield "webdataset, shards", lambda: webdataset_loader(root, size, workers)
    except ImportError:
        pass
    shards = [str(root / "shards")]
    yield "imagen, folder", lambda: by_index(FolderRecords(root / "folder"), size, workers, steps)
    yield "imagen, table", lambda: by_index(TableRecords(root / "folder" / "list.csv"), size, workers, steps)
    yield "imagen, hub", lambda: by_index(HubRecords(str(root / "saved")), size, workers, steps)
    yield "imagen, hub streaming", lambda: as_stream(HubStream(str(root / "parquet")), size, workers, steps)
    yield "imagen, shards", lambda: by_index(ShardRecords(shards), size, workers, steps)
    yield "imagen, shards streaming", lambda: as_stream(ShardStream(shards), size, workers, steps)


def measure(make: Callable[[], Iterable[Any]], steps: int) -> float:
    """Pictures a second over all batches, the making of the loader and its workers included."""
    start = time.perf_counter()
    count = 0
    for batch in make():
        count += len(batch["image"] if isinstance(batch, dict) else batch[0])
        if count >= steps * BATCH:
            break
    return count / (time.perf_counter() - start)


def main() -> None:
    """Run the rounds and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("num", 1500), ("side", 384), ("size", 64), ("workers", 1), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = args.num // BATCH
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store(Path(folder), args.num, args.side)
        for _ in range(args.rounds):
            for name, make in contestants(Path(folder), args.size, args.workers, steps):
                rates.setdefault(name, []).append(measure(make, steps))
    fastest = max(statistics.median(rates[name]) for name in rates if not name.startswith("imagen"))
    lines = ["| | pictures a second, median | rounds | of the faster peer |", "|---|---|---|---|"]
    for name, values in rates.items():
        middle = statistics.median(values)
        lines.append(f"| {name} | {middle:.0f} | {', '.join(f'{v:.0f}' for v in values)} | {middle / fastest:.2f} |")
    lines.append(f"\ntorch {torch.__version__}, Python {platform.python_version()}, {vars(args)}")
    print(text := "\n".join(lines))
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
