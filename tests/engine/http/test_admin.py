"""A switch while running: who may, what it changes, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from coatcheck.engine.http import admin
from coatcheck.engine.strategies.table import NAMES
from tests.support.house import House, house

pytestmark = pytest.mark.anyio

TOKEN = "a-token-of-the-test"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ROUTE = "/admin/strategy"


async def put(made: House, name: Any) -> httpx.Response:
    return await made.http.put(ROUTE, json={"strategy": name}, headers=BEARER)


async def default(made: House) -> str:
    response = await made.http.get(ROUTE, headers=BEARER)
    assert response.status_code == 200
    return str(response.json()["strategy"])


async def test_without_a_token_there_is_no_such_route(model_dir: Path) -> None:
    async with house(model_dir) as made:
        for response in (await made.http.get(ROUTE, headers=BEARER), await put(made, "lazy")):
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer t\u00f6ken"]
)
async def test_only_the_token_opens_it(model_dir: Path, given: str) -> None:
    headers: Any = {"Authorization": given.encode("latin-1")} if given else {}
    async with house(model_dir, token=TOKEN) as made:
        for response in (
            await made.http.get(ROUTE, headers=headers),
            await made.http.put(ROUTE, json={"strategy": "async"}, headers=headers),
        ):
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "unauthorized"
            assert "auto" not in response.text
        assert await default(made) == "auto"


async def test_the_scheme_has_no_case(model_dir: Path) -> None:
    async with house(model_dir, token=TOKEN) as made:
        assert (await made.http.get(ROUTE, headers={"Authorization": f"bearer  {TOKEN}"})).status_code == 200


async def test_a_switch_changes_new_requests_and_is_logged(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with house(model_dir, token=TOKEN) as made:
        await made.post("Hi")
        response = await put(made, "17a57fd86")
        assert response.status_code == 200
        assert response.json() == {"strategy": "object-inline", "available": list(NAMES), "unavailable": {}}
        assert response.json() == (await made.http.get(ROUTE, headers=BEARER)).json()
        await put(made, "object-inline")  # no change
        await made.post("Hi")
        assert [arrived.strategy for arrived, _ in made.entry.requests] == ["auto", "object-inline"]
    logged = [record.getMessage() for record in caplog.records if "default strategy" in record.getMessage()]
    assert logged == ["the default strategy is object-inline from now on, was auto"]


async def test_requests_under_way_keep_theirs(model_dir: Path) -> None:
    async with house(model_dir, token=TOKEN, max_waiting=2, strategy_header=True) as made:
        hold, say, loop = asyncio.Event(), made.entry.script, asyncio.get_running_loop()

        def script(arrived: Any) -> Any:
            asyncio.run_coroutine_threadsafe(hold.wait(), loop).result(10)
            return say(arrived)

        made.entry.script = script
        at_the_ranks = asyncio.create_task(made.post("Hi"))
        await made.until(1)
        at_a_worker = asyncio.create_task(made.post("gate"))
        await asyncio.sleep(0.05)
        assert (await made.post("Hi")).status_code == 503  # the house is full; a switch needs no place in it
        assert (await put(made, "async")).status_code == 200
        made.pool.gate.set()
        hold.set()
        for running in (at_the_ranks, at_a_worker):
            response = await running
            assert response.status_code == 200
            assert response.headers["x-coatcheck-strategy"] == "auto"
        assert (await made.post("Hi")).headers["x-coatcheck-strategy"] == "object-background"
        assert [arrived.strategy for arrived, _ in made.entry.requests] == ["auto"] * 2 + ["object-background"]
        page = await made.metrics()
        assert 'coatcheck_requests_total{outcome="ok",strategy="auto"} 2.0' in page
        assert 'coatcheck_requests_total{outcome="ok",strategy="object-background"} 1.0' in page
        assert 'coatcheck_requests_total{outcome="overloaded",strategy="auto"} 1.0' in page


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_value"),
        (b"{", "invalid_value"),
        (b"[]", "invalid_value"),
        (b"{}", "invalid_value"),
        (b'{"strategy": 3}', "invalid_value"),
        (b'{"strategy": "\xff"}', "invalid_value"),
        (b'{"strategy": "lazy", "now": true}', "invalid_value"),
        (b'{"strategy": "fast"}', "unknown_strategy"),
        (b'{"strategy": ""}', "unknown_strategy"),
    ],
)
async def test_a_bad_body_is_refused_with_the_known_names(model_dir: Path, body: bytes, code: str) -> None:
    async with house(model_dir, token=TOKEN, strategy="async") as made:
        response = await made.http.put(ROUTE, content=body, headers=BEARER)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, "strategy", code)
        assert "strategy" in error["message"]
        assert "handle-inline, handle-background, auto, 17a57fd86" in error["message"]
        assert await default(made) == "object-background"


async def test_a_large_body_is_not_read(model_dir: Path) -> None:
    async with house(model_dir, token=TOKEN) as made:
        response = await put(made, "x" * admin.MAX_BODY_BYTES)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


async def test_a_body_that_does_not_come_is_not_waited_for(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b'{"strategy": '
        await asyncio.sleep(10)

    monkeypatch.setattr(admin, "BODY_S", 0.05)
    async with house(model_dir, token=TOKEN) as made:
        assert (await made.http.put(ROUTE, content=slow(), headers=BEARER)).status_code == 504


async def test_a_client_that_leaves_changes_nothing(model_dir: Path) -> None:
    async with house(model_dir, token=TOKEN) as made:

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
        scope = {"type": "http", "method": "PUT", "path": ROUTE, "headers": headers, "query_string": b""}
        await made.app(scope, receive, send)
        assert await default(made) == "auto"


async def test_what_is_unavailable_cannot_be_the_default(model_dir: Path) -> None:
    async with house(model_dir, token=TOKEN, unavailable=(("object-inline", "rank 1: no such module"),)) as made:
        response = await put(made, "17a57fd86")
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (409, "strategy", "strategy_unavailable")
        assert "rank 1: no such module" in error["message"]
        state = (await made.http.get(ROUTE, headers=BEARER)).json()
        assert state["strategy"] == "auto"
        assert state["unavailable"] == {"object-inline": "rank 1: no such module"}
        assert state["available"] == [name for name in NAMES if name != "object-inline"]


async def test_before_the_ranks_are_ready_nobody_knows(model_dir: Path) -> None:
    async with house(model_dir, ranks=False, token=TOKEN) as made:
        response = await put(made, "async")
        assert response.status_code == 503
        assert response.headers["retry-after"]
