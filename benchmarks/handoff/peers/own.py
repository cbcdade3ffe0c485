"""coatcheck's own contenders: the arena, the plan channel, the lane, materialization and the ledger; no engine around.

``coatcheck-handle``: pixels compact, in the form in which our worker writes them into the arena; writing them there is
the processor's output itself, and so no part of the hand-off. ``coatcheck-handle-f32``: a tensor that lies elsewhere
is copied there once, by a thread, as wide as the peers'. Both materialize in the lane. ``coatcheck-dict``: the wide
tensor rides in the plan's broadcast and is materialized on the scheduler's thread, which includes its sha256.

The identity is blake3 over the encoded image and is known before there is a tensor: ``hash`` is its time, and it is no
part of *ready*. The step ``admit`` is what a request's admission costs by itself: reports of all ranks, and a plan for
it alone; in an engine that plan carries a step's work too.
"""

from __future__ import annotations

import asyncio
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from blake3 import blake3

from benchmarks.handoff.meter import WAIT_S, Meter, Payload, Place, Written
from benchmarks.handoff.peers.gloo import join as join
from benchmarks.handoff.peers.pipe import Inbox, InboxRank, Outbox, Watch
from coatcheck.arena import Arena, ArenaAddress, ArenaReader
from coatcheck.arena.handle import Handle
from coatcheck.delivery.readiness import Readiness
from coatcheck.delivery.records import Ready, Returned
from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.model.positions import ModelPositions
from coatcheck.engine.model_files import read_config
from coatcheck.engine.ranks.admission import Admission
from coatcheck.engine.ranks.lane import Job, Lane
from coatcheck.engine.ranks.plan_broadcast import PlanChannel
from coatcheck.engine.records import Admit, Arrived, Plan, Sampling
from coatcheck.engine.strategies.materialize import Materialize, no_arena
from coatcheck.engine.strategies.table import is_background
from coatcheck.intake.records import Item, Tensor
from coatcheck.pixels import PixelTable, image_processor
from coatcheck.wire import Buffer, Decoder, from_argument, send, split, to_argument

ARENA_BYTES = 1 << 30
TEXT = tuple(range(16))  # tokens of the prompt before the image

_arrived, _returned, _ready = Decoder[Arrived](Arrived), Decoder[Returned](Returned), Decoder[Ready](Ready)


def _record(payload: Payload, strategy: str, pixels: Tensor | Handle, digest: bytes) -> Arrived:
    """The image between its marks, behind some text."""
    config = _model()
    ids = (*TEXT, config["vision_start_token_id"], config["image_token_id"], config["vision_end_token_id"])
    t, h, w = payload.grid
    count = t * h * w // config["vision_config"]["spatial_merge_size"] ** 2
    item = Item(pixels, payload.grid, len(TEXT) + 1, count, digest)
    return Arrived(payload.name, strategy, ids, (item,), Sampling(1))


@cache
def _model() -> dict[str, Any]:
    return read_config(DEFAULT_MODEL)


def _identity(payload: Payload) -> tuple[bytes, float]:
    """And the seconds that it took. The name is in it because each request is to be new content."""
    watch = Watch()
    digest = blake3(payload.encoded).update(payload.name.encode()).digest()
    return digest, watch.seconds()


class DictFront:
    """Sends the wide tensor beside the record."""

    def __init__(self, place: Place, strategy: str) -> None:
        self._out = Outbox(place.path("requests"))
        self._strategy = strategy

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        digest, hash_s = _identity(payload)
        watch = Watch()
        arrived = _record(payload, self._strategy, Tensor(0, payload.wide.shape, "float32"), digest)
        send(self._out.socket, arrived, [payload.wide.data.cast("B")])
        return Written(watch.start, watch.seconds(), hash_s, payload.wide)

    def settle(self) -> None:
        """Nothing is lent."""

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        self._out.close()


class HandleFront:
    """Owns the arena."""

    def __init__(self, place: Place, strategy: str, compact: bool) -> None:
        self._ranks = place.ranks
        self._strategy, self._compact = strategy, compact
        self._arena = Arena(ARENA_BYTES)
        Path(place.path("arena")).write_text(to_argument(self._arena.address))
        self._out, self._returns = Outbox(place.path("requests")), Inbox(place.path("returns"))

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        digest, hash_s = _identity(payload)
        values = payload.compact if self._compact else payload.wide
        watch = Watch()
        block = self._arena.reserve(values.nbytes)
        with self._arena.writable(block) as view:
            room = np.frombuffer(view, dtype=values.dtype, count=values.size).reshape(values.shape)
            writing = Watch()
            await asyncio.to_thread(np.copyto, room, values)  # without the interpreter's lock
            if self._compact:  # stands for the processor, which writes its output there
                watch.leave_out(writing.seconds())
            del room
        self._arena.commit(payload.name, block, values.nbytes, digest)
        self._arena.dispatch(payload.name, range(self._ranks))
        handle = block.handle(values.shape, "uint8" if self._compact else "float32")
        send(self._out.socket, _record(payload, self._strategy, handle, digest))
        return Written(watch.start, watch.seconds(), hash_s, values)

    def settle(self) -> None:
        """Every rank gives the block back, and so the request's need of it ends."""
        for _ in range(self._ranks):
            self._returns.wait()
            returned = _returned(split(self._returns.receive())[0])
            self._arena.returned(returned.request, returned.rank)

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        self._out.close()
        self._returns.close()
        self._arena.close()


