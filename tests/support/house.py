"""A front end without worker processes, its application called directly, and a fake entry rank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from tokenizers import Tokenizer

from coatcheck import wire
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.rank_link import RankLink
from coatcheck.engine.http.routes import create_app
from coatcheck.engine.records import Processed, Sampling
from coatcheck.intake.placement import BESIDE, Policy
from coatcheck.intake.pool import Answer, WorkerPool
from coatcheck.intake.records import Done
from tests.support.front_end import FakeEntry, chat_body


class InstantPool(WorkerPool):
    """Every body is a fine request; its first word says what is to happen."""

    def __init__(self, config: FrontendConfig) -> None:
        super().__init__(config, "none:None", "")
        self.gate = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        return True

    async def process(self, *frames: wire.Buffer, policy: Policy = BESIDE) -> Answer:
        (body,) = frames
        if b"hang" in body:
            await asyncio.sleep(60)
        if b"gate" in body:
            await self.gate.wait()
        if b"bug" in body:
            raise ZeroDivisionError("a secret of the house")
        stream = b'"stream":true' in bytes(body).replace(b" ", b"")
        sampling = Sampling(max_tokens=100)
        processed = Processed((1, 2), sampling, stream=stream, include_usage=False, stop=())
        return Done(0, (), wire.encode(processed)), []


class House:
    """``http`` is a client of the application."""

    def __init__(self, app: FastAPI, pool: InstantPool, link: RankLink, entry: FakeEntry) -> None:
        self.app = app
        self.pool = pool
        self.link = link
        self.entry = entry
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://house")

    async def post(self, text: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=chat_body(text, **more), headers=headers)

    async def metrics(self) -> str:
        return (await self.http.get("/metrics")).text

    async def error(self, text: str = "Hi", **more: Any) -> tuple[int, str]:
        response = await self.post(text, **more)
        return response.status_code, response.json()["error"]["code"]

    async def until(self, requests: int) -> None:
        async with asyncio.timeout(5):
            while len(self.entry.requests) < requests:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)


@asynccontextmanager
async def house(
    model_dir: Path,
    *,
    ranks: bool = True,
    token: str | None = None,
    unavailable: tuple[tuple[str, str], ...] = (),
    **options: Any,
) -> AsyncIterator[House]:
    """``ranks``: whether they get ready; the rest as the front end has it."""
    config = FrontendConfig(model_dir=model_dir, model_name="coatcheck-tiny", **options)
    link = RankLink()
    await link.start()
    entry = FakeEntry(Tokenizer.from_file(str(model_dir / "tokenizer.json")))
    entry.unavailable = unavailable
    pool = InstantPool(config)
    made = House(create_app(config, pool, link, token), pool, link, entry)
    try:
        if ranks:
            entry.start(link.to_entry, link.from_entry)
            await link.ready(10)
        async with made.http:
            yield made
    finally:
        await asyncio.to_thread(entry.close)
        await link.close()
