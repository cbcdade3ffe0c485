"""The lane's thread."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

from coatcheck.engine.ranks.lane import Job, Lane


def job(name: str, run: Callable[[], object], wanted: bool = True, collective: bool = False) -> Job:
    return Job(name, collective, lambda: wanted, lambda: void(run()))


def void(_: object) -> None:
    pass


def test_jobs_run_in_order_on_one_thread_and_submitting_never_waits() -> None:
    lane = Lane(0)
    gate = threading.Event()
    order: list[tuple[int, int]] = []
    lane.submit(job("first", lambda: gate.wait(10)))
    start = time.monotonic()
    for index in range(50):
        lane.submit(job(f"r{index}", lambda index=index: order.append((index, threading.get_ident()))))  # type: ignore[misc]
    assert time.monotonic() - start < 1
    assert lane.depth == 51
    gate.set()
    assert lane.close(10)
    assert [index for index, _ in order] == list(range(50))
    assert len({thread for _, thread in order}) == 1
    assert order[0][1] != threading.get_ident()
    assert lane.depth == 0


def test_what_nobody_wants_is_skipped_unless_it_is_a_collective() -> None:
    lane = Lane(0)
    ran: list[str] = []
    lane.submit(job("a", lambda: ran.append("a"), wanted=False))
    lane.submit(job("b", lambda: ran.append("b"), wanted=False, collective=True))
    lane.submit(job("c", lambda: ran.append("c")))
    assert lane.close(10)
    assert ran == ["b", "c"]


def test_close_is_bounded_and_idempotent() -> None:
    lane = Lane(0)
    gate = threading.Event()
    lane.submit(job("long", lambda: gate.wait(10)))
    assert not lane.close(0.1)
    gate.set()
    assert lane.close(10)
    assert lane.close(0)


def test_an_escaping_exception_ends_the_process() -> None:
    code = """
import time
from coatcheck.engine.ranks.lane import Job, Lane
def fail(): raise RuntimeError('the group is broken')
Lane(3).submit(Job('r', True, lambda: True, fail))
time.sleep(15)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=19, check=False)
    assert done.returncode == 1
    assert "the lane failed on request r" in done.stderr
    assert "the group is broken" in done.stderr
