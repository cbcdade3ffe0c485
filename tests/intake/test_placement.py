"""Where a job's payloads go, and that whatever was reserved is committed or given back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from coatcheck.arena import Arena
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle
from coatcheck.arena.queue import ArenaQueue, Want
from coatcheck.errors import ArenaFull, PayloadTooLarge, WireError
from coatcheck.intake.placement import Placement, Policy
from coatcheck.intake.records import Done, Grant, Item, Need, Slot, Stored, Tensor

pytestmark = pytest.mark.anyio


@pytest.fixture
def arena() -> Iterator[Arena]:
    with Arena(10 * PAGE) as made:
        yield made


@pytest.fixture
def queue(arena: Arena) -> ArenaQueue:
    return ArenaQueue(arena, threading.Lock())


def need(*sizes: int, digests: tuple[bytes, ...] = ()) -> Need:
    """Of new content, unless digests are given."""
    return Need(1, tuple(map(Want, sizes, digests or [b""] * len(sizes))))


def placement(arena: Arena, queue: ArenaQueue, holder: str = "a", beside: int = 0) -> Placement:
    return Placement(Policy("uint8", holder, beside), arena, queue)


def item(pixels: Handle | Tensor, digest: bytes = b"") -> Item:
    return Item(pixels, (1, 1, 1), 0, 1, digest)


def written(grant: Grant | None, *sizes: int, digests: tuple[bytes, ...] = ()) -> Done:
    """What a worker says that has filled its slots."""
    assert grant is not None
    items = []
    for slot, size, digest in zip(grant.slots, sizes, digests or [b""] * len(sizes), strict=True):
        handle = Handle(slot.offset, slot.nonce, (size,), "uint8") if isinstance(slot, Slot) else None
        items.append(item(handle, digest) if handle is not None else slot.item)  # type: ignore[union-attr]
    return Done(1, tuple(items))


def stored(arena: Arena, queue: ArenaQueue, size: int, digest: bytes) -> Item:
    """Content that is there, and that nobody needs now."""
    first = placement(arena, queue, "first")
    done = first.commit(written(first.grant(need(size, digests=(digest,))), size, digests=(digest,)))
    arena.end("first")
    return done.items[0]


def state(arena: Arena) -> tuple[int, int, int, int]:
    """Pages: reserved, in use, cached, free."""
    found = arena.statistics()
    return found.reserved // PAGE, found.in_use // PAGE, found.cached // PAGE, found.free // PAGE


def test_beside_or_into_the_arena() -> None:
    auto = Policy(holder="a", beside_bytes=100, oversize_beside=True)
    assert not auto.uses_arena([60, 40], 10 * PAGE)
    assert auto.uses_arena([60, 41], 10 * PAGE)
    assert not auto.uses_arena([6 * PAGE, 6 * PAGE], 10 * PAGE), "it could never fit"
    assert not auto.uses_arena([5 * PAGE + 1, 4 * PAGE + 1], 10 * PAGE), "11 pages, if not in bytes"
    assert Policy(holder="a").uses_arena([12 * PAGE], 10 * PAGE), "to be refused"
    assert not Policy().uses_arena([5], 10 * PAGE)


def test_a_job_without_a_holder_has_no_business_with_the_arena(arena: Arena, queue: ArenaQueue) -> None:
    for made in (Placement(Policy(holder="a"), None, None), Placement(Policy(), arena, queue)):
        with pytest.raises(WireError):
            made.grant(need(5))


def test_what_goes_beside_reserves_nothing(arena: Arena, queue: ArenaQueue) -> None:
    made = placement(arena, queue, beside=100)
    assert made.grant(need(60, 40)) == Grant(1, ())
    done = Done(1, (item(Tensor(0, (60,), "uint8")), item(Tensor(1, (40,), "uint8"))))
    assert made.commit(done) is done
    assert state(arena) == (0, 0, 0, 10)


def test_payloads_are_leased_until_every_reader_has_given_them_back(arena: Arena, queue: ArenaQueue) -> None:
    made = placement(arena, queue)
    done = made.commit(written(made.grant(need(5000, PAGE)), 5000, 5))
    made.close()
    assert state(arena) == (0, 3, 0, 7), "what was not needed of the room is free"
    arena.dispatch("a", range(2))
    arena.returned("a", 1)
    assert state(arena) == (0, 3, 0, 7)
    arena.returned("a", 0)
    assert state(arena) == (0, 0, 0, 10)
    assert [isinstance(each.pixels, Handle) for each in done.items] == [True, True]


def test_equal_content_is_stored_once(arena: Arena, queue: ArenaQueue) -> None:
    digests = (b"d" * 32,)
    one, other = placement(arena, queue, "a"), placement(arena, queue, "b")
    grants = [made.grant(need(5, digests=digests)) for made in (one, other)]  # none is there yet
    first = one.commit(written(grants[0], 5, digests=digests))
    second = other.commit(written(grants[1], 5, digests=digests))
    assert first.items[0].pixels == second.items[0].pixels
    assert (state(arena), arena.statistics().hits) == ((0, 1, 0, 9), 1)


def test_known_content_is_neither_reserved_nor_written(arena: Arena, queue: ArenaQueue) -> None:
    known = stored(arena, queue, PAGE, b"k" * 32)
    made = placement(arena, queue)
    digests = (b"k" * 32, b"n" * 32)
    grant = made.grant(need(PAGE, 9 * PAGE, digests=digests))
    assert grant is not None
    assert grant.slots[0] == Stored(known)
    assert state(arena) == (9, 1, 0, 0), "what was known was evicted, or took room again"
    done = made.commit(written(grant, PAGE, 5, digests=digests))
    assert done.items[0] == known
    assert (state(arena), arena.statistics().hits) == ((0, 2, 0, 8), 1)
    arena.end("a")
    assert state(arena) == (0, 0, 2, 8)


async def test_no_room_now_then_waiting_then_a_grant(arena: Arena, queue: ArenaQueue) -> None:
    filled = arena.reserve(8 * PAGE)
    made, wanted = placement(arena, queue), need(3 * PAGE, PAGE)
    assert made.grant(wanted) is None
    assert state(arena) == (8, 0, 0, 2), "who waits holds a part"
    waiting = asyncio.create_task(made.reserve(wanted.wants, 5))
    await asyncio.sleep(0)
    later = placement(arena, queue, "b")
    assert later.grant(need(PAGE)) is None, "it has overtaken"
    arena.cancel(filled)
    await waiting
    grant = made.grant(wanted)
    assert grant is not None
    assert (len(grant.slots), state(arena)) == (2, (4, 0, 0, 6))
    other = made.grant(need(PAGE))
    assert other is not None
    assert state(arena) == (1, 0, 0, 9), "what it does not want any more is still held"


async def test_attempts_count_nothing(arena: Arena, queue: ArenaQueue) -> None:
    stored(arena, queue, 6 * PAGE, b"k" * 32)
    held = arena.reserve(2 * PAGE)
    before = arena.statistics()
    made = placement(arena, queue)
    with pytest.raises(ArenaFull):
        await made.reserve(need(6 * PAGE, 3 * PAGE, digests=(b"k" * 32, b"")).wants, 0.05)
    assert queue.statistics().turned_away == 1
    after = arena.statistics()
    assert (after.hits, after.reservations, after.cached) == (before.hits, before.reservations, before.cached)
    arena.cancel(held)


def test_what_fits_only_beside_nothing_known_is_refused_at_once(arena: Arena, queue: ArenaQueue) -> None:
    """A is there, B is new; together they are larger than the arena: B could never be reserved beside A."""
    stored(arena, queue, 6 * PAGE, b"A" * 32)
    with pytest.raises(PayloadTooLarge, match=f"have {12 * PAGE} bytes; the arena has {10 * PAGE}"):
        placement(arena, queue).grant(need(6 * PAGE, 6 * PAGE, digests=(b"A" * 32, b"B" * 32)))
    assert placement(arena, queue, "b").grant(need(PAGE)) is not None, "it holds up the line"


def test_what_is_not_committed_is_given_back_once(arena: Arena, queue: ArenaQueue) -> None:
    stored(arena, queue, PAGE, b"k" * 32)
    made = placement(arena, queue)
    made.grant(need(PAGE, PAGE, digests=(b"k" * 32, b"")))
    assert state(arena) == (1, 1, 0, 8)
    made.close()
    made.close()
    assert state(arena) == (0, 0, 1, 9)


def test_items_elsewhere_than_reserved_are_refused_and_nothing_is_lost(arena: Arena, queue: ArenaQueue) -> None:
    made = placement(arena, queue)
    grant = made.grant(need(PAGE))
    assert grant is not None
    (slot,) = grant.slots
    assert isinstance(slot, Slot)
    for pixels in (
        Handle(slot.offset + PAGE, slot.nonce, (5,), "uint8"),
        Handle(slot.offset, slot.nonce + 2, (5,), "uint8"),
        Handle(slot.offset, slot.nonce, (PAGE + 1,), "uint8"),
        Tensor(0, (5,), "uint8"),
    ):
        with pytest.raises(WireError):
            made.commit(Done(1, (item(pixels),)))
    with pytest.raises(WireError):
        made.commit(Done(1, ()))
    assert state(arena) == (1, 0, 0, 9)
    made.close()
    assert state(arena) == (0, 0, 0, 10)
