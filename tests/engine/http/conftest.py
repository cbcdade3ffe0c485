"""A real HTTP server with real workers, for the tests of the front end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from coatcheck.engine.http.config import FrontendConfig
from tests.support.front_end import ANSWER, RunningServer


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops, since uvicorn takes uvloop where it is installed."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="session")
def running(model_dir: Path) -> Iterator[RunningServer]:
    config = FrontendConfig(
        model_dir=model_dir,
        model_name="coatcheck-tiny",
        workers=1,
        max_images=3,
        max_body_bytes=4 << 20,
        max_waiting=4,
        max_pixels=4_000_000,
        default_temperature=1.0,
        arena_bytes=8 << 20,
        arena_wait_s=0.5,
        strategy_header=True,
    )
    server = RunningServer(config)
    yield server
    server.close()


@pytest.fixture
def server(running: RunningServer) -> RunningServer:
    """The shared server, with the fake entry rank back at its usual answer."""
    running.entry.script = running.entry.say(ANSWER)
    return running


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made
