"""The ranks of a server, for tests of the plugin's arena: they say what a test wants, and prepare nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
import zmq
from blake3 import blake3

from coatcheck.arena import ArenaAddress, ArenaReader
from coatcheck.delivery.records import Ready, Returned
from coatcheck.integrations.sglang import codec
from coatcheck.integrations.sglang.arena_owner import RankAddress
from coatcheck.integrations.sglang.codec import pack, unpack
from coatcheck.integrations.sglang.records import (
    Alive,
    Attached,
    Failed,
    Goodbye,
    Hello,
    Probe,
    Ticket,
    Withdrawn,
    to_ranks,
)
from coatcheck.sockets import PrivateEndpoint
from coatcheck.wire import Record, encode

WAIT_S = 10.0


def until(done: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Waits for it."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Package:
    """What a request holds: tensors, and how often they were packed."""

    def __init__(self, *tensors: torch.Tensor, note: object = None, unhashed: int = 0) -> None:
        self.blocks: Sequence[torch.Tensor] = tensors
        self.unhashed = unhashed
        self._note = note
        self.packed = 0

    def check(self) -> None:
        """As the body."""
        self.body()

    def body(self) -> bytes:
        """See :class:`coatcheck.integrations.sglang.arena_owner.Parcel`."""
        self.packed += 1
        return pack([*self.blocks, self._note], self.blocks, self.blocks)


class Peer:
    """All ranks, on one thread. They attach, report ready and answer, until a test changes that."""

    def __init__(
        self,
        ranks: int = 2,
        pids: Sequence[int] | None = None,
        attach: Callable[[int], Attached | None] = Attached,
    ) -> None:
        """``pids``: of the processes that stand for them; this one, if None."""
        self.ranks = ranks
        self.attach = attach
        self.reports: Callable[[Ticket, int], Ready | Failed | None] = lambda ticket, rank: Ready(ticket.request, rank)
        self.answers: Callable[[Probe, int], Alive | None] = lambda probe, rank: Alive(probe.number, rank)
        self.told: list[list[Ticket | Withdrawn]] = [[] for _ in range(ranks)]
        self.probed: list[list[tuple[float, int]]] = [[] for _ in range(ranks)]
        self.arena: ArenaAddress
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._in = [self._context.socket(zmq.PULL) for _ in range(ranks)]
        self._endpoints = [PrivateEndpoint(socket) for socket in self._in]
        here = os.getpid()
        self.addresses = [
            RankAddress(endpoint.address, here if pids is None else pids[rank])
            for rank, endpoint in enumerate(self._endpoints)
        ]
        self._out: zmq.Socket[bytes] | None = None
        self._lock = threading.Lock()  # around it
        self._reader: ArenaReader | None = None
        self.dismissed = set[int]()  # ranks that have heard the last
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        poller = zmq.Poller()
        for told in self._in:
            poller.register(told, zmq.POLLIN)
        while not self._closing.is_set():
            for socket, _ in poller.poll(20):
                rank = self._in.index(socket)
                answer = self._take(to_ranks(socket.recv()), rank)
                if answer is not None:
                    self.say(answer)

    def _take(self, record: Hello | Ticket | Withdrawn | Probe | Goodbye, rank: int) -> Record | None:
        if isinstance(record, Hello):
            with self._lock:
                if self._out is None:
                    self.arena = record.arena
                    self._out = self._context.socket(zmq.PUSH)
                    self._out.connect(record.reports)
            return self.attach(rank)
        if isinstance(record, Goodbye):
            self.dismissed.add(rank)
            return None
        if isinstance(record, Probe):
            self.probed[rank].append((time.monotonic(), record.number))
            return self.answers(record, rank)
        self.told[rank].append(record)
        return self.reports(record, rank) if isinstance(record, Ticket) else None

    def say(self, *records: Record) -> None:
        """To the tokenizer's process."""
        self.send(*map(encode, records))

    def send(self, *frames: bytes) -> None:
        """The same, of whatever bytes."""
        with self._lock:
            assert self._out is not None
            for frame in frames:
                self._out.send(frame)

    def give_back(self, *tickets: Ticket) -> None:
        """Every rank has nothing over their blocks any more."""
        self.say(*(Returned(ticket.request, rank) for ticket in tickets for rank in range(self.ranks)))

    def tickets(self, rank: int = 0) -> list[Ticket]:
        """Those that it has been told."""
        return [record for record in self.told[rank] if isinstance(record, Ticket)]

    def until_told(self, count: int) -> None:
        """So many tickets, each rank."""
        until(lambda: all(len(self.tickets(rank)) == count for rank in range(self.ranks)))

    def told_all(self, *records: Ticket | Withdrawn) -> None:
        """Every rank has been told these, and nothing else."""
        until(lambda: all(told == [*records] for told in self.told))

    def read(self, ticket: Ticket) -> list[torch.Tensor]:
        """What a ticket leads to: copies of its tensors."""
        self._reader = self._reader or ArenaReader(self.arena)
        made: Iterable[torch.Tensor] = unpack(ticket.body, [self._reader.view(handle) for handle in ticket.handles])
        return [tensor.clone() for tensor in made if isinstance(tensor, torch.Tensor)]

    def close(self) -> None:
        """Idempotent."""
        self._closing.set()
        self._thread.join()
        for endpoint in self._endpoints:
            endpoint.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._context.destroy(linger=0)


class Hashes:
    """Counts the digests that the plugin's codec begins."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        patch.setattr(codec, "blake3", self._begin)

    def _begin(self, head: bytes) -> blake3:
        self.count += 1
        return blake3(head)
