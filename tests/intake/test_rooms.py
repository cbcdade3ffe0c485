"""The line in front of the arena."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from coatcheck.arena import Arena
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle
from coatcheck.engine.records import Arrived
from coatcheck.errors import BadRequest, Overloaded, WireError
from coatcheck.intake.records import Item, Place, Sampling, Stored, Tensor, Want
from coatcheck.intake.rooms import Room, Rooms

pytestmark = pytest.mark.anyio


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena(10 * PAGE) as made:
        yield made


@pytest.fixture
def rooms(arena: Arena) -> Rooms:
    return Rooms(arena, 5)


async def take(rooms: Rooms, *sizes: int, request: str = "a", digests: tuple[bytes, ...] = ()) -> list[Room]:
    """Room for payloads of these sizes; of new content, unless digests are given."""
    pairs = zip(sizes, digests or [b""] * len(sizes), strict=True)
    return await rooms.reserve(request, [Want(size, digest) for size, digest in pairs])


def free(arena: Arena) -> int:
    return arena.statistics().free // PAGE


async def test_a_request_waits_until_there_is_room(rooms: Rooms, arena: Arena) -> None:
    first = await take(rooms, 6 * PAGE, 2 * PAGE)
    second = asyncio.create_task(take(rooms, 4 * PAGE))
    await asyncio.sleep(0.05)
    assert not second.done()
    assert (rooms.statistics().waiting, rooms.statistics().waited) == (1, 1)
    rooms.cancel("a", first)
    assert [room.block.size for room in await second] == [4 * PAGE]
    assert rooms.statistics().waiting == 0


async def test_nobody_overtakes(rooms: Rooms) -> None:
    first = await take(rooms, 6 * PAGE)
    large = asyncio.create_task(take(rooms, 8 * PAGE))
    await asyncio.sleep(0)
    small = asyncio.create_task(take(rooms, PAGE))
    await asyncio.sleep(0.05)
    assert not small.done(), "a small one overtook a large one"
    rooms.cancel("a", first)
    await large
    await small


async def test_all_payloads_of_a_request_or_none(rooms: Rooms, arena: Arena) -> None:
    await take(rooms, 6 * PAGE)
    waiting = asyncio.create_task(take(rooms, 3 * PAGE, 3 * PAGE))
    await asyncio.sleep(0.05)
    assert free(arena) == 4, "a request that waits holds a part"
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await take(rooms, 4 * PAGE), "who left still stands in the line"


async def test_waiting_is_bounded(arena: Arena) -> None:
    rooms = Rooms(arena, 0.05)
    await take(rooms, 10 * PAGE)
    start = time.monotonic()
    with pytest.raises(Overloaded, match=r"no room for 4096 bytes within 0.05 s"):
        await take(rooms, PAGE)
    assert time.monotonic() - start < 2
    assert rooms.statistics().turned_away == 1


async def test_what_can_never_fit_is_refused_at_once(rooms: Rooms) -> None:
    with pytest.raises(BadRequest, match=f"have {12 * PAGE} bytes; this server's arena has {10 * PAGE}") as refused:
        await take(rooms, 6 * PAGE, 6 * PAGE)
    assert refused.value.status == 413


async def test_room_that_comes_as_the_caller_leaves_is_not_lost(rooms: Rooms, arena: Arena) -> None:
    first = await take(rooms, 10 * PAGE)
    waiting = asyncio.create_task(take(rooms, PAGE))
    await asyncio.sleep(0.01)
    rooms.cancel("a", first)  # the room is granted now, and nobody takes it
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
    await take(rooms, 10 * PAGE)  # what is only cached makes room


async def test_a_request_s_need_ends_with_the_last_rank_though_the_client_still_listens(
    rooms: Rooms, arena: Arena
) -> None:
    arrived = Arrived("a", "handle-inline", (1,), (item(Tensor(0, (5000,), "uint8")),), Sampling(1))
    with rooms.held("a"):
        arrived, _ = await rooms.put(arrived, [b"x" * 5000])
        rooms.dispatch(arrived, 2)
        rooms.returned("a", 1)
        assert arena.statistics().in_use == 2 * PAGE
        rooms.returned("a", 0)
        assert free(arena) == 10
    assert free(arena) == 10


async def stored(rooms: Rooms, request: str, content: bytes, digest: bytes) -> Item:
    arrived = Arrived(request, "handle-inline", (1,), (item(Tensor(0, (len(content),), "uint8"), digest),), Sampling(1))
    return (await rooms.put(arrived, [content]))[0].items[0]


async def test_known_content_needs_no_room(rooms: Rooms, arena: Arena) -> None:
    known = await stored(rooms, "a", b"k" * PAGE, b"k" * 32)
    arena.end("a")
    there, new = await take(rooms, PAGE, 9 * PAGE, request="b", digests=(b"k" * 32, b"n" * 32))
    assert there.place == Stored(known)
    assert isinstance(new.place, Place)
    assert free(arena) == 0, "what was known was evicted, or took room again"
    handle = Handle(new.block.offset, new.block.nonce, (5,), "uint8")
    made = rooms.check_in("b", [known, item(handle, b"n" * 32)], [there, new])
    assert made == (known, item(handle, b"n" * 32))
    assert arena.statistics().in_use == 2 * PAGE
    arena.end("b")
    assert arena.statistics().in_use == 0
    assert arena.statistics().hits == 1


async def test_known_content_is_let_go_where_the_rest_has_no_room(arena: Arena) -> None:
    rooms = Rooms(arena, 0.05)
    await stored(rooms, "a", b"k" * PAGE, b"k" * 32)
    arena.end("a")
    await take(rooms, 8 * PAGE, request="b")
    with pytest.raises(Overloaded):
        await take(rooms, PAGE, 2 * PAGE, request="c", digests=(b"k" * 32, b""))
    assert (arena.statistics().cached, arena.statistics().in_use) == (PAGE, 0)
    there, new = await take(rooms, PAGE, PAGE, request="c", digests=(b"k" * 32, b""))
    assert arena.statistics().in_use == PAGE
    rooms.cancel("c", [there, new])
    assert (arena.statistics().cached, arena.statistics().in_use) == (PAGE, 0)


async def test_known_content_that_is_let_go_makes_room_for_who_waits(rooms: Rooms, arena: Arena) -> None:
    await stored(rooms, "a", b"k" * 4 * PAGE, b"k" * 32)
    arena.end("a")
    taken = await take(rooms, PAGE, 4 * PAGE, request="b", digests=(b"", b"k" * 32))
    waiting = asyncio.create_task(take(rooms, 8 * PAGE, request="c"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    rooms.cancel("b", taken)
    async with asyncio.timeout(1):
        await waiting


async def test_what_is_stored_is_no_part_of_what_can_never_fit(rooms: Rooms, arena: Arena) -> None:
    await stored(rooms, "a", b"k" * 6 * PAGE, b"k" * 32)
    assert len(await take(rooms, 6 * PAGE, 6 * PAGE, request="b", digests=(b"k" * 32, b"k" * 32))) == 2
    with pytest.raises(BadRequest):  # 11 pages, if not in bytes
        await take(rooms, 5 * PAGE + 1, 4 * PAGE + 1, request="c")


async def test_a_hopeless_wait_evicts_nothing(rooms: Rooms, arena: Arena) -> None:
    await stored(rooms, "a", b"k" * 3 * PAGE, b"k" * 32)
    arena.end("a")
    held = await take(rooms, 4 * PAGE, request="b")
    waiting = asyncio.create_task(take(rooms, 7 * PAGE, request="c"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert arena.holds(b"k" * 32)
    assert arena.statistics().reservations == 2, "attempts were counted"
    rooms.cancel("b", held)
    await waiting


async def test_what_is_cancelled_after_its_request_ended_is_let_go_once(rooms: Rooms, arena: Arena) -> None:
    await stored(rooms, "a", b"k" * PAGE, b"k" * 32)
    arena.end("a")
    taken = await take(rooms, PAGE, PAGE, request="b", digests=(b"k" * 32, b""))
    arena.end("b")
    rooms.cancel("b", taken)
    assert (arena.statistics().cached, arena.statistics().in_use, free(arena)) == (PAGE, 0, 9)


async def test_items_elsewhere_than_reserved_are_refused_and_nothing_is_lost(rooms: Rooms, arena: Arena) -> None:
    (room,) = await take(rooms, PAGE)
    block = room.block
    for handle in (
        Handle(block.offset + PAGE, block.nonce, (5,), "uint8"),
        Handle(block.offset, block.nonce + 2, (5,), "uint8"),
        Handle(block.offset, block.nonce, (PAGE + 1,), "uint8"),
        Tensor(0, (5,), "uint8"),
    ):
        with pytest.raises(WireError):
            rooms.check_in("a", [item(handle)], [room])
    rooms.cancel("a", [room])
    assert free(arena) == 10