class _World:
    """The team's group, as the plan channel wants it."""

    def broadcast(self, tensor: torch.Tensor) -> None:
        """See :class:`coatcheck.engine.ranks.plan_broadcast.Broadcasts`."""
        dist.broadcast(tensor, src=0)


class Rank(InboxRank):
    """One rank; the entry rank decides by its ledger, as in the engine."""

    def __init__(self, place: Place, strategy: str) -> None:
        super().__init__(place)
        self._place = place
        self._background = is_background(strategy)
        arena = Path(place.path("arena"))
        self._reader = ArenaReader(from_argument(arena.read_text(), ArenaAddress)) if arena.exists() else None
        self._materialize = _materializer(self._reader)
        self._channel = PlanChannel(_World(), lambda arrivals, spent: None)
        self._lane = Lane(place.rank)
        self._admission = Admission(Readiness(place.ranks, WAIT_S))
        self._reports = Inbox(place.path("reports")) if place.rank == 0 else None
        self._report, self._give_back = Outbox(place.path("reports")), Outbox(place.path("returns"))
        self._failure: Exception | None = None
        self._now: Arrived | None = None

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        with meter.step("arrive"):
            arrived, frames = self._lead(self.requests) if self.requests is not None else self._follow()
            self._now = arrived
            if self._background:
                deliver = partial(self._deliver_in_lane, arrived, frames, meter)
                self._lane.submit(Job(arrived.request, False, lambda: True, deliver))
            else:
                self._deliver(arrived, frames)
                meter.held = time.monotonic()
                self._tell(arrived)
        if self._reports is not None:
            self._await_reports(arrived, self._reports, meter)
        with meter.step("admit"):
            if self._place.rank == 0:
                decision = self._admission.decide(0.0, lambda request: True)
                admits = tuple(Admit(request, 0, 1) for request in decision.admitted)
                self._channel.send(Plan(1, admits=admits))
                self._admission.finish(arrived.request)
            else:
                admits = self._channel.receive()[0].admits
        if self._failure is not None or [admit.request for admit in admits] != [arrived.request]:
            raise RuntimeError(f"request {arrived.request} was not admitted: {self._failure}")
        tensor: torch.Tensor = self.held[0]
        return tensor

    def _lead(self, requests: Inbox) -> tuple[Arrived, list[Buffer]]:
        record, views = split(requests.receive())
        arrived, frames = _arrived(record), list[Buffer](views)
        self._admission.arrive(arrived.request, 0.0)
        self._channel.send(Plan(0, (arrived,)), frames)
        return arrived, frames

    def _follow(self) -> tuple[Arrived, list[Buffer]]:
        plan, frames = self._channel.receive()
        return plan.arrivals[0], list(frames)

    def _deliver_in_lane(self, arrived: Arrived, frames: list[Buffer], meter: Meter) -> None:
        with meter.lane():
            self._deliver(arrived, frames)
        self._tell(arrived)

    def _deliver(self, arrived: Arrived, frames: list[Buffer]) -> None:
        try:
            inputs = self._materialize(arrived, frames)
            self.held.append(inputs.items[0].pixels)
        except Exception as error:
            self._failure = error

    def _tell(self, arrived: Arrived) -> None:
        """The entry rank: whether this rank is ready, or why not."""
        reason = None if self._failure is None else str(self._failure)
        send(self._report.socket, Ready(arrived.request, self._place.rank, reason))

    def _await_reports(self, arrived: Arrived, reports: Inbox, meter: Meter) -> None:
        for _ in range(self._place.ranks):
            reports.wait()
            with meter.step("report"):
                ready = _ready(split(reports.receive())[0])
                self._admission.report(ready.request, ready.rank, ready.error)

    def release(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        super().release()
        assert self._now is not None
        if self._reader is not None:
            for item in self._now.items:
                assert isinstance(item.pixels, Handle)
                self._reader.check(item.pixels)
            send(self._give_back.socket, Returned(self._now.request, self._place.rank))

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        self._lane.close(WAIT_S)
        super().close()
        for box in (self._reports, self._report, self._give_back):
            if box is not None:
                box.close()


def _materializer(reader: ArenaReader | None) -> Materialize:
    """As a rank of the default model has it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(DEFAULT_MODEL), local_files_only=True)
    table = PixelTable.of(image_processor(DEFAULT_MODEL))
    return Materialize(
        positions=ModelPositions(config),
        image=config.image_token_id,
        video=config.video_token_id,
        merge=config.vision_config.spatial_merge_size,
        width=table.width,
        view=no_arena if reader is None else reader.view,
        table=table,
    )


SIDES = {
    "coatcheck-handle": (
        partial(HandleFront, strategy="handle-background", compact=True),
        partial(Rank, strategy="handle-background"),
    ),
    "coatcheck-handle-f32": (
        partial(HandleFront, strategy="handle-background", compact=False),
        partial(Rank, strategy="handle-background"),
    ),
    "coatcheck-dict": (partial(DictFront, strategy="dict-inline"), partial(Rank, strategy="dict-inline")),
}
