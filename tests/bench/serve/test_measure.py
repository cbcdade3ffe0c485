"""What is measured on a server of known delays is what it does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.figures import NEVER
from coatcheck.bench.serve.measure import measure
from coatcheck.bench.serve.result import Run
from coatcheck.errors import ConfigError
from tests.support.fake_openai import Behaviour, FakeServer

pytestmark = pytest.mark.timeout(60)  # two processes are started for each window
SMALL: dict[str, Any] = {
    "clients": 3,
    "side": 112,
    "output_tokens": 5,
    "text_streams": 2,
    "ramp_s": 0.3,
    "window_s": 2.0,
}
SMALL |= {"probe_s": 0.2, "health_s": 0.1, "timeout_s": 10.0}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def measured(server: FakeServer, **more: Any) -> Run:
    return asyncio.run(measure(server.url, Load(**{**SMALL, **more}), contender="fake", round=1))


@pytest.mark.serial
def test_figures_are_the_servers_delays(server: FakeServer) -> None:
    server.behaviour = Behaviour(first_s=0.1, gap_s=0.02, text_gap_s=0.04, health_s=0.05)
    run = measured(server)
    assert run.errors == {}
    assert run.latency_ms is not None and run.ttft_ms is not None and run.text_gap_ms is not None
    assert run.probe_ms is not None and run.health_ms is not None
    assert 180 <= run.latency_ms.p50 <= run.latency_ms.p99 and run.latency_ms.p50 < 300
    assert 100 <= run.ttft_ms.p50 < 200
    assert 40 <= run.text_gap_ms.p50 < 60
    assert 100 + 7 * 40 <= run.probe_ms.p50 < 600
    assert 50 <= run.health_ms.p50 < 100
    # A closed loop: so many under way, each for its latency.
    samples = run.samples
    mean = sum(of for of in samples["latency_ms"] if of is not None) / len(samples["latency_ms"]) / 1e3
    assert run.requests_per_s == pytest.approx(3 / mean, rel=0.2)
    assert run.requests_per_s == pytest.approx(len(samples["latency_ms"]) / 2.0, rel=0.3)
    assert run.tokens_received == run.tokens_expected == 5 * len(samples["tokens"])
    assert run.extra["tokens_counted_by"] == "usage" and run.extra["open_at_end"] == 3
    assert run.extra["load_cpu_percent"] > 0 and run.extra["observer_cpu_percent"] > 0


def test_no_picture_twice_nor_anything_left_under_way(server: FakeServer) -> None:
    for _ in range(2):
        measured(server, images=2, window_s=1.0)
        deadline = time.monotonic() + 5
        while server.under_way and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.under_way == 0
    urls = [part["image_url"]["url"] for body in server.bodies for part in body["messages"][0]["content"][:-1]]
    assert len(urls) == 2 * len(server.bodies) > 20
    assert len(set(urls)) == len(urls)
    assert not [child for child in psutil.Process().children() if "bench.serve.worker" in " ".join(child.cmdline())]


@pytest.mark.serial
def test_a_stall_shows_in_the_text_streams_and_in_what_is_due_meanwhile(server: FakeServer) -> None:
    def stall() -> None:
        server._loop.call_soon_threadsafe(time.sleep, 0.7)

    # Three of them, as the start is not known to the millisecond: each within a window of 4 s or before it.
    timers = [threading.Timer(at, stall) for at in (3.0, 4.5, 6.0)]
    for timer in timers:
        timer.start()
    run = measured(server, window_s=4.0, ramp_s=1.0)
    for timer in timers:
        timer.join()
    assert run.text_gap_ms is not None and run.probe_ms is not None and run.health_ms is not None
    assert run.text_gap_ms.max >= 650 and run.text_gap_ms.p50 < 100
    late = [took for took in run.samples["health_ms"] if took is not None and took > 100]
    assert len(late) >= 4  # all that were due, and not only the one that was under way


def test_errors_are_counted_by_reason_and_the_rest_goes_on(server: FakeServer) -> None:
    server.behaviour.fails_every = 3
    server.behaviour.health = 503
    run = measured(server)
    assert run.errors["500: out of memory"] > 2
    assert run.errors["health: 503"] > 5
    assert run.requests_per_s > 1 and run.tokens_received == run.tokens_expected


def test_an_answer_that_breaks_off_is_an_error(server: FakeServer) -> None:
    with pytest.raises(ConfigError, match="the answer broke off"):
        server.behaviour.breaks_off = True
        measured(server)


def test_fewer_tokens_than_asked_for_are_said(server: FakeServer) -> None:
    server.behaviour = Behaviour(honours_ignore_eos=False, ends_after=2)
    run = measured(server, window_s=1.0)
    assert run.tokens_received * 5 == run.tokens_expected * 2 > 0
    assert "an answer of 2 tokens where 5 were asked for" in run.extra["notes"]


@pytest.mark.parametrize(
    ("refuses", "fields"),
    [
        (("ignore_eos",), ["stream_options"]),
        (("stream_options",), ["ignore_eos"]),
        (("ignore_eos", "stream_options"), []),
    ],
)
def test_fields_that_a_server_refuses_are_left_out(
    server: FakeServer, refuses: tuple[str, ...], fields: list[str]
) -> None:
    server.behaviour.refuses = refuses
    run = measured(server, window_s=0.5)
    assert run.errors == {} and run.extra["fields"] == fields and run.requests_per_s > 0
    assert run.extra["tokens_counted_by"] == ("chunks" if "stream_options" in refuses else "usage")
    assert run.tokens_received == run.tokens_expected


@pytest.mark.serial
def test_a_server_that_dies_in_the_window(server: FakeServer) -> None:
    timer = threading.Timer(3.5, server.die)
    timer.start()
    run = measured(server, window_s=5.0)
    timer.join()
    assert sum(run.errors.values()) > 5
    assert any("ClientConnectorError" in why for why in run.errors)
    assert any(why.startswith("text stream: ") for why in run.errors)
    assert run.extra["settled_s"] is None


def test_a_server_that_hangs_from_the_ramp_on_is_seen_and_bounded(server: FakeServer) -> None:
    def hang() -> None:
        server.behaviour.hangs = True

    class AtRamp:
        def phase(self, text: str, seconds: float) -> None:
            if seconds == 1.3:
                hang()

        def passed(self, seconds: float, ended: int) -> None:
            pass

    load = Load(**{**SMALL, "window_s": 1.0})
    start = time.monotonic()
    run = asyncio.run(measure(server.url, load, contender="fake", round=1, progress=AtRamp()))
    assert time.monotonic() - start < 40
    assert run.errors == {NEVER: 1} and run.requests_per_s == 0 and run.latency_ms is None
    assert run.extra["open_at_end"] == 3
    assert run.health_ms is not None and run.health_ms.max > 800  # since the ramp


@pytest.mark.serial
def test_a_request_beyond_its_time_is_an_error(server: FakeServer) -> None:
    server.behaviour.text_gap_s = 0.05
    run = measured(server, timeout_s=0.6)  # a text answer takes 50 s
    assert run.errors == {"text stream: no end within 0.6 s": run.errors["text stream: no end within 0.6 s"]}


def test_ones_own_pictures_go_on_where_the_last_window_ended(server: FakeServer, tmp_path: Path) -> None:
    for at in range(1000):
        (tmp_path / f"{at:03}.jpg").write_bytes(f"{at:03}".encode())
    runs = [measured(server, directory=tmp_path, window_s=0.5, ramp_s=0.1, clients=1) for _ in range(2)]
    urls = [body["messages"][0]["content"][0]["image_url"]["url"] for body in server.bodies]
    assert len(set(urls)) == len(urls) > 20
    assert all(run.extra["pictures_repeated"] == 0 for run in runs)


@pytest.mark.parametrize(
    ("behaviour", "options", "words"),
    [
        (Behaviour(vision=False), {}, "fake is not a multimodal model"),
        (Behaviour(), {"model": "other"}, "--model: 'other' is not served by .*; it has fake"),
        (Behaviour(models=()), {}, "lists no model"),
        (Behaviour(key="secret"), {}, "wants a key"),
    ],
)
def test_what_cannot_be_measured_is_said_before(
    server: FakeServer, behaviour: Behaviour, options: dict[str, Any], words: str
) -> None:
    server.behaviour = behaviour
    with pytest.raises(ConfigError, match=words):
        measured(server, **options)


def test_a_key_is_taken_from_the_environment(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.behaviour.key = "secret"
    monkeypatch.setenv("COATCHECK_API_KEY", "secret")
    run = measured(server, window_s=0.5)
    assert run.errors == {} and run.requests_per_s > 0


def test_nobody_there() -> None:
    with pytest.raises(ConfigError, match="cannot be reached"):
        asyncio.run(measure("http://127.0.0.1:9", Load(**SMALL), contender="x", round=1))


def test_children_die_with_a_killed_parent(server: FakeServer) -> None:
    load = {**SMALL, "window_s": 60.0}
    code = (
        "import asyncio; from coatcheck.bench.serve.measure import measure; "
        "from coatcheck.bench.serve.config import Load; "
        f"asyncio.run(measure({server.url!r}, Load(**{load!r}), contender='x', round=1))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 30
        while len(server.bodies) < 20:
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) == 2
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) == 2 and not alive
