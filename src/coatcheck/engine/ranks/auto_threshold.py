"""What ``auto`` decides by, measured by all ranks together before they are ready; takes about half a second.

The entry rank leads: it sends plans over the ranks' own channel, and everybody executes them as requests are executed
later. All times are wall time of the entry rank's thread, waits included, since that is what a stall is; its CPU time
would leave out the wait for the other ranks, which is most of a small broadcast. Lower quartiles, since what other
processes take is only ever added: with other work on all cores medians gave thresholds from 4 to 294 KiB in one minute.
The contenders take turns, so that they are disturbed alike. Before each sample an empty plan brings all ranks to the
same point.

For payloads of a few sizes n (images of the model's own geometry):

* inside(n): the plan's broadcasts with the payload beside it, and materializing;
* handle(n): the plan's broadcast with a handle, materializing from the arena, at its end the check and ``Returned``.

The threshold is the largest n up to which inside(n) <= handle(n) throughout, at least :data:`LEAST_BYTES`, at most
:data:`MOST_BYTES`. What the handle costs elsewhere (a worker's question for room, the front end's bookkeeping) stalls
no rank and is not counted.

Materializing's costs are lines through the smallest and the largest size. The handover is what the lane adds to a
request's way: from queueing a job that does nothing until the entry rank has read its report.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec
import torch
import zmq

from coatcheck.arena import Arena, ArenaReader
from coatcheck.arena.handle import Handle, PixelForm, nbytes
from coatcheck.delivery.records import Ready, Returned
from coatcheck.engine.ranks.auto import Line
from coatcheck.engine.ranks.lane import Job, Lane
from coatcheck.engine.ranks.plan_broadcast import PlanChannel
from coatcheck.engine.records import Arrived, Plan, Report, Sampling
from coatcheck.engine.strategies.materialize import DTYPES, Materialize
from coatcheck.errors import CoatcheckError
from coatcheck.intake.records import Item, Tensor
from coatcheck.wire import Buffer, Decoder, send

EDGES = (1, 2, 4, 8, 16)  # of a sample's image, in tokens: compact, 2.3 to 588 KiB with patches of 14
LEAST_BYTES = 4096  # a payload takes whole pages of the arena
MOST_BYTES = 1 << 20
ROUNDS = (9, 25)  # at least and at most; the first is not counted
BUDGET_S = 0.4  # no round begins after this
LANE_S = 5.0  # for the lane's thread to answer or to end


@dataclass(frozen=True)
class Measured:
    """Lower quartiles in seconds. ``handle`` is empty, and has no line, where payloads cannot come by handle."""

    inside: Mapping[int, float]  # by payload bytes, ascending
    handle: Mapping[int, float]
    materialize: Mapping[str, Line]  # by carrier
    handover_s: float

    @property
    def inside_bytes(self) -> int:
        """The threshold."""
        return threshold(self.inside, self.handle)


def threshold(inside: Mapping[int, float], handle: Mapping[int, float]) -> int:
    """See the module's docstring."""
    largest = LEAST_BYTES
    for size in sorted(inside):
        if inside[size] > handle[size]:
            break
        largest = size
    return min(max(largest, LEAST_BYTES), MOST_BYTES)


@dataclass
class _Sample:
    arrived: Arrived
    frames: list[Buffer]
    handles: Arrived  # the same by handle
    whole: dict[str, list[float]]  # by carrier
    made: dict[str, list[float]]

    @property
    def nbytes(self) -> int:
        return sum(nbytes(item.pixels) for item in self.arrived.items)


def _sample(materialize: Materialize, edge: int) -> _Sample:
    """One image of ``edge`` x ``edge`` tokens, compact if this model's pixels can be."""
    side = edge * materialize.merge
    form: PixelForm = "float32" if materialize.table is None else "uint8"
    shape = (side * side, materialize.width if materialize.table is None else materialize.table.compact_widths[0])
    ids = (0, materialize.image, 0)
    pixels = torch.zeros(shape, dtype=DTYPES[form])
    item = Item(Tensor(0, shape, form), (1, side, side), 1, edge**2)
    by_handle = Item(Handle(0, 0, shape, form), item.grid, item.start, item.count)
    arrived = Arrived("calibration", "dict-inline", ids, (item,), Sampling(1))
    handles = Arrived("calibration", "handle-inline", ids, (by_handle,), Sampling(1))
    return _Sample(arrived, [pixels.numpy().data.cast("B")], handles, {}, {})


def follow(channel: PlanChannel, materialize: Materialize) -> None:
    """The other ranks' part: the same work as the entry rank's, at the same time."""
    zeros = max((_sample(materialize, edge) for edge in EDGES), key=lambda sample: sample.nbytes).frames[0]
    by_handle = replace(materialize, view=lambda handle: zeros[: nbytes(handle)])
    while True:
        plan, frames = channel.receive()
        if plan.stop:
            return
        for arrived in plan.arrivals:
            by_handle(arrived, frames)


