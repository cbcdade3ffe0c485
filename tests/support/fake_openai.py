"""An OpenAI-compatible server of known delays, in a thread: what a load's figures can be checked against."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

START_S = 10.0


@dataclass
class Behaviour:
    """May be changed while the server runs."""

    first_s: float = 0.02  # until an answer's first token
    gap_s: float = 0.005  # until each further one
    text_gap_s: float = 0.01  # the same of a request without a picture
    ends_after: int = 10**6  # tokens, unless ignore_eos is honoured
    honours_ignore_eos: bool = True
    refuses: tuple[str, ...] = ()  # fields that get a 400
    usage: bool = True
    vision: bool = True
    health: int = 200
    health_s: float = 0.0
    fails_every: int = 0  # image requests: each so many-th gets a 500
    breaks_off: bool = False  # an answer to a picture ends without an end
    hangs: bool = False  # nothing is answered
    key: str = ""  # that clients have to give
    models: tuple[str, ...] = ("fake",)


@dataclass
class FakeServer:
    """Context manager. ``bodies``: of the image requests that came; ``under_way``: requests that are open."""

    behaviour: Behaviour = field(default_factory=Behaviour)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    under_way: int = 0
    images: int = 0
    keeps: bool = True  # the bodies
    url: str = ""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="fake-openai")
        self._thread.start()
        assert self._up.wait(START_S)
        return self

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._up.set()
        await self._stop.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def die(self) -> None:
        """Every connection breaks, and nobody listens any more. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(START_S)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = {name.lower(): value.strip() for name, _, value in map(_split, head.splitlines()[1:])}
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                self.under_way += 1
                answer = asyncio.create_task(self._answer(head.split()[1], fields, body, writer))
                gone = asyncio.create_task(reader.read(1))  # this client sends nothing more before the answer is there
                try:
                    await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not answer.done():
                        return
                    await answer
                finally:
                    self.under_way -= 1
                    answer.cancel()
                    gone.cancel()
                    await asyncio.gather(answer, gone, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, path: str, fields: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        how = self.behaviour
        if how.hangs:
            await asyncio.Event().wait()
        if how.key and fields.get("authorization") != f"Bearer {how.key}":
            _json(writer, 401, {"error": {"message": "no key"}})
        elif path == "/health":
            await asyncio.sleep(how.health_s)
            _json(writer, how.health, {})
        elif path == "/v1/models":
            _json(writer, 200, {"object": "list", "data": [{"id": name} for name in how.models]})
        else:
            await self._chat(json.loads(body), writer)

    async def _chat(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        how = self.behaviour
        pictured = not isinstance(asked["messages"][0]["content"], str)
        if pictured:
            if self.keeps:
                self.bodies.append(asked)
            self.images += 1
        refused = [name for name in how.refuses if name in asked]
        if refused or (pictured and not how.vision):
            why = f"{refused[0]} is not supported" if refused else "fake is not a multimodal model"
            return _json(writer, 400, {"error": {"message": why}})
        if pictured and how.fails_every and self.images % how.fails_every == 0:
            return _json(writer, 500, {"object": "error", "message": "out of\nmemory"})
        goes_on = how.honours_ignore_eos and asked.get("ignore_eos")
        count = asked["max_tokens"] if goes_on else min(asked["max_tokens"], how.ends_after)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        _event(writer, {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        await asyncio.sleep(how.first_s)
        for at in range(count):
            if at:
                await asyncio.sleep(how.gap_s if pictured else how.text_gap_s)
            _event(writer, {"choices": [{"delta": {"content": "word "}, "finish_reason": None}]})
        if pictured and how.breaks_off:
            writer.write(b"0\r\n\r\n")
            return None
        _event(writer, {"choices": [{"delta": {}, "finish_reason": "length"}]})
        if how.usage and asked.get("stream_options", {}).get("include_usage"):
            _event(writer, {"choices": [], "usage": {"completion_tokens": count}})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        return None


def _split(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def _json(writer: asyncio.StreamWriter, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    writer.write(
        f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


def _event(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    if writer.transport.is_closing():
        raise ConnectionError("the client has left")
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
