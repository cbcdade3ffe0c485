"""States of the whole: starting, draining, ranks lost; and what a client sees of them. No worker processes here."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.front_end import FrontEnd
from coatcheck.engine.http.limits import Capacity
from coatcheck.errors import Overloaded
from tests.support.front_end import ANSWER, FakeEntry, chat_body
from tests.support.house import house

pytestmark = pytest.mark.anyio


async def test_starting(model_dir: Path) -> None:
    async with house(model_dir, ranks=False) as made:
        assert (await made.http.get("/health")).status_code == 503
        response = await made.post("Hi")
        assert response.status_code == 503
        assert "starting" in response.json()["error"]["message"]
        assert response.headers["retry-after"]


async def test_draining_lets_open_requests_finish(model_dir: Path) -> None:
    async with house(model_dir) as made:
        hold, say = asyncio.Event(), made.entry.say(ANSWER)
        loop = asyncio.get_running_loop()

        def script(arrived: Any) -> Any:
            asyncio.run_coroutine_threadsafe(hold.wait(), loop).result(10)
            return say(arrived)

        made.entry.script = script
        running = asyncio.create_task(made.post("Hi"))
        await made.until(1)
        made.app.state.draining = True
        assert await made.error() == (503, "overloaded")
        assert (await made.http.get("/health")).status_code == 503
        assert not await made.app.state.capacity.empty(0.05)
        hold.set()
        assert (await running).json()["choices"][0]["message"]["content"] == ANSWER
        assert await made.app.state.capacity.empty(5)


@pytest.mark.parametrize("stream", [False, True])
async def test_ranks_lost(model_dir: Path, stream: bool) -> None:
    async with house(model_dir) as made:
        made.entry.script = lambda arrived: ()
        running = asyncio.create_task(made.post("Hi", stream=stream))
        await made.until(1)
        made.link.lost("rank 1 ended with status -9")
        response = await running
        assert response.status_code == 503
        assert "rank 1 ended" in response.json()["error"]["message"]
        assert await made.error() == (503, "rank_lost")
        assert (await made.http.get("/health")).status_code == 503


async def test_ranks_lost_within_a_stream(model_dir: Path) -> None:
    async with house(model_dir) as made:
        made.entry.script = made.entry.say("begun", finish=False)
        running = asyncio.create_task(made.post("Hi", stream=True))
        await made.until(1)
        await asyncio.sleep(0.1)
        made.link.lost("rank 1 ended")
        text = (await running).text
        assert '"code":"rank_lost"' in text.strip().splitlines()[-1]
        assert "[DONE]" not in text


async def test_time_limit_aborts(model_dir: Path) -> None:
    async with house(model_dir, request_timeout_s=0.3) as made:
        made.entry.script = made.entry.say("begun", finish=False)
        assert await made.error() == (504, "timeout")
        request = made.entry.last.request
        async with asyncio.timeout(5):
            while request not in made.entry.aborted:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        assert await made.error("hang") == (504, "timeout")
        assert made.app.state.capacity.requests == 0


async def test_a_bug_of_ours_says_nothing_about_us(model_dir: Path) -> None:
    async with house(model_dir) as made:
        response = await made.post("bug")
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.json()["error"]["code"] == "internal_error"
        page = (await made.http.get("/metrics")).text
        assert 'coatcheck_requests_total{outcome="error",strategy="auto"} 1.0' in page
        assert "coatcheck_requests_in_flight 0.0" in page


@pytest.mark.parametrize("text", ["hang in a worker", "hold at the ranks"])
async def test_a_client_that_leaves_frees_its_place(model_dir: Path, text: str) -> None:
    async with house(model_dir) as made:
        made.entry.script = lambda arrived: ()
        gone = asyncio.Event()
        body = [{"type": "http.request", "body": json.dumps(chat_body(text)).encode()}]

        async def receive() -> Any:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nobody is there to be answered")

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b""}
        call = asyncio.create_task(made.app(scope, receive, send))
        if text.startswith("hold"):
            await made.until(1)
        else:
            await asyncio.sleep(0.1)
        assert made.app.state.capacity.requests == 1
        gone.set()
        await asyncio.wait_for(call, 5)
        assert made.app.state.capacity.requests == 0
        assert made.link.statistics().open == 0
        assert 'outcome="disconnected"' in (await made.http.get("/metrics")).text


async def test_memory_limit(model_dir: Path) -> None:
    async with house(model_dir, max_held_bytes=1000) as made:
        assert await made.error("x" * 1000) == (503, "overloaded")
        assert (await made.post("x")).status_code == 200


async def test_what_can_never_fit_is_the_clients_fault(model_dir: Path) -> None:
    async with house(model_dir, ranks=False) as made:
        small = FakeEntry(made.entry.tokenizer, kv_tokens=101)  # the pool's requests need 102
        small.start(made.link.to_entry, made.link.from_entry)
        try:
            await made.link.ready(10)
            assert await made.error() == (400, "context_length_exceeded")
        finally:
            await asyncio.to_thread(small.close)


async def test_capacity_counts() -> None:
    capacity = Capacity(1, 100)
    with capacity.request() as in_flight:
        in_flight.hold(60)
        with pytest.raises(Overloaded):
            in_flight.hold(101)
        assert capacity.held_bytes == 60
        with pytest.raises(Overloaded), capacity.request():
            pass
        assert capacity.requests == 1
        assert not await capacity.empty(0.01)
    assert (capacity.requests, capacity.held_bytes) == (0, 0)
    assert await capacity.empty(1)


async def test_front_end_closes_twice_and_without_start(model_dir: Path) -> None:
    config = FrontendConfig(model_dir=model_dir, model_name="m", workers=1)
    unstarted = FrontEnd(config)
    await unstarted.close()
    async with FrontEnd(config) as front_end:
        assert front_end.link.to_entry.startswith("ipc://")
        assert await front_end.drained(1)
        with pytest.raises(TimeoutError):
            await front_end.ready(0.05)
    await front_end.close()
