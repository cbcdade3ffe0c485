"""A real SGLang server in a container whose limit on memory is below the size of the plugin's arena."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.sglang.questions import Client
from benchmarks.sglang.server import SglangServer
from tests.sglang.conftest import Servers
from tests.support.memory_limit import Limited, NoControlGroup, memory_limit
from training.evaluate import held_out, held_out_form

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
# SGLang with two ranks and the default model holds 3,000 MiB, and 1,000 more while it encodes a picture of 1024 x 1024.
LIMIT_MIB = 5120
ARENA_MIB = 8192


@pytest.fixture
def limited_server(request: pytest.FixtureRequest, servers: Servers) -> Iterator[tuple[SglangServer, Limited]]:
    """In a group of its own, ended at once."""
    servers.close()
    environment = {
        "COATCHECK_SGLANG_ARENA_MIB": str(ARENA_MIB),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
    }
    try:
        with memory_limit(LIMIT_MIB * MIB) as limited:
            server = SglangServer(
                environment=environment, peers=request.config.getoption("--peers"), within=limited.within
            )
            with server:
                yield server, limited
                server.kill()
    except NoControlGroup as reason:
        pytest.skip(f"no control group is to be had: {reason}")


async def test_an_arena_beyond_a_container_s_limit_costs_a_warning(
    limited_server: tuple[SglangServer, Limited],
) -> None:
    server, limited = limited_server
    async with Client(server.url) as opened:
        for asked in (*held_out(4, 31), *held_out_form("chat", 2, 31), *held_out_form("two-images", 1, 31)):
            (answer,) = await opened.ask(asked)
            assert answer.text == asked.answer
    (said,) = [line for line in server.log if "coatcheck stands aside" in line]
    assert "MiB" in said
    assert f"is {LIMIT_MIB} MiB" in said  # the limit, by the name of the file that says so
    assert limited.kills == 0
