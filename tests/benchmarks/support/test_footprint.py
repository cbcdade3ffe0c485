"""Every page of memory is counted once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.support.footprint import footprint, segment_names

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may look at the segments that a process maps")

MB = 1 << 20
HOLDER = """
import mmap, os, sys, time
from multiprocessing import shared_memory
MB = 1 << 20
nobody = shared_memory.SharedMemory(create=True, size=20 * MB)  # written, then mapped by nobody
nobody.buf[:] = bytes(20 * MB)
nobody.close()
unseen = shared_memory.SharedMemory(create=True, size=5 * MB)  # has no name any more, and this mapping was not touched
unseen.buf[:] = bytes(5 * MB)
again = mmap.mmap(unseen._fd, 5 * MB)
unseen.close()
shared_memory.SharedMemory(name=unseen.name).unlink()
fd = os.memfd_create("coatcheck-arena")
os.ftruncate(fd, 10 * MB)
segment = mmap.mmap(fd, 10 * MB)
segment[:] = bytes(10 * MB)
own = bytearray(os.urandom(7 * MB))
child = os.fork()
if child == 0:
    segment[0], len(bytes(segment))  # maps all of it, too
print(os.getpid(), flush=True)
sys.stdin.readline()
if child:
    os.waitpid(child, 0)
    shared_memory.SharedMemory(name=nobody.name).unlink()
"""


@pytest.fixture
def holders() -> Iterator[tuple[list[psutil.Process], frozenset[str]]]:
    before = segment_names()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield [psutil.Process(int(process.stdout.readline())) for _ in range(2)], before
        process.communicate("\n\n", timeout=10)
    assert process.returncode == 0


def test_shared_memory_counts_once_whoever_has_touched_it(
    holders: tuple[list[psutil.Process], frozenset[str]],
) -> None:
    processes, before = holders
    both = footprint(processes, before)
    assert both.shared == 35 * MB
    assert 7 * MB < both.private < 60 * MB
    assert both.pss_total < both.total - 20 * MB  # what nobody has in its page table is in no PSS
    one = footprint(processes[:1], before)
    assert one.shared == both.shared
    assert one.private < both.private
    assert footprint([], segment_names()).total == 0
