"""When a process looks for garbage, and what it keeps of its memory."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from imagen.memory import uncollected
from tests.source import ROOT


def test_nothing_is_collected_meanwhile_and_what_was_set_holds_behind_it() -> None:
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), uncollected():
        raise KeyError
    assert gc.isenabled()


def told(program: str) -> list[str]:
    """What a program of its own prints, word by word."""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_is_to_stay_is_passed_over_and_nothing_else() -> None:
    program = """
import gc
from imagen.memory import uncollected
with uncollected():
    pass
print(gc.get_freeze_count())
with uncollected(keep=True):
    made = [[] for _ in range(5000)]
print(gc.get_freeze_count() > 5000, any(one is made for one in gc.get_objects()))
"""
    assert told(program) == ["0", "True", "False"]


def test_the_pipeline_is_imported_without_a_collection() -> None:
    program = """
import gc, sys, imagen
runs = []
gc.callbacks.append(lambda phase, info: runs.append(len(sys.modules) if "torch" in sys.modules else 0))
imagen.ImagenPipeline
print([number for number in runs if 0 < number < len(sys.modules)], gc.isenabled())
"""
    assert told(program) == ["[]", "True"]


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own allocator")
def test_blocks_that_were_freed_are_there_for_the_next_ones() -> None:
    """Else the system zeroes each of their pages anew."""
    program = """
import ctypes, resource
from imagen.memory import reuse_freed_memory
c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [c.malloc(20_000_000) for _ in range(8)]
    for block in blocks: c.memset(block, 1, 20_000_000)
    for block in blocks: c.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(6)][-1])
reuse_freed_memory()
print([faults() for _ in range(6)][-1])
"""
    before, behind = (int(word) for word in told(program))
    if before < 100:
        pytest.skip("this allocator keeps what is freed without being told")
    assert behind < 100
