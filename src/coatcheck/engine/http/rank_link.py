"""The link to the entry rank: requests out in order, tokens back to whoever waits for them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq
import zmq.asyncio

from coatcheck import wire
from coatcheck.delivery.records import Returned
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
from coatcheck.engine.strategies.table import FALLBACK
from coatcheck.errors import Overloaded, RankLost, RequestRejected, WireError
from coatcheck.sockets import PrivateEndpoint

log = logging.getLogger("coatcheck.frontend")

HIGH_WATER = 16  # messages under way in ZeroMQ; more wait here, where an abort can still take them back
LINGER_MS = 200  # for the last messages after close()
GONE_S = 0.5  # for what a lost entry rank had said before


@dataclass(frozen=True)
class LinkStatistics:
    """A snapshot of the link."""

    open: int  # requests submitted and not ended
    queued: int  # messages that the entry rank's queue has no room for yet


class TokenStream:
    """What the ranks say to one request: iterate over it; ``aclose`` before the last word aborts the request."""

    def __init__(self, link: RankLink, request: str) -> None:
        self._link = link
        self._request = request
        self._heard: asyncio.Queue[Tokens | Exception] = asyncio.Queue()  # bounded by the request's max_tokens
        self._ended = False

    def hear(self, word: Tokens | Exception) -> None:
        """Called by the link."""
        self._heard.put_nowait(word)

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> Tokens:
        """Raises RequestRejected or RankLost; StopAsyncIteration after the Tokens whose ``finish`` is set."""
        if self._ended:
            raise StopAsyncIteration
        word = await self._heard.get()
        if isinstance(word, Exception):
            self._ended = True
            raise word
        self._ended = word.finish is not None
        return word

    async def aclose(self) -> None:
        """Nobody waits any more. Idempotent."""
        self._ended = True
        self._link.forget(self._request)


class RankLink:
    """Binds a PUSH socket (to the entry rank) and a PULL socket (from it).

    Without addresses both are private to this user and host, and ``to_entry`` and ``from_entry`` say where the entry
    rank connects. Ranks that something else starts need addresses known beforehand, such as ``tcp://127.0.0.1:5555``.
    """

    def __init__(
        self,
        *,
        queue: int = 256,
        to_entry: str | None = None,
        from_entry: str | None = None,
        on_returned: Callable[[str, int | None], None] = lambda request, rank: None,
    ) -> None:
        """``on_returned(request, rank)``: the rank will not read the request's blocks any more; None: none ever did."""
        self.to_entry = to_entry or ""  # filled in by start()
        self.from_entry = from_entry or ""
        self._queue = queue
        self._on_returned = on_returned
        self._answers: dict[str, TokenStream] = {}
        self._outbox: deque[tuple[ToEntry, Sequence[wire.Buffer]]] = deque()
        self._more = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._ranks: RanksReady | None = None
        self._lost: str | None = None
        self._settled = asyncio.Event()  # ranks are ready, or lost
        self._snapshots: dict[int, Snapshot] = {}  # by rank, the newest
        self._tasks: list[asyncio.Task[None]] = []
        self._endpoints: list[PrivateEndpoint] = []
        self._closed = False
        self._stopping = False

    async def start(self) -> None:
        """Binds both sockets."""
        self._context = zmq.asyncio.Context()
        self._out = self._context.socket(zmq.PUSH)
        self._in = self._context.socket(zmq.PULL)
        self._out.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self._gone = self._in.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self.to_entry = self._bind(self._out, self.to_entry)
        self.from_entry = self._bind(self._in, self.from_entry)
        self._tasks = [
            asyncio.create_task(self._send(), name="coatcheck-to-entry"),
            asyncio.create_task(self._receive(), name="coatcheck-from-entry"),
            asyncio.create_task(self._watch(), name="coatcheck-entry-gone"),
        ]

    def _bind(self, socket: zmq.asyncio.Socket, address: str) -> str:
        socket.setsockopt(zmq.LINGER, 0)
        if address:
            socket.bind(address)
            return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))  # with the port, where it was to be any free one
        endpoint = PrivateEndpoint(socket)
        self._endpoints.append(endpoint)
        return endpoint.address

    async def ready(self, timeout_s: float) -> RanksReady:
        """Waits until every rank can execute plans. Raises RankLost, or TimeoutError after that time."""
        async with asyncio.timeout(timeout_s):
            await self._settled.wait()
        if self._lost is not None or self._ranks is None:
            raise RankLost(self._lost or "no rank")
        return self._ranks

    @property
    def ranks(self) -> RanksReady | None:
        """What the ranks said of themselves; None before that."""
        return self._ranks

    @property
    def loss(self) -> str | None:
        """Why the ranks are lost; None while they are not."""
        return self._lost

    def submit(self, arrived: Arrived, frames: Sequence[wire.Buffer]) -> TokenStream:
        """Hands a request on; entry sees requests in the order of these calls. The caller must not change ``frames``.

        Raises Overloaded if too many messages wait for the entry rank, RankLost if a rank is lost. What goes no
        further is given back at once.
        """
        if self._lost is not None:
            raise RankLost(self._lost)
        if len(self._outbox) >= self._queue:
            self._on_returned(arrived.request, None)
            raise Overloaded("The ranks take requests more slowly than they come")
        if arrived.request in self._answers:
            raise ValueError(f"request {arrived.request} is under way already")
        answer = self._answers[arrived.request] = TokenStream(self, arrived.request)
        self._post(arrived, frames)
        return answer

    def forget(self, request: str) -> None:
        """Aborts ``request`` unless it has ended: takes it out of the queue, or tells the entry rank."""
        if self._answers.pop(request, None) is None:
            return
        for at, (record, _) in enumerate(self._outbox):
            if isinstance(record, Arrived) and record.request == request:
                del self._outbox[at]
                self._on_returned(request, None)
                return
        self._post(Abort(request=request))

    def stop(self) -> None:
        """Tells the entry rank to end what is left and to leave its step loop."""
        self._stopping = True
        self._post(Stop())

    def lost(self, reason: str) -> None:
        """For the launcher: a rank's process ended. Every open request raises RankLost, and so does every later one."""
        if self._lost is None:
            self._lost = reason
            self._settled.set()
            self._outbox.clear()
            answers, self._answers = self._answers, {}
            for answer in answers.values():
                answer.hear(RankLost(reason))

    def snapshots(self) -> list[Snapshot]:
        """What each rank last said of its metrics, by rank."""
        return [self._snapshots[rank] for rank in sorted(self._snapshots)]

    def statistics(self) -> LinkStatistics:
        """A snapshot."""
        return LinkStatistics(open=len(self._answers), queued=len(self._outbox))

    async def flushed(self, timeout_s: float) -> bool:
        """Waits until ZeroMQ has taken every message. False after that time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._sent.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Closes both sockets; open requests raise RankLost. Idempotent."""
        if self._closed or not self._tasks:
            return
        self._closed = True
        self.lost("The server is shut down")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for endpoint in self._endpoints:
            endpoint.close()
        self._out.close(linger=LINGER_MS)  # Stop may still be in its buffer
        self._in.disable_monitor()
        self._gone.close(linger=0)
        self._in.close(linger=0)
        await asyncio.to_thread(self._context.term)

    def _post(self, record: ToEntry, frames: Sequence[wire.Buffer] = ()) -> None:
        if self._lost is None and not self._closed:
            self._outbox.append((record, frames))
            self._more.set()
            self._sent.clear()

    async def _send(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            while self._outbox:
                record, frames = self._outbox.popleft()
                await self._out.send_multipart([wire.encode(record), *frames], copy=not frames)
                del record, frames  # or the last payload would stay until the next message
            self._sent.set()

    async def _receive(self) -> None:
        decode = wire.Decoder[FromRanks](FromRanks)
        while True:
            frame = (await self._in.recv_multipart())[0]
            try:
                self._hear(decode(frame))
            except WireError as error:
                log.error("the entry rank sent what is no record: %s", error)
            except Exception:  # one bad record must not silence all requests
                log.exception("a record of the entry rank could not be handled")

    async def _watch(self) -> None:
        """Whoever started the ranks: when one's connection ends, they are lost."""
        await self._gone.recv_multipart()
        await asyncio.sleep(GONE_S)
        if not self._stopping:
            self.lost("a rank is gone")

    def _hear(self, record: FromRanks) -> None:
        if isinstance(record, Snapshot):
            self._snapshots[record.rank] = record
        elif isinstance(record, Returned):
            self._on_returned(record.request, record.rank)
        elif isinstance(record, RanksReady):
            self._ranks = record
            for name, reason in record.unavailable:
                log.warning("strategy %s is unavailable, requests for it fall back to %s: %s", name, FALLBACK, reason)
            self._settled.set()
        elif isinstance(record, Verified):
            pass  # no client asked for the digest; it stands in the entry rank's trace
        elif isinstance(record, Rejected):
            if answer := self._answers.pop(record.request, None):
                where = "" if record.rank is None else f" (rank {record.rank})"
                answer.hear(RequestRejected(f"Request {record.request} was rejected{where}: {record.reason}"))
        elif answer := self._answers.get(record.request):
            if record.finish is not None:
                del self._answers[record.request]
            answer.hear(record)