def lead(channel: PlanChannel, materialize: Materialize, rank: int, handles: bool) -> Measured:
    """The entry rank's part. ``handles``: may payloads come by handle? Raises ConfigError without memory for a MiB."""
    samples = [_sample(materialize, edge) for edge in EDGES]
    carriers = ("dict", "handle") if handles else ("dict",)
    handovers: list[float] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    lane = Lane(rank)
    try:
        with _in_arena(samples, handles) as reader:
            contender = _Contender(channel, materialize, reader, rank, context)
            deadline = time.perf_counter() + BUDGET_S
            for number in range(ROUNDS[1]):
                if number >= ROUNDS[0] and time.perf_counter() > deadline:
                    break
                for sample in samples:
                    for carrier in carriers:
                        whole, made = contender.run(sample, carrier)
                        if number:
                            sample.whole.setdefault(carrier, []).append(whole)
                            sample.made.setdefault(carrier, []).append(made)
                    handovers.append(contender.handover(lane))
    finally:
        channel.send(Plan(0, stop=True))
        lane.close(LANE_S)
        context.destroy(linger=0)
    lows = {carrier: {sample.nbytes: _low(sample.whole[carrier]) for sample in samples} for carrier in carriers}
    return Measured(
        inside=lows["dict"],
        handle=lows.get("handle", {}),
        materialize={carrier: _fit(samples, carrier) for carrier in carriers},
        handover_s=_low(handovers),
    )


class _Contender:
    """Does what the entry rank's thread does for one request."""

    def __init__(
        self,
        channel: PlanChannel,
        materialize: Materialize,
        reader: ArenaReader | None,
        rank: int,
        context: zmq.Context[zmq.Socket[bytes]],
    ) -> None:
        self._channel = channel
        self._materialize = materialize if reader is None else replace(materialize, view=reader.view)
        self._reader = reader
        self._rank = rank
        self._decode = Decoder[Report](Report)
        (self._returns, self._returned), (self._reports, self._reported) = (
            _pair(context, f"inproc://{name}") for name in ("returns", "reports")
        )

    def run(self, sample: _Sample, carrier: str) -> tuple[float, float]:
        """Seconds in all, and of them for materializing."""
        arrived, frames = (sample.arrived, sample.frames) if carrier == "dict" else (sample.handles, [])
        self._channel.send(Plan(0))
        start = time.perf_counter()
        self._channel.send(Plan(0, (arrived,)), frames)
        sent = time.perf_counter()
        self._materialize(arrived, frames)
        made = time.perf_counter()
        if carrier == "handle":
            for item in arrived.items:
                assert self._reader is not None
                assert isinstance(item.pixels, Handle)
                self._reader.check(item.pixels)
            send(self._returns, Returned(arrived.request, self._rank))
        end = time.perf_counter()
        if carrier == "handle":
            self._returned.recv()
        return end - start, made - sent

    def handover(self, lane: Lane) -> float:
        """Seconds until the report of a job that does nothing else has been read."""
        start = time.perf_counter()
        job = Job("calibration", False, lambda: True, lambda: send(self._reports, Ready("calibration", self._rank)))
        lane.submit(job)
        try:
            self._decode(self._reported.recv())
        except zmq.Again:
            raise CoatcheckError(f"auto: the lane did not answer within {LANE_S:g} s at start") from None
        return time.perf_counter() - start


def _pair(context: zmq.Context[zmq.Socket[bytes]], address: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    push.bind(address)
    pull.connect(address)
    pull.setsockopt(zmq.RCVTIMEO, round(LANE_S * 1000))
    return push, pull


@contextmanager
def _in_arena(samples: Sequence[_Sample], wanted: bool) -> Iterator[ArenaReader | None]:
    """Puts the samples into an arena of this process, since only its owner can write to the server's."""
    if not wanted:
        yield None
        return
    with Arena(sum(sample.nbytes + LEAST_BYTES for sample in samples)) as arena:
        for sample in samples:
            block = arena.put(sample.handles.request, memoryview(sample.frames[0]))
            item = sample.handles.items[0]
            pixels = Handle(block.offset, block.nonce, item.pixels.shape, item.pixels.dtype)
            items = (msgspec.structs.replace(item, pixels=pixels),)
            sample.handles = msgspec.structs.replace(sample.handles, items=items)
        reader = ArenaReader(arena.address)
        yield reader
        reader.close()


def _low(samples: Sequence[float]) -> float:
    return statistics.quantiles(samples, n=4)[0]


def _fit(samples: Sequence[_Sample], carrier: str) -> Line:
    """Through the smallest and the largest; never falling, and never below zero."""
    first, last = (_low(sample.made[carrier]) for sample in (samples[0], samples[-1]))
    slope = max(0.0, (last - first) / (samples[-1].nbytes - samples[0].nbytes))
    return Line(max(0.0, first - slope * samples[0].nbytes), slope)
