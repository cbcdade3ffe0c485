"""What ``auto`` decides by, measured by all ranks together before they are ready; takes about half a second.

The entry rank leads: it sends plans over the ranks' own channel, and everybody executes them as requests are executed
later. All times are wall time of the entry rank's thread, waits included, since that is what a stall is; its CPU time
would leave out the wait for the other ranks, which is most of a small broadcast. Medians, since other processes disturb
single samples; the contenders take turns, so that they are disturbed alike. Before each sample an empty plan brings all
ranks to the same point.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import msgspec
import torch
import zmq

from coatcheck.arena import Arena, ArenaReader
from coatcheck.messages import Arrived, Handle, Item, Plan, Ready, Report, Returned, Sampling, Tensor
from coatcheck.ranks.auto import Line
from coatcheck.ranks.lane import Job, Lane
from coatcheck.ranks.plans import PlanChannel
from coatcheck.strategies.materialize import Materialize
from coatcheck.wire import Buffer, Decoder, nbytes, send

EDGES = (1, 2, 4, 7)  # of a sample's image, in tokens: 18 KiB to 900 KiB as float32 with patches of 14
LEAST_BYTES = 4096  # a payload takes whole pages of the arena
MOST_BYTES = 1 << 20
ROUNDS = (5, 25)  # at least and at most; the first is not counted
BUDGET_S = 0.3  # no round begins after this
HANDOVERS = 25
LANE_S = 5.0  # for the lane's thread to end


@dataclass(frozen=True)
class Measured:
    """Medians in seconds. ``handle`` is empty, and has no line, where payloads cannot come by handle."""

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
    """One image of ``edge`` x ``edge`` tokens."""
    side = edge * materialize.merge
    shape = (side * side, materialize.width)
    ids = (0, *[materialize.placeholder] * edge**2, 0)
    pixels = torch.zeros(shape)
    item = Item(Tensor(0, shape, "float32"), (1, side, side), 1, edge**2)
    by_handle = Item(Handle(0, 0, shape, "float32"), item.grid, item.start, item.count)
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
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with _in_arena(samples, handles) as reader:
            mapped = replace(materialize, view=reader.view) if reader is not None else materialize
            push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            push.bind("inproc://calibration")
            pull.connect("inproc://calibration")
            pull.setsockopt(zmq.RCVTIMEO, round(LANE_S * 1000))

            def inside(sample: _Sample) -> float:
                channel.send(Plan(0, (sample.arrived,)), sample.frames)
                return _seconds(lambda: materialize(sample.arrived, sample.frames))

            def by_handle(sample: _Sample) -> float:
                assert reader is not None
                channel.send(Plan(0, (sample.handles,)))
                made = _seconds(lambda: mapped(sample.handles, ()))
                for item in sample.handles.items:
                    assert isinstance(item.pixels, Handle)
                    reader.check(item.pixels)
                send(push, Returned(sample.handles.request, rank))
                return made

            contenders = {"dict": inside, **({"handle": by_handle} if handles else {})}
            deadline = time.perf_counter() + BUDGET_S
            for number in range(ROUNDS[1]):
                if number >= ROUNDS[0] and time.perf_counter() > deadline:
                    break
                for sample in samples:
                    for carrier, run in contenders.items():
                        channel.send(Plan(0))
                        start = time.perf_counter()
                        made = run(sample)
                        if number:
                            sample.whole.setdefault(carrier, []).append(time.perf_counter() - start)
                            sample.made.setdefault(carrier, []).append(made)
            while pull.poll(0):
                pull.recv()
            handover = _handover(rank, push, pull)
    finally:
        channel.send(Plan(0, stop=True))
        context.destroy(linger=0)
    whole = {
        carrier: {sample.nbytes: statistics.median(sample.whole[carrier]) for sample in samples}
        for carrier in contenders
    }
    return Measured(
        inside=whole["dict"],
        handle=whole.get("handle", {}),
        materialize={carrier: _fit(samples, carrier) for carrier in contenders},
        handover_s=handover,
    )


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


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _fit(samples: Sequence[_Sample], carrier: str) -> Line:
    """Through the smallest and the largest; never falling, and never below zero."""
    first, last = (statistics.median(sample.made[carrier]) for sample in (samples[0], samples[-1]))
    slope = max(0.0, (last - first) / (samples[-1].nbytes - samples[0].nbytes))
    return Line(max(0.0, first - slope * samples[0].nbytes), slope)


def _handover(rank: int, push: zmq.Socket[bytes], pull: zmq.Socket[bytes]) -> float:
    """Median. ``push`` is the lane's until this returns."""
    decode = Decoder[Report](Report)
    lane = Lane(rank)
    times = []
    try:
        for _ in range(HANDOVERS):
            start = time.perf_counter()
            lane.submit(Job("calibration", False, lambda: True, lambda: send(push, Ready("calibration", rank))))
            decode(pull.recv())
            times.append(time.perf_counter() - start)
    finally:
        lane.close(LANE_S)
    return statistics.median(times)
