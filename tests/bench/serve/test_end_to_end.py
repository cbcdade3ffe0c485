"""Against this project's own server, with real pictures and a real clip."""

from __future__ import annotations

import asyncio

import pytest

from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.measure import measure
from coatcheck.bench.support.server import ServerProcess

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]  # a server of two ranks is started
SERVER = ("--tp", "2", "--arena-mib", "256", "--runner", "null", "--step-ms", "1")


def test_our_own_server() -> None:
    load = Load(clients=2, side=224, output_tokens=6, text_streams=1, ramp_s=1.0, window_s=4.0)
    with ServerProcess(*SERVER) as server:
        run = asyncio.run(measure(server.url, load, contender="ours", round=1, tp=2))
        assert run.errors == {} and run.requests_per_s > 0
        assert run.tokens_received == run.tokens_expected > 0  # it honours ignore_eos
        assert run.extra["fields"] == ["ignore_eos", "stream_options"] and run.extra["tokens_counted_by"] == "usage"
        assert run.text_gap_ms is not None and run.probe_ms is not None and run.health_ms is not None


@pytest.mark.slow
def test_a_clip_on_our_own_server() -> None:
    film = Load(clients=1, images=0, video="made", output_tokens=4, text_streams=0, ramp_s=0.0, window_s=8.0)
    with ServerProcess(*SERVER) as server:
        shown = asyncio.run(measure(server.url, film, contender="ours", round=1))
        assert shown.errors == {} and shown.tokens_received > 0 and shown.extra["pictures_repeated"] == 0
