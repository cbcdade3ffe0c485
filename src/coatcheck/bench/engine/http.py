"""A whole server, asked over HTTP as clients ask it: images as JPEG, answers streamed."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from coatcheck.bench.engine.config import BenchConfig
from coatcheck.bench.engine.driver import Heard
from coatcheck.bench.engine.workload import MODEL_NAME, TensorWorkload, fresh
from coatcheck.bench.support.server import ServerProcess

REQUEST_S = 300.0  # of a closed loop: includes waiting for all that are under way


class HttpDriver:
    """A :class:`coatcheck.bench.engine.driver.Driver`. ``async with`` starts the server and, in the end, stops it."""

    def __init__(
        self, config: BenchConfig, bodies: Sequence[bytes], workload: TensorWorkload, trace: Path, verify: bool
    ) -> None:
        """``workload``: tells the payloads' sizes."""
        self._bodies = bodies
        self._workload = workload
        self._verify = verify
        self._numbers = itertools.count(len(bodies))
        self._prompt_tokens = 0
        self._server = ServerProcess(*_options(config, max(map(len, bodies)), trace, verify))

    def payload_bytes(self, strategy: str) -> int:
        """See :class:`coatcheck.bench.engine.driver.Driver`."""
        return self._workload.payload_bytes(strategy)

    @property
    def prompt_tokens(self) -> int:
        """See :class:`coatcheck.bench.engine.driver.Driver`."""
        return self._prompt_tokens

    def pids(self) -> dict[str, int]:
        """See :class:`coatcheck.bench.engine.driver.Driver`."""
        front_end, *children = self._server.family()
        names = {"front-end": front_end.pid}
        for child in children:
            try:
                name = child.name().removeprefix("coatcheck-")
            except psutil.NoSuchProcess:
                continue
            number = sum(known.startswith("worker") for known in names)
            names[name if name.startswith("rank") else f"worker{number}"] = child.pid
        return names

    async def ask(self, index: int, strategy: str) -> Heard:
        """See :class:`coatcheck.bench.engine.driver.Driver`."""
        headers = {"Content-Type": "application/json", "X-Coatcheck-Strategy": strategy}
        # Verified under every strategy: the same content. Measured: content that no strategy has left in the arena.
        body = fresh(self._bodies[index], index if self._verify else next(self._numbers))
        heard = Heard(sent=time.monotonic())
        asked = self._client.stream("POST", "/chat/completions", content=body, headers=headers)
        try:
            async with asyncio.timeout(REQUEST_S), asked as answer:
                if answer.status_code != 200:
                    body = json.loads(await answer.aread())
                    heard.error = f"{answer.status_code}: {body['error']['message']}"
                elif answer.headers.get("X-Coatcheck-Strategy") != strategy:
                    heard.error = f"served by {answer.headers.get('X-Coatcheck-Strategy')}"
                else:
                    await self._listen(answer, heard)
        except TimeoutError:
            heard.error = f"no end within {REQUEST_S:g} s"
        except httpx.HTTPError as error:
            heard.error = f"{type(error).__name__}: {error}"
        return heard

    async def _listen(self, answer: httpx.Response, heard: Heard) -> None:
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in event:
                heard.error = event["error"]["message"]
                return
            heard.name = event["id"].removeprefix("chatcmpl-")
            if event.get("usage"):
                self._prompt_tokens = event["usage"]["prompt_tokens"]
            for choice in event["choices"]:
                if choice["delta"].get("content"):
                    heard.times.append(time.monotonic())
                    heard.said += choice["delta"]["content"]

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._server.__enter__)
        # Straight to the server, whatever proxy the environment names; no limit but our own on connections and time.
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=self._server.url, timeout=None, limits=limits, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()
        await asyncio.to_thread(self._server.__exit__, kind, error, trace)


def _options(config: BenchConfig, body_bytes: int, trace: Path, verify: bool) -> list[str]:
    options = {
        "--model": config.model,
        "--model-name": MODEL_NAME,
        "--tp": config.tp,
        "--max-body-mib": body_bytes // 2**20 + 1,
        **({} if config.video else {"--max-pixels": config.size[0] * config.size[1]}),
        "--max-images": max(1, config.images_per_request),
        "--max-waiting": config.concurrency,
        "--request-timeout": REQUEST_S,
        "--ready-timeout": REQUEST_S,
        "--device": config.engine.device,
        "--max-running": config.engine.max_running,
        "--kv-tokens": config.engine.kv_tokens,
        "--chunk-tokens": config.engine.chunk_tokens,
        "--encode-patches": config.engine.encode_patches,
        "--embedding-cache-mib": config.engine.embedding_cache_bytes >> 20,
        "--runner": config.engine.runner,
        "--step-ms": config.engine.step_ms,
        "--pixels": config.pixels,
        "--arena-mib": config.arena_mib,
        "--arena-wait": REQUEST_S,
        "--trace": trace,
    }
    flags = ["--strategy-header", *(["--verify"] if verify else [])]
    return [*(str(word) for option in options.items() for word in option), *flags]
