"""When a process ends, whoever's child it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from coatcheck.integrations.sglang.processes import Processes


class Child:
    """Lives until its input ends."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def end(self, reap: bool) -> None:
        self.process.kill()
        if reap:
            self.process.wait(10)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=10)


@pytest.fixture
def children() -> Iterator[list[Child]]:
    made = [Child(), Child()]
    yield made
    for child in made:
        child.close()


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def ended(watched: Processes, timeout_ms: int) -> bool:
    poller = zmq.Poller()
    watched.register(poller)
    return watched.ended(dict(poller.poll(timeout_ms)))


@pytest.mark.parametrize("reap", [True, False])
def test_the_end_of_one_is_noticed_reaped_or_not(children: list[Child], reap: bool) -> None:
    watched = Processes(child.process.pid for child in children)
    try:
        assert not ended(watched, 50)
        children[1].end(reap)
        assert ended(watched, 5000)
        assert ended(watched, 0), "still"
    finally:
        watched.close()


def test_one_that_had_ended_before_is_noticed(children: list[Child]) -> None:
    children[0].end(reap=True)
    watched = Processes(child.process.pid for child in children)
    try:
        assert ended(watched, 0)
    finally:
        watched.close()


def test_a_grandchild_is_watched_as_well() -> None:
    code = (
        "import subprocess, sys; print(subprocess.Popen(['sleep', '0.5'], stdout=subprocess.DEVNULL).pid, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=10, check=True)
    watched = Processes([int(done.stdout)])
    try:
        assert ended(watched, 5000)
    finally:
        watched.close()


def test_without_descriptors_of_processes_nothing_is_noticed(
    children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise PermissionError(pid)

    monkeypatch.setattr(os, "pidfd_open", refuse)
    watched = Processes(child.process.pid for child in children)
    children[0].end(reap=True)
    assert not ended(watched, 50)
    watched.close()


def test_closed_twice_it_holds_no_descriptor(children: list[Child]) -> None:
    before = descriptors()
    watched = Processes(child.process.pid for child in children)
    assert descriptors() == before + 2
    watched.close()
    watched.close()
    assert descriptors() == before
