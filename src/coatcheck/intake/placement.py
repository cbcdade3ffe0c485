"""Where one job's payloads go: the front end's side of a worker's :class:`~coatcheck.intake.writer.Desk`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from coatcheck.arena.handle import PixelForm
from coatcheck.engine.records import AutoRule
from coatcheck.errors import BadRequest, Overloaded, WireError
from coatcheck.intake.auto import rides_inside
from coatcheck.intake.records import Grant, Need, NoRoom, Processed
from coatcheck.intake.rooms import Room, Rooms


@dataclass(frozen=True)
class Payloads:
    """How a job's payloads are made, and where they go."""

    form: PixelForm = "float32"
    holder: str = ""  # the request that leases what the worker puts into the arena; "": they go beside the answer
    rule: AutoRule | None = None  # which of them go beside the answer all the same


BESIDE = Payloads()


class Placing:
    """Of one job. Whatever room was taken is checked in or let go."""

    def __init__(self, payloads: Payloads, rooms: Rooms | None) -> None:
        self.payloads = payloads
        self.refusal: BadRequest | Overloaded | None = None  # why there was no room
        self._rooms = rooms
        self._asked = False
        self._taken: list[Room] = []  # that the worker was told of

    def expects(self, need: Need) -> None:
        """Raises WireError unless the job goes into the arena and its worker asks for the first time."""
        if self._rooms is None or not self.payloads.holder or self._asked:
            raise WireError("room asked for no job of its own")
        self._asked = True

    async def grant(self, need: Need, wanted: Callable[[], bool]) -> Grant | NoRoom:
        """The answer to the worker. ``wanted``: does the worker live, and does anybody wait for the request?"""
        assert self._rooms is not None
        holder, rule = self.payloads.holder, self.payloads.rule
        sizes = [want.nbytes for want in need.wants]
        if rule is not None and rides_inside(sizes, rule.inside_bytes, self._rooms.arena.capacity):
            return Grant(need.job, ())
        try:
            rooms = await self._rooms.reserve(holder, need.wants)
        except (BadRequest, Overloaded) as error:
            self.refusal = error
            return NoRoom(need.job)
        if not wanted():
            self._rooms.cancel(holder, rooms)
            return NoRoom(need.job)
        self._taken = rooms
        return Grant(need.job, tuple(room.place for room in rooms))

    def check_in(self, processed: Processed) -> Processed:
        """The payloads are written. Raises WireError if they are not where room was given."""
        if not self._taken:
            return processed
        assert self._rooms is not None
        items = self._rooms.check_in(self.payloads.holder, processed.items, self._taken)
        self._taken = []
        return msgspec.structs.replace(processed, items=items)

    def let_go(self) -> None:
        """Room that came to nothing. Only once the worker cannot write there any more."""
        if self._taken:
            assert self._rooms is not None
            self._rooms.cancel(self.payloads.holder, self._taken)
            self._taken = []
