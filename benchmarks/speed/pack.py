"""What must travel to a bare machine with a card: the tree, and the wheels that its Python lacks.

    python -m benchmarks.speed.pack [--wheels DIR] [--without-peers] [--limit MIB]

The wheels are fetched into the folder, for Python 3.12 on Linux and x86-64, in the versions that are installed here.
There they are unpacked without a registry:

    python3 -m pip install --no-index --no-deps --target /tmp/site .wheels/*.whl
    PYTHONPATH=/tmp/site python3 benchmarks/gpu.py
"""

from __future__ import annotations

import argparse
import configparser
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
BARE = Path(__file__).with_name("bare.txt")
#: Most that a machine is sent; what sends it may take 64.
LIMIT = 62.0
MIB = 2**20
#: imagen-pytorch, and what of its requirements nobody else has; fetched in these versions where they are not installed.
PEERS = {
    "imagen-pytorch": "2.1.0",
    "annotated-types": "0.7.0",
    "beartype": "0.23.1",
    "datasets": "5.2.0",
    "dill": "0.4.1",
    "ema-pytorch": "0.8.3",
    "kornia": "0.9.0",
    "kornia-rs": "0.2.0",
    "multiprocess": "0.70.19",
    "pydantic": "2.14.3",
    "pydantic-core": "2.50.4",
    "pytorch-warmup": "0.2.0",
    "typing-inspection": "0.4.5",
}
TARGET = {
    "python_version": "3.12",
    "python_full_version": "3.12.3",
    "sys_platform": "linux",
    "platform_system": "Linux",
}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]


def there() -> set[str]:
    """Names of the packages that the machine holds."""
    lines = BARE.read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line) for line in lines if line and not line.startswith("#")}


def ours() -> list[str]:
    """What setup.cfg says that we need."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["options"]["install_requires"].split("\n")[1:]


def missing(requirements: Iterable[str], held: set[str]) -> dict[str, str]:
    """Name and version of all that these requirements need, and theirs in turn, beyond what is held.

    Raises:
        ValueError: one that is not installed here, so that its version is not known.
    """
    found: dict[str, str] = {}
    waiting = [Requirement(text.replace(" ", "")) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in held or name in found:
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ValueError(f"{name} is not installed here; install it, or name it in {BARE.name}") from None
        for text in metadata.requires(name) or []:
            further = Requirement(text)
            extras = [{**TARGET, "extra": extra} for extra in (*wanted.extras, "")]
            if further.marker is None or any(further.marker.evaluate(extra) for extra in extras):
                waiting.append(further)
    return found


def fetch(packages: dict[str, str], folder: Path) -> list[Path]:
    """The wheels of these packages, downloaded where they are not in the folder, and of no others."""
    folder.mkdir(parents=True, exist_ok=True)
    before = wheels(packages, folder)
    wanted = [f"{name}=={version}" for name, version in packages.items() if name not in before]
    if wanted:
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        fixed = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *fixed, *platforms, "--dest", str(folder)]
        subprocess.run([*command, *wanted], check=True)
    kept = wheels(packages, folder)
    for stale in {*folder.glob("*.whl")} - {*kept.values()}:
        stale.unlink()
    return sorted(kept.values())


def wheels(packages: dict[str, str], folder: Path) -> dict[str, Path]:
    """By name, the wheels of these very versions in a folder."""
    parted = {path: path.name.split("-") for path in folder.glob("*.whl")}
    named = {canonicalize_name(parts[0]): path for path, parts in parted.items()}
    return {name: path for name, path in named.items() if parted[path][1] == packages.get(name)}


def tree() -> int:
    """Bytes of the working tree: tracked files, and others that git does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    return sum(path.lstat().st_size for path in paths if path.is_file() or path.is_symlink())


def main(argv: Sequence[str] | None = None) -> int:
    """List it with sizes; 1 where it is more than a machine is sent."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.pack", description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels", help="folder to keep them in")
    parser.add_argument("--without-peers", action="store_true", help="leave imagen-pytorch and its packages behind")
    parser.add_argument("--limit", type=float, default=LIMIT, help="most MiB in all")
    args = parser.parse_args(argv)
    try:
        packages = missing(ours(), there())
    except ValueError as error:
        parser.error(str(error))
    if not args.without_peers:
        packages = {**PEERS, **packages}
    sizes = {"the tree": tree(), **{path.name: path.stat().st_size for path in fetch(packages, args.wheels)}}
    for name, size in sizes.items():
        print(f"{size / MIB:7.2f} MiB  {name}")
    total = sum(sizes.values()) / MIB
    print(f"{total:7.2f} MiB  in all, of {args.limit:g}")
    if total > args.limit:
        largest = max((name for name in sizes if name != "the tree"), key=lambda name: sizes[name], default="the tree")
        print(
            f"gpu-pack: error: {total - args.limit:.2f} MiB too many; the largest wheel is {largest}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
