"""Real SGLang servers, started when first needed and kept between tests: one takes half a minute to start."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.sglang.questions import Answers, Client, ask_one_by_one, questions
from benchmarks.sglang.server import PEERS, SglangServer
from benchmarks.support.questions import data_url
from training.scenes import encode_png

# By name: whether it has the plugin.
SERVERS = {"without": False, "with": True}
WORKERS_S = 90.0  # on two busy cores
END_S = 20.0  # SGLang looks every 4 s whether a client is still there


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--peers", type=Path, default=PEERS, help="Where 'make test-sglang' has put SGLang's environment.")


async def until_idle(opened: Client) -> None:
    """An answer may come a moment before its scheduler counts it as ended."""
    deadline = time.monotonic() + END_S
    while await opened.busy():
        assert time.monotonic() < deadline, f"still busy after {END_S} s"
        await asyncio.sleep(0.1)


class Page:
    """What a server's ``/metrics`` says."""

    def __init__(self, url: str) -> None:
        families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=10).raise_for_status().text)
        self._values = {
            (one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples
        }
        self.names = {name for name, _ in self._values}

    def value(self, name: str, **labels: str) -> float:
        """0 where there is no such sample."""
        return self._values.get((name, frozenset(labels.items())), 0.0)

    @property
    def ours(self) -> dict[Any, float]:
        """The plugin's samples."""
        return {sample: value for sample, value in self._values.items() if sample[0].startswith("coatcheck")}

    @property
    def whole(self) -> float:
        """Requests whose images workers of ours have processed."""
        return self.value("coatcheck_sglang_processed_total", how="whole")

    @property
    def carried(self) -> float:
        """Requests whose inputs went the plugin's way."""
        return self.value("coatcheck_sglang_requests_total", way="carried")


def until_whole(server: SglangServer) -> None:
    """Workers process images. They are started with the first request, and import torch and transformers."""
    body = {
        "text": "<|vision_start|><|image_pad|><|vision_end|>",
        "image_data": [data_url(encode_png(Image.new("RGB", (56, 56))))],
        "sampling_params": {"max_new_tokens": 1},
    }
    deadline, before = time.monotonic() + WORKERS_S, Page(server.url).whole
    while Page(server.url).whole == before:
        assert time.monotonic() < deadline, server.log
        httpx.post(f"{server.url}/generate", json=body, timeout=WORKERS_S).raise_for_status()
        time.sleep(0.5)


class Servers:
    """One at a time runs, as there are few cores."""

    def __init__(self, peers: Path) -> None:
        self._peers = peers
        self._current: tuple[str, SglangServer] | None = None
        self._answers: dict[str, Answers] = {}

    def running(self, name: str) -> SglangServer:
        """The server of that name in ``SERVERS``."""
        if self._current is not None and self._current[0] == name:
            return self._current[1]
        self.close()
        server = SglangServer("--enable-metrics", plugin=SERVERS[name], peers=self._peers)
        self._current = name, server.__enter__()
        if SERVERS[name]:
            until_whole(server)
        return server

    async def answers(self, name: str) -> Answers:
        """What it says to all ``questions()``, which are asked once."""
        if name not in self._answers:
            with self.carrying(name) as server:
                self._answers[name] = await ask_one_by_one(server.url, questions())
        return self._answers[name]

    @contextlib.contextmanager
    def carrying(self, name: str) -> Iterator[SglangServer]:
        """The server, of which the plugin, where there is one, processes and carries requests meanwhile."""
        server = self.running(name)
        before = Page(server.url)
        yield server
        after = Page(server.url)
        assert (after.carried > before.carried) == (after.whole > before.whole) == SERVERS[name]

    def close(self) -> None:
        """Idempotent."""
        if self._current is not None:
            server, self._current = self._current[1], None
            server.__exit__(None, None, None)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """All of them."""
    made = Servers(request.config.getoption("--peers"))
    yield made
    made.close()


@pytest.fixture(scope="session", params=SERVERS)
def name(request: pytest.FixtureRequest) -> str:
    """Each of them: in the session's scope, so that one's tests run together."""
    value: str = request.param
    return value


@pytest.fixture
def server(servers: Servers, name: str) -> Iterator[SglangServer]:
    with servers.carrying(name) as running:
        yield running


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
