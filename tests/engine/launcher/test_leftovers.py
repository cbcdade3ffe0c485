"""Nothing remains of a server that is killed while it is busy; the check is shown to see what remains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.checks.leftovers import run
from benchmarks.support.presence import FILES, KINDS, left, look
from training.evaluate import LARGE_BUCKETS, held_out

pytestmark = pytest.mark.processes

HOLDER = """
import os, socket, tempfile
inet, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
path = os.path.join(tempfile.mkdtemp(), "s")
unix.bind(path)
memory = os.memfd_create("coatcheck-arena")
print(flush=True)
input()
"""


def test_whatever_a_process_holds_is_seen(tmp_path: Path) -> None:
    before = look(tmp_path)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], env=environment, stdin=pipe, stdout=pipe)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        during = look(tmp_path, before)
        seen = [kind for kind in KINDS if kind != FILES[0]]  # nothing is put into /dev/shm here
        assert list(left(during, during)) == seen
        assert list(left(during, look(tmp_path, before))) == seen
    finally:
        holder.kill()
        holder.communicate(timeout=10)
    assert list(left(during, look(tmp_path, before))) == [FILES[1]], "a file outlives its process, nothing else does"


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_nothing_remains_when_all_is_killed_at_once() -> None:
    assert run("all", list(held_out(4, 5, buckets=LARGE_BUCKETS)), 2) == []
