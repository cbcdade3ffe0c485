"""A tensor-parallel group of real rank processes, driven from a test as the front end drives it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from coatcheck.arena import Arena
from coatcheck.delivery.records import Returned
from coatcheck.engine.http.strategy_choice import payload_policy
from coatcheck.engine.launcher.processes import RankProcesses
from coatcheck.engine.model.config import EngineConfig
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.ranks.settings import RankSettings
from coatcheck.engine.records import (
    Abort,
    Arrived,
    FromRanks,
    RanksReady,
    Rejected,
    Snapshot,
    Stop,
    ToEntry,
    Tokens,
    Verified,
)
from coatcheck.sockets import PrivateEndpoint
from coatcheck.wire import Buffer, Decoder, send, split

START_S = 120.0  # four ranks on two cores import torch and transformers at once
ANSWER_S = 60.0
READY_TIMEOUT_S = 3.0  # several times what a report takes on two busy cores, and less than a fault=hang
ARENA_BYTES = 64 << 20

_decode = Decoder[FromRanks](FromRanks)


@dataclass
class Result:
    """What became of one request."""

    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    rejected: str | None = None
    rank: int | None = None
    digest: str | None = None

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.rejected is not None


class Engine:
    """Context manager. Ranks materialize through tests/support/faulty_rank.py."""

    def __init__(self, model: Path, size: int, ranks: RankConfig | None = None, **engine: Any) -> None:
        self.size = size
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._requests = self._context.socket(zmq.PUSH)
        self._events = self._context.socket(zmq.PULL)
        self._endpoints = [PrivateEndpoint(self._requests), PrivateEndpoint(self._events)]
        self.results: dict[str, Result] = {}
        self.arena = Arena(ARENA_BYTES, poison=True)
        self.snapshots: dict[int, Snapshot] = {}  # by rank, the newest
        settings = RankSettings(
            engine=EngineConfig(model=model, **{"device": "cpu", **engine}),
            ranks=ranks or RankConfig(ready_timeout_s=READY_TIMEOUT_S),
            requests=self._endpoints[0].address,
            events=self._endpoints[1].address,
            arena=self.arena.address,
        )
        root = Path(__file__).parents[2]
        os.environ["PYTHONPATH"] = os.pathsep.join([f"{root}/src", str(root), os.environ.get("PYTHONPATH", "")])
        self.processes = RankProcesses(settings, size, (sys.executable, "-m", "tests.support.faulty_rank"))
        try:
            self.ready = self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _wait_ready(self) -> RanksReady:
        deadline = time.monotonic() + START_S
        while True:
            self.processes.check()
            assert time.monotonic() < deadline, "the ranks did not start in time"
            if self._events.poll(200):
                ready = _decode(self._events.recv())
                if isinstance(ready, RanksReady):
                    return ready

    def tell(self, message: ToEntry, frames: Sequence[Buffer] = ()) -> None:
        send(self._requests, message, frames)

    def submit(self, arrived: Arrived, frames: Sequence[Buffer] = ()) -> None:
        self.results[arrived.request] = Result()
        sizes = [memoryview(frame).nbytes for frame in frames]
        policy = payload_policy(arrived.strategy, arrived.request, self.ready.auto, "uint8")
        if policy.uses_arena(sizes, self.arena.capacity):
            arrived, frames = self.check_in(arrived, frames), ()
        self.tell(arrived, frames)

    def check_in(self, arrived: Arrived, frames: Sequence[Buffer]) -> Arrived:
        """Payloads into the arena; each rank gives them back once."""
        items = []
        for item, frame in zip(arrived.items, frames, strict=True):
            block = self.arena.put(arrived.request, memoryview(frame))
            handle = block.handle(item.pixels.shape, item.pixels.dtype)
            items.append(msgspec.structs.replace(item, pixels=handle))
        self.arena.dispatch(arrived.request, range(self.size))
        return msgspec.structs.replace(arrived, items=tuple(items))

    def abort(self, request: str) -> None:
        self.tell(Abort(request))

    def pump(self, timeout_s: float) -> bool:
        """Takes in one event about a request, and snapshots before it; False if none came in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            if not self._events.poll(max(0, round((deadline - time.monotonic()) * 1000))):
                return False
            event = _decode(split(self._events.recv_multipart(copy=False))[0])
            if isinstance(event, Snapshot):
                self.snapshots[event.rank] = event
            elif isinstance(event, Returned):
                self.arena.returned(event.request, event.rank)
            else:
                break
        if isinstance(event, RanksReady):
            raise AssertionError("the ranks said ready twice")
        result = self.results[event.request]
        if isinstance(event, Verified):
            result.digest = event.digest
            return True
        assert not result.ended, f"an event after the last word on {event.request}: {event}"
        if isinstance(event, Tokens):
            result.tokens.extend(event.tokens)
            result.finish = event.finish
        elif isinstance(event, Rejected):
            result.rejected, result.rank = event.reason, event.rank
        if result.ended:
            self.arena.end(event.request)
        return True

    def wait(self, *requests: str, digests: bool = True, timeout_s: float = ANSWER_S) -> list[Result]:
        """Until each of them has ended (and, if finished, is verified). A hang is a failed test."""
        deadline = time.monotonic() + timeout_s
        waiting = list(requests)
        while waiting:
            self.processes.check()
            self.pump(0.2)
            waiting = [
                request
                for request in waiting
                if not (result := self.results[request]).ended
                or (digests and result.finish in ("stop", "length") and result.digest is None)
            ]
            assert time.monotonic() < deadline, f"no end of {waiting} in {timeout_s} s"
        return [self.results[request] for request in requests]

    def stop(self) -> bool:
        """Orderly; True if every rank left in time."""
        self.tell(Stop())
        return self.processes.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self.stop(), "the ranks did not leave after Stop"
        finally:
            self.close()

    def close(self) -> None:
        """At once, whatever the ranks are doing."""
        self.processes.kill()
        self._context.destroy(linger=0)
        self.arena.close()
        for endpoint in self._endpoints:
            endpoint.close()
