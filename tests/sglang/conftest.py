"""Real SGLang servers, started when first needed and kept between tests: one takes half a minute to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.sglang_questions import Answers, ask_one_by_one, questions
from benchmarks.sglang_server import PEERS, SglangServer

# By name: whether it has the plugin.
SERVERS = {"without": False, "with": True}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--peers", type=Path, default=PEERS, help="Where 'make test-sglang' has put SGLang's environment.")


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
        server = SglangServer(plugin=SERVERS[name], peers=self._peers)
        self._current = name, server.__enter__()
        return server

    async def answers(self, name: str) -> Answers:
        """What it says to all ``questions()``, which are asked once."""
        if name not in self._answers:
            self._answers[name] = await ask_one_by_one(self.running(name).url, questions())
        return self._answers[name]

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
def server(servers: Servers, name: str) -> SglangServer:
    return servers.running(name)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
