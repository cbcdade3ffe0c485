"""A server's arena: opened while it starts, or not at all with one warning; given back with its ranks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from coatcheck.arena.available import Available
from coatcheck.errors import ConfigError
from coatcheck.integrations.sglang import opening as module
from coatcheck.integrations.sglang import rollcall
from coatcheck.integrations.sglang.arena_owner import Trouble
from coatcheck.integrations.sglang.codec import LARGE
from coatcheck.integrations.sglang.opening import Opening
from coatcheck.integrations.sglang.records import Attached
from coatcheck.integrations.sglang.rollcall import Facts
from coatcheck.integrations.sglang.settings import Settings
from tests.support.sglang_peer import Package, Peer, until

SMALL = Settings(enabled=True, arena_bytes=2 << 20, share=0.5, whole=False, workers=None)
AUTO = Settings(enabled=True, arena_bytes=None, share=1.0, whole=False, workers=None)
MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing has been said yet."""
    monkeypatch.setenv(rollcall.SAID, "")
    caplog.set_level(logging.INFO)


def facts(peer: Peer, **values: Any) -> list[Facts]:
    told: dict[str, Any] = {
        "whole": False,
        "pool_tokens": 1000,
        "running": 4,
        "input_tokens": 500,
        "token_bytes": 1 << 16,
        **values,
    }
    return [Facts(tickets=rank.tickets, pid=rank.pid, server="", **told) for rank in peer.addresses]


def arenas() -> int:
    """Descriptors of arenas that this process holds."""
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += "memfd:coatcheck-arena" in str(file.readlink())
    return found


class Left:
    """What is there now and was not before."""

    def __init__(self) -> None:
        self._arenas = arenas()
        self._threads = set(threading.enumerate())

    @property
    def arenas(self) -> int:
        """Descriptors."""
        return arenas() - self._arenas

    @property
    def threads(self) -> list[str]:
        """Names, of ours."""
        return [
            thread.name
            for thread in threading.enumerate()
            if thread not in self._threads and thread.name.startswith("coatcheck")
        ]

    def nothing(self) -> bool:
        """All was given back."""
        return not self.arenas and not self.threads


@pytest.fixture
def left() -> Left:
    return Left()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@contextlib.contextmanager
def opened(
    settings: Settings = SMALL,
    ranks: int = 2,
    pids: Sequence[int] | None = None,
    attach: Callable[[int], Attached | None] = Attached,
    **values: int,
) -> Iterator[tuple[Opening, Peer]]:
    peer = Peer(ranks, pids, attach)
    opening = Opening(settings, facts(peer, **values))
    try:
        assert opening.done.wait(10)
        yield opening, peer
    finally:
        peer.close()
        if opening.ready is not None:
            opening.ready.close()


def test_it_opens_beside_whoever_starts_it_and_says_so(left: Left, caplog: pytest.LogCaptureFixture) -> None:
    may_attach = threading.Event()
    peer = Peer(attach=lambda rank: Attached(rank) if may_attach.wait(10) else None)
    start = time.monotonic()
    opening = Opening(SMALL, facts(peer))
    assert time.monotonic() - start < 0.5
    assert opening.ready is None
    may_attach.set()
    assert opening.done.wait(10)
    assert opening.ready is not None
    assert opening.ready.carries
    assert left.arenas
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "coatcheck carries multimodal inputs to 2 ranks: an arena of 2 MiB (as set), 50% of requests"
    peer.close()
    opening.ready.close()
    assert left.nothing()


