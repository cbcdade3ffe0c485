"""Where the payloads of one job go: into the arena, or beside the answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import msgspec

from coatcheck.arena import Arena
from coatcheck.arena.allocator import pages
from coatcheck.arena.handle import Handle, PixelForm, nbytes
from coatcheck.arena.queue import ArenaQueue, Reservation, Want
from coatcheck.errors import WireError
from coatcheck.intake.records import Done, Grant, Item, Need, Slot, Stored


@dataclass(frozen=True)
class Policy:
    """How a job's payloads are made, and where they go."""

    form: PixelForm = "float32"
    holder: str = ""  # the request that leases what the worker puts into the arena; "": all go beside the answer
    beside_bytes: int = 0  # payloads of up to this sum go beside the answer all the same
    oversize_beside: bool = False  # what could never fit into the arena goes beside the answer, instead of an error

    def uses_arena(self, sizes: Collection[int], arena_bytes: int) -> bool:
        """True if payloads of so many bytes each go into an arena of ``arena_bytes``."""
        if not self.holder or sum(sizes) <= self.beside_bytes:
            return False
        return not self.oversize_beside or sum(map(pages, sizes)) <= arena_bytes


BESIDE = Policy()


class Placement:
    """Of one job. What was reserved for it is committed, or cancelled by ``close``.

    The owner of the arena ends the holder in any case.
    """

    def __init__(self, policy: Policy, arena: Arena | None, queue: ArenaQueue | None) -> None:
        self.policy = policy
        self._arena, self._queue = arena, queue
        self._wants: tuple[Want, ...] = ()
        self._reserved: list[Reservation] | None = None

    def grant(self, need: Need) -> Grant | None:
        """The answer to a worker: where to write, or that nothing goes into the arena. None: there is no room now.

        Raises PayloadTooLarge, and WireError if this job has no business with the arena.
        """
        if self._arena is None or self._queue is None or not self.policy.holder:
            raise WireError("room asked for a job that has no place in the arena")
        if not self.policy.uses_arena([want.nbytes for want in need.wants], self._arena.capacity):
            return Grant(need.job, ())
        if self._reserved is None or self._wants != need.wants:
            self.close()
            self._reserved, self._wants = self._queue.reserve_now(self.policy.holder, need.wants), need.wants
        if self._reserved is None:
            return None
        return Grant(need.job, tuple(map(_slot, self._reserved)))

    async def reserve(self, wants: tuple[Want, ...], patience_s: float) -> None:
        """Room for these payloads in place of what was reserved. Raises ArenaFull or PayloadTooLarge."""
        assert self._queue is not None
        self.close()
        self._reserved = await self._queue.reserve(self.policy.holder, wants, patience_s)
        self._wants = wants

    def commit(self, done: Done) -> Done:
        """The payloads are complete: commits their blocks, and leases them to the holder.

        Equal content is stored once, so a handle may point elsewhere than where its payload was written. Raises
        WireError, everything still reserved, if the items are not what room was given for.
        """
        if self._reserved is None:
            return done
        assert self._queue is not None
        reserved = self._reserved
        _check(done.items, reserved)
        self._reserved = None
        with self._queue.lock:
            items = tuple(self._commit(item, held) for item, held in zip(done.items, reserved, strict=True))
        return msgspec.structs.replace(done, items=items)

    def _commit(self, item: Item, held: Reservation) -> Item:
        if held.filled:
            return item
        assert self._arena is not None
        block = self._arena.commit(self.policy.holder, held.block, nbytes(item.pixels), item.digest, item)
        return msgspec.structs.replace(item, pixels=block.handle(item.pixels.shape, item.pixels.dtype))

    def close(self) -> None:
        """Cancels what was reserved and not committed. Only once no worker can write there any more. Idempotent."""
        if self._reserved is not None:
            assert self._queue is not None
            reserved, self._reserved = self._reserved, None
            with self._queue.lock:
                self._queue.cancel(self.policy.holder, reserved)


def _slot(held: Reservation) -> Slot | Stored:
    if not held.filled:
        return Slot(held.block.offset, held.block.nonce, held.block.size)
    assert isinstance(held.block.note, Item)
    return Stored(held.block.note)


def _check(items: Sequence[Item], reserved: Sequence[Reservation]) -> None:
    if len(items) != len(reserved):
        raise WireError(f"{len(items)} items, and room for {len(reserved)}")
    for item, held in zip(items, reserved, strict=True):
        pixels, block = item.pixels, held.block
        if not isinstance(pixels, Handle) or (pixels.offset, pixels.nonce) != (block.offset, block.nonce):
            raise WireError("the items are not in the blocks that were reserved for them")
        if nbytes(pixels) > block.size:
            raise WireError("an item is larger than the block that was reserved for it")
