"""Where payloads go under ``auto``: beside the request or into the arena, by what the ranks told."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from PIL import Image

from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle
from coatcheck.engine.http.strategy_choice import payload_policy
from coatcheck.engine.records import AutoRule
from coatcheck.intake.records import Tensor
from tests.engine.http.test_handles import ask, reading, statistics
from tests.support.front_end import RunningServer, encoded, wait_for

SMALL = encoded(Image.new("RGB", (60, 60), "red"))  # the processor makes it 112 x 112: 64 patches of 588 uint8
SMALL_BYTES = 64 * 588


@pytest.fixture
def inside(server: RunningServer) -> Iterator[RunningServer]:
    """The shared server, told by its ranks that one small image may ride."""
    link = server.front_end.link
    told = link.ranks
    assert told is not None
    link._ranks = msgspec.structs.replace(told, auto=AutoRule(SMALL_BYTES))
    yield server
    link._ranks = told


def test_the_policy_is_what_the_strategy_and_the_ranks_say() -> None:
    def arena(strategy: str, sizes: list[int], rule: AutoRule | None = None) -> bool:
        return payload_policy(strategy, "r", rule, "uint8").uses_arena(sizes, 10 * PAGE)

    assert not arena("auto", [60, 40], AutoRule(100))
    assert arena("auto", [60, 41], AutoRule(100))
    assert arena("auto", [4 * PAGE, 6 * PAGE], AutoRule(100))
    assert not arena("auto", [4 * PAGE, 5 * PAGE + 1, 1], AutoRule(100)), "payloads take whole pages"
    assert not arena("auto", [500], AutoRule(None)), "no handle may come to the ranks"
    assert not arena("auto", [500]), "the ranks have not said anything yet"
    assert arena("auto", [1], AutoRule(0))
    assert arena("handle-inline", [1], AutoRule(100))
    assert not arena("dict-inline", [500], AutoRule(0))
    assert [payload_policy(name, "r", None, "uint8").form for name in ("auto", "lazy", "handle-background")] == [
        "uint8",
        "float32",
        "uint8",
    ]


def test_a_small_payload_rides_and_the_sum_decides(inside: RunningServer) -> None:
    seen: list[list[bytes]] = []
    reading(inside, seen)
    assert ask(inside, "auto", SMALL).headers["x-coatcheck-strategy"] == "auto"
    arrived, frames = inside.entry.requests[-1]
    assert arrived.strategy == "auto"
    assert [len(frame) for frame in frames] == [SMALL_BYTES]
    assert isinstance(arrived.items[0].pixels, Tensor)
    assert ask(inside, "auto", SMALL, SMALL).status_code == 200
    arrived, nothing = inside.entry.requests[-1]
    assert nothing == []
    assert all(isinstance(item.pixels, Handle) for item in arrived.items)
    assert seen[-1] == frames * 2
    wait_for(lambda: statistics(inside) == (0, 0, 0))


def test_what_is_larger_than_the_arena_rides(inside: RunningServer) -> None:
    answer = ask(inside, "auto", *[encoded(Image.new("RGB", (1960, 1960)))] * 3)
    assert answer.status_code == 200
    arrived, frames = inside.entry.requests[-1]
    assert [len(frame) for frame in frames] == [74 * 74 * 588] * 3
    assert isinstance(arrived.items[0].pixels, Tensor)


def test_a_full_arena_is_waited_for_all_the_same(inside: RunningServer) -> None:
    arena = inside.front_end.arena
    assert arena is not None
    filled = arena.reserve(arena.capacity - 4096)
    try:
        assert ask(inside, "auto", SMALL).status_code == 200
        assert ask(inside, "auto", SMALL, SMALL).status_code == 503
    finally:
        inside.loop.call_soon_threadsafe(arena.cancel, filled)


def test_where_no_handle_may_come_all_rides(server: RunningServer) -> None:
    assert ask(server, "auto", SMALL, SMALL).status_code == 200
    assert [len(frame) for frame in server.entry.requests[-1][1]] == [SMALL_BYTES] * 2