def test_its_size_follows_from_the_server_and_the_machine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(2)
    peer.close()
    ranks = [*facts(peer, pool_tokens=1 << 20), *facts(peer, pool_tokens=3000)]
    monkeypatch.setattr(module, "available", lambda: Available(GIB, "a test's"))
    monkeypatch.setattr(Opening, "_open", lambda self: None)
    assert Opening(AUTO, ranks)._size() == (2 * 4 * 500 * (1 << 16) // MIB * MIB, "auto")
    ranks = [*facts(peer, pool_tokens=1 << 20), *facts(peer, pool_tokens=1500)]
    assert Opening(AUTO, ranks)._size() == (187 << 20, "auto")
    monkeypatch.setattr(module, "available", lambda: Available(400 << 20, "a test's"))
    assert Opening(AUTO, facts(peer, pool_tokens=1 << 20))._size() == (100 << 20, "auto")
    assert Opening(SMALL, ranks)._size() == (2 << 20, "as set")
    monkeypatch.setattr(module, "available", lambda: Available(100 << 20, "a test's"))
    with pytest.raises(ConfigError, match="100 MiB of memory are to be had"):
        Opening(AUTO, ranks)._size()


def test_the_size_that_was_chosen_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with opened(AUTO, pool_tokens=550) as (opening, _):
        assert opening.ready is not None
        assert opening.ready.capacity >= 68 << 20
    assert "2 ranks: an arena of 68 MiB (auto), 100% of requests" in caplog.text


def test_if_a_rank_cannot_map_it_nothing_is_left_and_the_reason_is_said(
    left: Left, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(attach=lambda rank: Attached(rank, "ConfigError: no" if rank else "")) as (opening, peer):
        assert opening.ready is None
        until(left.nothing, 2)
        until(lambda: peer.dismissed == {0, 1}, 2)  # one of them has mapped it
    (said,) = warnings(caplog)
    assert said.startswith("coatcheck stands aside, and SGLang works as without it: rank 1: ConfigError: no")


def test_if_a_rank_does_not_answer_nothing_is_left_and_it_is_said(
    left: Left, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTACH_S", 0.2)
    with opened(attach=lambda rank: None if rank else Attached(rank)) as (opening, _):
        assert opening.ready is None
        until(left.nothing, 2)
    (said,) = warnings(caplog)
    assert "rank 1 did not map the arena within 0.2 s" in said


def test_an_arena_beyond_what_can_be_had_is_not_tried(
    left: Left, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coatcheck.arena.memory.available", lambda: Available(10 << 20, "/sys/limit is 10 MiB"))
    with opened() as (opening, peer):
        assert opening.ready is None
        until(left.nothing, 2)
        assert not hasattr(peer, "arena")
    (said,) = warnings(caplog)
    assert "an arena of 2 MiB is not to be had" in said
    assert "/sys/limit is 10 MiB" in said


def test_whatever_goes_wrong_the_server_starts(
    left: Left, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no more sockets")

    monkeypatch.setattr(module, "ArenaOwner", fail)
    with opened() as (opening, _):
        assert opening.ready is None
        until(left.nothing, 2)
    assert "RuntimeError: no more sockets" in warnings(caplog)[-1]


class Children:
    """Processes that stand for ranks."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-c", "print(flush=True); input()"]
        self._all = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
        for child in self._all:
            assert child.stdout is not None
            child.stdout.readline()

    @property
    def pids(self) -> list[int]:
        """Of all."""
        return [child.pid for child in self._all]

    def end(self, index: int) -> None:
        """As a crash does."""
        self._all[index].kill()

    def close(self) -> None:
        """Idempotent."""
        for child in self._all:
            child.kill()
            child.communicate(timeout=10)


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children(2)
    yield made
    made.close()


@pytest.mark.parametrize("while_it_waits", [False, True], ids=["idle", "with a request that waits"])
def test_when_a_rank_s_process_ends_all_is_given_back(left: Left, children: Children, while_it_waits: bool) -> None:
    with opened(pids=children.pids) as (opening, peer):
        owner = opening.ready
        assert owner is not None

        async def requests() -> None:
            await owner.check_in(Package(torch.zeros(LARGE)))  # in flight: no rank gives it back
            peer.reports = lambda ticket, rank: None
            waits = asyncio.create_task(owner.check_in(Package(torch.ones(LARGE))))
            await asyncio.to_thread(peer.until_told, 2)
            children.end(1)
            with pytest.raises(Trouble, match="the ranks have ended"):
                await asyncio.wait_for(waits, 2)

        if while_it_waits:
            asyncio.run(requests())
        else:
            assert opening.ready is owner
            children.end(0)
        until(lambda: opening.ready is None, 2)
        until(left.nothing, 2)
        assert not owner.carries
        with pytest.raises(Trouble):
            asyncio.run(owner.check_in(Package(torch.ones(LARGE))))


def test_a_rank_that_ends_while_it_opens_is_one_warning(
    left: Left, children: Children, caplog: pytest.LogCaptureFixture
) -> None:
    children.end(0)
    with opened(pids=children.pids, attach=lambda rank: None) as (opening, _):
        assert opening.ready is None
        until(left.nothing, 2)
    (said,) = warnings(caplog)
    assert "a rank has ended" in said


def test_server_after_server_leaves_nothing(left: Left) -> None:
    for _ in range(3):
        children = Children(2)
        with opened(pids=children.pids) as (opening, _):
            assert opening.ready is not None
            children.close()
            until(left.nothing, 2)
