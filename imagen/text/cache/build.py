"""Filling a cache: a plan of shards, worked off by one or several processes, taken up again wherever it was left.

What a shard holds depends on the captions and on the sizes asked for alone. It is encoded by itself and appears under
its name only when it is whole. So the cache is the same whatever the number of processes and however often they were
killed, bit for bit on one machine with one number of threads per process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from imagen.disk import occupied
from imagen.text.cache.store import DTYPES, Identity, Manifest, Shard, caption_key, shard_path, write_shard
from imagen.text.encoder import encode, load_text_encoder
from imagen.text.folders import component_folders, fingerprint, local_folder
from imagen.text.kinds import check_max_length, encoder_config, text_width

START = "spawn"  # how processes are started: a fork would inherit threads and a GPU's context


@dataclass(frozen=True)
class Encoding:
    """How captions are encoded.

    Attributes:
        encoder: folder or Hub id of a T5 or CLIP with its tokenizer.
        max_length: captions are cut at this many tokens.
        compute_dtype: of the encoder's weights, a key of ``DTYPES``.
        dtype: of the stored embeddings; None takes that of the cache in place, or ``compute_dtype``, without loss.
        batch_size: captions encoded at once.
        device: torch device of one process; ``"cuda"`` gives each process a GPU of its own where there are enough.
    """

    encoder: str
    max_length: int = 128
    compute_dtype: str = "float32"
    dtype: str | None = None
    batch_size: int = 64
    device: str = "cpu"


class Result(NamedTuple):
    """What a run of :func:`build_cache` did.

    Attributes:
        manifest: of the finished cache.
        given: captions it was given, repeated ones counted again.
        encoded: captions that it encoded; 0 means that there was nothing to do.
    """

    manifest: Manifest
    given: int
    encoded: int


class Task(NamedTuple):
    """A shard to write: its file, and its captions in the order of their keys."""

    path: Path
    captions: list[str]


class Encoder:
    """A loaded encoder that turns tasks into shards."""

    def __init__(self, encoding: Encoding, device: str) -> None:
        assert encoding.dtype is not None
        self.encoding, self.dtype = encoding, DTYPES[encoding.dtype]
        self.tokenizer, self.model = load_text_encoder(encoding.encoder, DTYPES[encoding.compute_dtype])
        self.model.to(device)

    def __call__(self, task: Task) -> int:
        """Write the shard; returns how many captions it has.

        Raises:
            ValueError: an embedding that is not finite, or too large for the dtype it is to be stored in.
        """
        encoding, captions = self.encoding, task.captions
        untrimmed = [len(ids) for ids in self.tokenizer(captions, truncation=False, verbose=False).input_ids]
        # batches of like lengths, little padding
        by_length = sorted(range(len(captions)), key=lambda i: min(untrimmed[i], encoding.max_length))
        rows: dict[int, torch.Tensor] = {}
        for first in range(0, len(captions), encoding.batch_size):
            batch = by_length[first : first + encoding.batch_size]
            hidden, mask = encode(self.tokenizer, self.model, [captions[i] for i in batch], encoding.max_length)
            stored, mask = hidden.to(self.dtype).cpu(), mask.cpu()
            for i, row, real in zip(batch, stored, mask, strict=True):
                rows[i] = row[real]
                if not bool(torch.isfinite(row).all()):
                    raise ValueError(f"the embedding of {captions[i]!r} is not finite in {self.dtype}: use bfloat16")
        cut = sum(length > encoding.max_length for length in untrimmed)
        write_shard(task.path, [rows[i] for i in range(len(captions))], list(map(caption_key, captions)), cut)
        return len(captions)


def build_cache(
    captions: Iterable[str],
    folder: Path,
    encoding: Encoding,
    processes: int = 1,
    shard_size: int = 4096,
    say: Callable[[str], None] = print,
) -> Result:
    """Encode what ``folder`` lacks of ``captions`` and of ``""``.

    Args:
        processes: encoders at work at the same time, each with its own copy of the weights.
        shard_size: captions a shard, and so the most that a killed process has to encode again.
        say: is told of progress.

    Raises:
        ValueError: no such encoder, a cache of another encoder, length or dtype in ``folder``, another command at work
            there, or a caption whose embedding cannot be stored.
    """
    with occupied(folder):
        for pattern in ("*.partial", ".tmp*"):  # the latter are safetensors' own, before it renames them
            for leftover in folder.glob(pattern):
                leftover.unlink()
        manifest = Manifest.read(folder) if (folder / "cache.json").exists() else None
        kept = encoding.compute_dtype if manifest is None else manifest.identity.dtype
        encoding = replace(encoding, dtype=encoding.dtype or kept)
        identity = identify(encoding)
        manifest = manifest or Manifest(identity)
        reasons = manifest.identity.differences(identity)
        if reasons:
            raise ValueError(f"{str(folder)!r} holds another cache ({'; '.join(reasons)}): use another --out")
        given, wanted = 0, {caption_key(""): ""}
        for caption in captions:
            given += 1
            wanted[caption_key(caption)] = caption
        manifest.write(folder)
        manifest, tasks, planned = plan(folder, manifest, wanted, shard_size)
        done, missing = 0, sum(len(task.captions) for task in tasks)
        for count in work(tasks, encoding, processes):
            done += count
            say(f"{done:,} of {missing:,} captions encoded")
        if planned or not manifest.complete:
            manifest = replace(count_shards(folder, manifest, manifest.shards + planned), complete=True)
            manifest.write(folder)
    return Result(manifest, given, done)


def identify(encoding: Encoding) -> Identity:
    """Whose embeddings these will be; a Hub id is downloaded. Raises: ValueError: none, or max_length is beyond it."""
    folder = local_folder(encoding.encoder)
    if folder is None:
        load_text_encoder(encoding.encoder)
        folder = local_folder(encoding.encoder)
        assert folder is not None
    found = fingerprint(folder, encoding.max_length)
    config = encoder_config(component_folders(folder)[1])
    check_max_length(encoding.max_length, config)
    assert encoding.dtype is not None
    return Identity(encoding.encoder, found, encoding.compute_dtype, encoding.dtype, text_width(config))


def plan(
    folder: Path, manifest: Manifest, wanted: dict[bytes, str], shard_size: int
) -> tuple[Manifest, list[Task], int]:
    """The shards still to write, and how many there will be beside those of the manifest.

    Captions that no shard of the manifest holds are put in the order of their keys and cut into shards. Of these, the
    ones that an earlier command finished are passed over. Where that was about other captions or sizes, its shards are
    kept, as part of the cache, and the plan is made anew; so it is with what is left of a cache that lost a shard.
    """
    try:
        ours = [Shard(shard_path(folder, number)) for number in range(manifest.shards)]
    except ValueError:
        return plan(folder, replace(manifest, shards=0, complete=False), wanted, shard_size)
    held = {key for shard in ours for key in shard.key_bytes()}
    order = sorted(wanted.keys() - held)
    starts = enumerate(range(0, len(order), shard_size), manifest.shards)
    expected = {shard_path(folder, number): order[i : i + shard_size] for number, i in starts}
    finished = {}
    for path in sorted(folder.glob("captions-*.safetensors")):
        if path >= shard_path(folder, manifest.shards):
            try:
                finished[path] = Shard(path).key_bytes()
            except ValueError:
                path.unlink()  # damaged
    if any(expected.get(path) != keys for path, keys in finished.items()):
        for number, path in enumerate(finished, manifest.shards):
            path.replace(shard_path(folder, number))
        manifest = count_shards(folder, manifest, manifest.shards + len(finished))
        manifest.write(folder)
        return plan(folder, manifest, wanted, shard_size)
    tasks = [Task(path, [wanted[key] for key in part]) for path, part in expected.items() if path not in finished]
    return manifest, tasks, len(expected)


def count_shards(folder: Path, manifest: Manifest, shards: int) -> Manifest:
    """The manifest with this many shards, and their captions, tokens and bytes."""
    opened = [Shard(shard_path(folder, number)) for number in range(shards)]
    return replace(
        manifest,
        shards=shards,
        captions=sum(len(shard.keys) for shard in opened),
        tokens=sum(int(shard.offsets[-1]) for shard in opened),
        bytes=sum(shard.bytes for shard in opened),
        cut=sum(shard.cut for shard in opened),
    )


# --- processes -------------------------------------------------------------------------------------------------------

_encoder: Encoder | None = None  # of a worker process


def work(tasks: Sequence[Task], encoding: Encoding, processes: int) -> Iterator[int]:
    """Write the shards of ``tasks``; gives the number of captions of each as it is finished, in any order."""
    processes = min(processes, len(tasks))
    if processes <= 1:
        if tasks:  # or else no encoder is loaded
            yield from map(Encoder(encoding, encoding.device), tasks)
        return
    context = multiprocessing.get_context(START)
    threads = max(1, torch.get_num_threads() // processes)
    start = (encoding, threads, context.Value("i", 0))
    with ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=start) as pool:
        try:
            for future in as_completed([pool.submit(_work, task) for task in tasks]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(encoding: Encoding, threads: int, started: Any) -> None:
    """Load the encoder. Ctrl-C is left to the parent; a worker ends at once when its parent is gone."""
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    device = encoding.device
    _encoder = Encoder(encoding, f"cuda:{number % torch.cuda.device_count()}" if device == "cuda" else device)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(task: Task) -> int:
    assert _encoder is not None
    return _encoder(task)
