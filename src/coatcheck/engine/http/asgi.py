"""One HTTP exchange at the level of ASGI: a bounded body in, JSON or events out, and a client who may leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope, Send

from coatcheck.engine.http.limits import InFlight
from coatcheck.engine.http.responses import Failure
from coatcheck.errors import BadRequest


class ClientGone(Exception):
    """The client closed the connection; nobody is there to answer."""


def header(scope: Scope, name: str) -> str | None:
    """The header's value; of several the list, as HTTP has it. None if there is none."""
    values = [value for key, value in scope["headers"] if key == name.lower().encode()]
    return b", ".join(values).decode("latin-1").strip() if values else None


async def read_body(scope: Scope, receive: Receive, limit: int, in_flight: InFlight | None = None) -> bytearray:
    """The body as it comes, counted into ``in_flight`` if there is one.

    Raises BadRequest (413) beyond ``limit`` bytes, ClientGone, Overloaded.
    """
    too_large = BadRequest(f"The body is larger than {limit} bytes", code="body_too_large")
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise too_large
        if in_flight is not None:
            in_flight.hold(len(body) + len(chunk))
        body += chunk
        if not message.get("more_body", False):
            return body


@asynccontextmanager
async def until_client_leaves(receive: Receive) -> AsyncIterator[None]:
    """Cancels what runs inside, and raises ClientGone instead, as soon as the client closes the connection.

    To be entered once the body has been read.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch(), name="coatcheck-disconnect")
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


class Reply:
    """The answer's side of an exchange: either one JSON body or a stream of events.

    ``headers`` go with it, whatever it is.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.headers: dict[str, str] = {}

    async def json(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """The whole answer."""
        await self._start(
            status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        )
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, data: bytes) -> None:
        """One event of a stream; the first one starts it."""
        if not self.started:
            # X-Accel-Buffering: nginx would hold events back otherwise.
            headers = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
            await self._start(200, {**headers, "X-Accel-Buffering": "no"})
        await self._send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def end(self) -> None:
        """After the last event."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, failure: Failure) -> None:
        """An error body; in a stream that has begun, an error event and the end."""
        if not self.started:
            await self.json(failure.status, failure.body, failure.headers)
        else:
            await self.event(failure.body)
            await self.end()

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self.started = True
        raw = [(name.lower().encode(), value.encode()) for name, value in (headers | self.headers).items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
