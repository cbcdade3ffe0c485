"""A real HTTP server with real workers, and in place of the ranks a peer that says what a test wants."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import uvicorn
import zmq
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from coatcheck import wire
from coatcheck.arena.handle import PixelForm
from coatcheck.arena.queue import Want
from coatcheck.engine.chat.handler import ChatHandler
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.front_end import FrontEnd
from coatcheck.engine.records import Abort, Arrived, FromRanks, Processed, RanksReady, Stop, ToEntry, Tokens
from coatcheck.intake.records import Grant, Item, Job, Need, Slot, Stored, Tensor, check_frames
from coatcheck.intake.writer import PayloadWriter

ANSWER = "A red circle, ½ größer – 红色 🎉."
START_LIMIT_S = 90  # workers import torch and transformers, on shared cores


class FakeEntry:
    """Stands in for the entry rank, in a thread. ``script`` turns a request into the records to answer it with."""

    def __init__(self, tokenizer: Tokenizer, kv_tokens: int = 65536) -> None:
        self.tokenizer = tokenizer
        self.kv_tokens = kv_tokens
        self.unavailable: tuple[tuple[str, str], ...] = ()
        self.requests: list[tuple[Arrived, list[bytes]]] = []
        self.aborted: list[str] = []
        self.stopped = False
        self.script: Callable[[Arrived], Iterable[FromRanks]] = self.say(ANSWER)
        self._thread: threading.Thread | None = None
        self._leave = threading.Event()

    def say(self, text: str, *, finish: bool = True, each: int = 1) -> Callable[[Arrived], Iterable[FromRanks]]:
        """A script that answers with ``text``, ``each`` tokens at a time; without ``finish`` it never ends."""
        ids = self.tokenizer.encode(text).ids

        def script(arrived: Arrived) -> Iterable[FromRanks]:
            for at in range(0, len(ids), each):
                yield Tokens(request=arrived.request, tokens=tuple(ids[at : at + each]))
            if finish:
                yield Tokens(request=arrived.request, tokens=arrived.sampling.stop_ids[:1], finish="stop")

        return script

    def start(self, to_entry: str, from_entry: str) -> None:
        self._thread = threading.Thread(target=self._run, args=(to_entry, from_entry), name="fake-entry")
        self._thread.start()

    def _run(self, to_entry: str, from_entry: str) -> None:
        decode = wire.Decoder[ToEntry](ToEntry)
        with zmq.Context() as context, context.socket(zmq.PULL) as pull, context.socket(zmq.PUSH) as push:
            pull.connect(to_entry)
            push.connect(from_entry)
            push.setsockopt(zmq.LINGER, 0)
            push.send(wire.encode(RanksReady(1, (1,), 8, self.kv_tokens, self.unavailable)))
            while not self._leave.is_set():
                if not pull.poll(20):
                    continue
                frame, *payloads = pull.recv_multipart()
                match decode(frame):
                    case Arrived() as arrived:
                        check_frames(arrived.items, payloads)
                        self.requests.append((arrived, payloads))
                        for record in self.script(arrived):
                            push.send(wire.encode(record))
                    case Abort(request=request):
                        self.aborted.append(request)
                    case Stop():
                        self.stopped = True

    def close(self) -> None:
        self._leave.set()
        if self._thread is not None:
            self._thread.join(5)

    @property
    def last(self) -> Arrived:
        return self.requests[-1][0]

    def prompt(self, at: int = -1) -> str:
        """The prompt of a request as text, special tokens shown."""
        return self.tokenizer.decode(list(self.requests[at][0].ids), skip_special_tokens=False)


class RunningServer:
    """uvicorn with a front end and a fake entry rank, in a thread with its own event loop."""

    def __init__(self, config: FrontendConfig) -> None:
        self.config = config
        self.entry = FakeEntry(Tokenizer.from_file(str(config.model_dir / "tokenizer.json")))
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="server")
        self._thread.start()
        if not self._up.wait(START_LIMIT_S) or self._failure is not None:
            raise RuntimeError(f"the server did not start: {self._failure!r}")

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            self._up.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            self.port: int = bound.getsockname()[1]
            async with FrontEnd(self.config) as front_end:
                self.front_end = front_end
                self.entry.start(front_end.link.to_entry, front_end.link.from_entry)
                await front_end.ready(START_LIMIT_S)
                options = uvicorn.Config(
                    front_end.app, lifespan="off", log_level="warning", timeout_graceful_shutdown=2
                )
                self._server = uvicorn.Server(options)
                self._up.set()
                await self._server.serve(sockets=[bound])
        self.entry.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=15)

    def close(self) -> None:
        if hasattr(self, "_server"):
            self._server.should_exit = True
        self._thread.join(15)
        self.entry.close()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def image_part(data: bytes | str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data if isinstance(data, str) else data_url(data)}}


@dataclass(frozen=True)
class Made:
    """What a handler makes of a body."""

    processed: Processed
    items: tuple[Item, ...]
    pixels: list[NDArray[Any]]  # of each item

    @property
    def ids(self) -> tuple[int, ...]:
        return self.processed.ids


class Grants:
    """A pool that grants what a test wants, and keeps what was asked for."""

    def __init__(self, *slots: Slot | Stored) -> None:
        self.slots = slots
        self.wants: tuple[Want, ...] = ()

    def ask(self, need: Need) -> Grant:
        self.wants = need.wants
        return Grant(need.job, self.slots)


def chat_handler(model_dir: Path, **options: Any) -> ChatHandler:
    return ChatHandler(
        wire.to_argument(FrontendConfig(model_dir=model_dir, **{"model_name": "coatcheck-tiny", **options}))
    )


def process(handler: ChatHandler, body: bytes, form: PixelForm = "float32", pool: Grants | None = None) -> Made:
    """One job. ``pool``: asked for room; without slots the payloads go beside the answer."""
    writer = PayloadWriter(Job(1, form, arena=pool is not None), pool or Grants(), memoryview(b""))
    items, result = handler.handle([body], writer)
    processed = wire.Decoder[Processed](Processed)(result)
    given = [slot.item.digest for slot in pool.slots if isinstance(slot, Stored)] if pool is not None else []
    beside = [item for item in items if isinstance(item.pixels, Tensor) and item.digest not in given]
    pixels = [np.frombuffer(f, form).reshape(i.pixels.shape) for i, f in zip(beside, writer.frames, strict=True)]
    return Made(processed, items, pixels)


def chat_body(*parts: dict[str, Any] | str, **more: Any) -> dict[str, Any]:
    """A request's body: one user message of these parts, strings being text."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"model": "coatcheck-tiny", "messages": [{"role": "user", "content": content}], **more}


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    """Fails the test if ``condition`` does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
