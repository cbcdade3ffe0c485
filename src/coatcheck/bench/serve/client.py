"""One streamed chat completion, and GET, over aiohttp: what came when.

aiohttp, since httpx takes four times its CPU time for the same events, and the client often shares the server's cores.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from coatcheck.bench.serve.bodies import Body

API_KEY = "COATCHECK_API_KEY"  # environment: sent as bearer token, where it is set
LONGEST_REASON = 200  # characters
LONGEST_ANSWER = 65_536  # bytes of an error's body that are read
KEEP_ALIVE_S = 2.0  # servers close idle connections after 5: a request must not meet that


class Delta(msgspec.Struct):
    """Text, by any of the names in use."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct):
    """Of one event."""

    delta: Delta | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    """As the server counts."""

    completion_tokens: int = 0


class Event(msgspec.Struct):
    """What we read of one server-sent event."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


@dataclass
class Answer:
    """Times are monotonic seconds. Without an ``error`` the answer is complete."""

    sent: float
    first: float | None = None  # the first text
    last: float | None = None  # the latest text
    ended: float = 0.0
    chunks: int = 0  # with text
    usage: int | None = None  # tokens, where the server says so
    finished: bool = False
    error: str = ""

    @property
    def tokens(self) -> int:
        """As the server counts, else the chunks with text."""
        return self.chunks if self.usage is None else self.usage


def session() -> aiohttp.ClientSession:
    """Straight to the server, whatever proxy the environment names; no limit of connections or time."""
    headers = {"Accept-Encoding": "identity"}
    if key := os.environ.get(API_KEY):
        headers["Authorization"] = f"Bearer {key}"
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    return aiohttp.ClientSession(
        connector=connector, headers=headers, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**20
    )


async def ask(
    http: aiohttp.ClientSession,
    root: str,
    body: Body,
    timeout_s: float,
    heard: Callable[[float], None] | None = None,
    answer: Answer | None = None,
) -> Answer:
    """Never raises for what the server does: see ``Answer.error``. Calls ``heard`` at each text, with the time.

    ``answer`` is filled as the answer comes, for who wants to look at it meanwhile.
    """
    found = answer or Answer(time.monotonic())
    headers = {"Content-Type": "application/json", "Content-Length": str(sum(map(len, body)))}
    try:
        async with (
            asyncio.timeout(timeout_s),
            http.post(f"{root}/v1/chat/completions", data=_pieces(body), headers=headers) as response,
        ):
            if response.status != 200:
                found.error = f"{response.status}: {message(await response.content.read(LONGEST_ANSWER))}"
            else:
                await _listen(response, found, heard)
    except TimeoutError:
        found.error = f"no end within {timeout_s:g} s"
    except (aiohttp.ClientError, OSError) as error:
        found.error = reason(error)
    except msgspec.DecodeError as error:
        found.error = f"an event that is not OpenAI's: {error}"[:LONGEST_REASON]
    found.ended = time.monotonic()
    return found


async def get(http: aiohttp.ClientSession, url: str, timeout_s: float) -> tuple[int, bytes, str]:
    """Status, body and, where there is neither, why."""
    try:
        async with asyncio.timeout(timeout_s), http.get(url) as response:
            return response.status, await response.read(), ""
    except TimeoutError:
        return 0, b"", f"no answer within {timeout_s:g} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return 0, b"", reason(error)


def reason(error: Exception) -> str:
    """In one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON]


async def _pieces(body: Body) -> AsyncIterator[bytes]:
    for piece in body:
        yield piece


async def _listen(response: aiohttp.ClientResponse, found: Answer, heard: Callable[[float], None] | None) -> None:
    rest = b""
    async for data in response.content.iter_any():
        now = time.monotonic()
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                text = line[5:].strip()
                if text == b"[DONE]":
                    found.finished = True
                elif _take(_events.decode(text), found, now) and heard is not None:
                    heard(now)
    if not found.finished and not found.error:
        found.error = "the answer broke off" if found.chunks else "the answer is no stream of events, or an empty one"


def _take(event: Event, found: Answer, now: float) -> bool:
    """Whether it brought text."""
    if event.error is not None:
        found.error = f"in the answer: {_described(event.error)}"
    if event.usage is not None:
        found.usage = event.usage.completion_tokens
    brought = False
    for choice in event.choices:
        found.finished |= choice.finish_reason is not None
        delta = choice.delta
        if delta is not None and (delta.content or delta.reasoning_content or delta.reasoning):
            brought = True
    if brought:
        found.first = now if found.first is None else found.first
        found.last = now
        found.chunks += 1
    return brought


_events = msgspec.json.Decoder(Event)


def message(body: bytes) -> str:
    """The server's own words in the body of a refusal."""
    try:
        return _described(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _described(body.decode(errors="replace"))


def _described(error: Any) -> str:
    for name in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(name):
            return _described(error[name])
    return " ".join(str(error).split())[:LONGEST_REASON]
