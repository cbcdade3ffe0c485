"""The line in front of the arena."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from coatcheck.arena import Arena
from coatcheck.arena.allocator import PAGE
from coatcheck.errors import BadRequest, Overloaded, WireError
from coatcheck.frontend.rooms import Rooms
from coatcheck.messages import Arrived, Handle, Item, Sampling, Tensor

pytestmark = pytest.mark.anyio


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena(10 * PAGE) as made:
        yield made


@pytest.fixture
def rooms(arena: Arena) -> Rooms:
    return Rooms(arena, 5)


def free(arena: Arena) -> int:
    return arena.statistics().free // PAGE


async def test_a_request_waits_until_there_is_room(rooms: Rooms, arena: Arena) -> None:
    first = await rooms.reserve([6 * PAGE, 2 * PAGE])
    second = asyncio.create_task(rooms.reserve([4 * PAGE]))
    await asyncio.sleep(0.05)
    assert not second.done()
    assert (rooms.statistics().waiting, rooms.statistics().waited) == (1, 1)
    rooms.cancel(first)
    assert [block.size for block in await second] == [4 * PAGE]
    assert rooms.statistics().waiting == 0


async def test_nobody_overtakes(rooms: Rooms) -> None:
    first = await rooms.reserve([6 * PAGE])
    large = asyncio.create_task(rooms.reserve([8 * PAGE]))
    await asyncio.sleep(0)
    small = asyncio.create_task(rooms.reserve([PAGE]))
    await asyncio.sleep(0.05)
    assert not small.done(), "a small one overtook a large one"
    rooms.cancel(first)
    await large
    await small


async def test_all_payloads_of_a_request_or_none(rooms: Rooms, arena: Arena) -> None:
    await rooms.reserve([6 * PAGE])
    waiting = asyncio.create_task(rooms.reserve([3 * PAGE, 3 * PAGE]))
    await asyncio.sleep(0.05)
    assert free(arena) == 4, "a request that waits holds a part"
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await rooms.reserve([4 * PAGE]), "who left still stands in the line"


async def test_waiting_is_bounded(arena: Arena) -> None:
    rooms = Rooms(arena, 0.05)
    await rooms.reserve([10 * PAGE])
    start = time.monotonic()
    with pytest.raises(Overloaded, match=r"no room for 4096 bytes within 0.05 s"):
        await rooms.reserve([PAGE])
    assert time.monotonic() - start < 2
    assert rooms.statistics().turned_away == 1


async def test_what_can_never_fit_is_refused_at_once(rooms: Rooms) -> None:
    with pytest.raises(BadRequest, match=f"have {12 * PAGE} bytes; this server's arena has {10 * PAGE}") as refused:
        await rooms.reserve([6 * PAGE, 6 * PAGE])
    assert refused.value.status == 413


async def test_room_that_comes_as_the_caller_leaves_is_not_lost(rooms: Rooms, arena: Arena) -> None:
    first = await rooms.reserve([10 * PAGE])
    waiting = asyncio.create_task(rooms.reserve([PAGE]))
    await asyncio.sleep(0.01)
    rooms.cancel(first)  # the room is granted now, and nobody takes it
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert free(arena) == 10


def item(handle: Handle | Tensor, digest: bytes = b"") -> Item:
    return Item(handle, (1, 1, 1), 0, 1, digest)


async def test_payloads_are_leased_until_every_rank_has_given_them_back(rooms: Rooms, arena: Arena) -> None:
    arrived = Arrived("a", "handle-inline", (1,), (item(Tensor(0, (5000,), "uint8")),), Sampling(1))
    with rooms.held("a"):
        arrived, frames = await rooms.put(arrived, [b"x" * 5000])
        assert frames == []
        rooms.dispatch(arrived, 2)
        assert arena.statistics().in_use == 2 * PAGE
    assert arena.statistics().quarantined == 2 * PAGE
    arena.acknowledge("a", 0)
    assert arena.statistics().quarantined == 2 * PAGE
    arena.acknowledge("a", 1)
    assert free(arena) == 10


async def test_equal_content_is_stored_once(rooms: Rooms, arena: Arena) -> None:
    handles = []
    for name in ("a", "b"):
        arrived = Arrived(name, "handle-inline", (1,), (item(Tensor(0, (5,), "uint8"), b"d" * 32),), Sampling(1))
        arrived, _ = await rooms.put(arrived, [b"equal"])
        handles.append(arrived.items[0].pixels)
    assert handles[0] == handles[1]
    assert free(arena) == 9
    assert arena.statistics().hits == 1
    arena.end("a")
    arena.end("b")
    assert arena.statistics().cached == PAGE
    await rooms.reserve([10 * PAGE])  # what is only cached makes room


async def test_items_elsewhere_than_reserved_are_refused_and_nothing_is_lost(rooms: Rooms, arena: Arena) -> None:
    (block,) = await rooms.reserve([PAGE])
    for handle in (
        Handle(block.offset + PAGE, block.nonce, (5,), "uint8"),
        Handle(block.offset, block.nonce + 2, (5,), "uint8"),
        Handle(block.offset, block.nonce, (PAGE + 1,), "uint8"),
        Tensor(0, (5,), "uint8"),
    ):
        with pytest.raises(WireError):
            rooms.check_in("a", [item(handle)], [block])
    rooms.cancel([block])
    assert free(arena) == 10
