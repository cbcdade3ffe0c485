"""Broadcasting plans: at most two collectives a step, whatever the plan carries.

The first broadcast is a fixed block: two lengths and, if it fits, the plan itself. Only if the plan is longer, or
payloads ride along, a second one follows: the rest of the plan and all payloads in one buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from coatcheck.arena.handle import nbytes
from coatcheck.engine.records import Arrived, Plan
from coatcheck.intake.records import tensors
from coatcheck.stopwatch import Spent, Stopwatch
from coatcheck.wire import Buffer, Decoder, encode

HEAD = 16_384  # bytes of the fixed block; gloo takes as long for 256 (docs/decisions/plan-broadcast.md)
ALIGN = 64  # payloads start at multiples of this in the second buffer, as vector loads like it
_LENGTHS = struct.Struct("<QQ")  # bytes of the plan, bytes of the second buffer

_decode = Decoder[Plan](Plan)


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


class Broadcasts(Protocol):
    """What a channel needs of a group."""

    def broadcast(self, tensor: torch.Tensor) -> None:
        """The entry rank's tensor into everybody's."""
        ...


class PlanChannel:
    """The entry rank sends, the others receive; one call of either on every rank per step."""

    def __init__(self, group: Broadcasts, observe: Callable[[Sequence[Arrived], Spent], None]) -> None:
        """``observe`` is told the arrivals of each second collective and the time it took, wait for others included."""
        self._broadcast = group.broadcast
        self._observe = observe
        self._head = torch.zeros(HEAD, dtype=torch.uint8)

    def send(self, plan: Plan, frames: Sequence[Buffer] = ()) -> None:
        """``frames``: of all arrivals, in order. They may be reused when this returns."""
        record = encode(plan)
        inline = record[: HEAD - _LENGTHS.size]
        rest = record[len(inline) :]
        bulk = sum((_aligned(memoryview(frame).nbytes) for frame in frames), _aligned(len(rest)))
        head = self._head.numpy().data
        _LENGTHS.pack_into(head, 0, len(record), bulk)
        head[_LENGTHS.size : _LENGTHS.size + len(inline)] = inline
        self._broadcast(self._head)
        if not bulk:
            return
        watch = Stopwatch()
        buffer = torch.empty(bulk, dtype=torch.uint8)
        view = buffer.numpy().data
        view[: len(rest)] = rest
        start = _aligned(len(rest))
        for frame in frames:
            data = memoryview(frame).cast("B")
            view[start : start + len(data)] = data
            start += _aligned(len(data))
        self._broadcast(buffer)
        self._observe(plan.arrivals, watch.stop())

    def receive(self) -> tuple[Plan, list[Buffer]]:
        """Waits for the next plan, asleep, as long as the group's timeout allows.

        Frames stay valid while referenced.
        """
        self._broadcast(self._head)
        head = self._head.numpy().data
        length, bulk = _LENGTHS.unpack_from(head)
        inline = bytes(head[_LENGTHS.size : _LENGTHS.size + min(length, HEAD - _LENGTHS.size)])
        if not bulk:
            return _decode(inline), []
        watch = Stopwatch()
        buffer = torch.empty(bulk, dtype=torch.uint8)
        self._broadcast(buffer)
        view = buffer.numpy().data.toreadonly()
        rest = length - len(inline)
        plan = _decode(inline + bytes(view[:rest]))
        frames: list[Buffer] = []
        start = _aligned(rest)
        for arrived in plan.arrivals:
            for tensor in tensors(arrived.items):
                size = nbytes(tensor)
                frames.append(view[start : start + size])
                start += _aligned(size)
        self._observe(plan.arrivals, watch.stop())
        return plan, frames
