"""Strategies of a running server: switched by who has the token, chosen by header, replaced where they cannot start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from coatcheck.bench.support.server import ServerProcess
from coatcheck.engine.config import ADMIN_TOKEN
from coatcheck.engine.launcher.serve import auto_in_words
from coatcheck.engine.records import AutoRule
from coatcheck.engine.strategies.table import NAMES
from tests.support.faulty_rank import LACKING

pytestmark = [pytest.mark.timeout(150), pytest.mark.processes]

TOKEN = "a-token-of-the-test"
SMALL = ("--tp", "2", "--arena-mib", "64", "--runner", "null", "--strategy-header")


class Client:
    def __init__(self, server: ServerProcess) -> None:
        self.root = server.url.removesuffix("/v1")

    def ask(self, strategy: str | None = None) -> tuple[str, str]:
        """The answer's text and the strategy that was used."""
        messages = [{"role": "user", "content": "Hello!"}]
        body = {"model": "coatcheck-default", "messages": messages, "temperature": 0, "max_tokens": 8}
        headers = {} if strategy is None else {"X-Coatcheck-Strategy": strategy}
        response = httpx.post(f"{self.root}/v1/chat/completions", json=body, headers=headers, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"], response.headers["x-coatcheck-strategy"]

    def switch(self, strategy: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx.put(f"{self.root}/admin/strategy", json={"strategy": strategy}, headers=headers)

    def state(self) -> Any:
        return httpx.get(f"{self.root}/admin/strategy", headers={"Authorization": f"Bearer {TOKEN}"}).json()

    def metrics(self) -> str:
        return httpx.get(f"{self.root}/metrics").text


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(*SMALL, environment={ADMIN_TOKEN: TOKEN}) as running:
        yield running


def test_the_default_is_switched_and_a_header_overrides_it(server: ServerProcess) -> None:
    client = Client(server)
    text, used = client.ask()
    assert used == "auto"
    for name in (*NAMES, "lazy"):
        assert client.switch(name).status_code == 200
        assert client.ask() == (text, client.state()["strategy"])
        assert client.ask("object-background") == (text, "object-background")
    assert client.state() == {"strategy": "dict-inline", "available": list(NAMES), "unavailable": {}}
    assert re.search(r"auto: payloads up to \d[\d.]* KiB ride in the request, larger ones go by handle; ", server.text)
    assert "the default strategy is object-inline from now on, was auto" in server.text


def test_auto_in_words() -> None:
    assert auto_in_words(AutoRule(4096, "measured", 2e-5)) == (
        "auto: payloads up to 4 KiB ride in the request, larger ones go by handle; "
        "background where others would wait longer than it does (handover 0.020 ms)"
    )
    assert auto_in_words(AutoRule(None, "inline")) == (
        "auto: all payloads ride in the request, as some rank has no arena; always inline"
    )


def test_the_token_reaches_no_child_and_no_log(server: ServerProcess) -> None:
    parent, *children = server.family()
    assert len(children) >= 4
    for child in children:
        assert ADMIN_TOKEN not in child.environ()
        assert not any(TOKEN in argument for argument in child.cmdline())
    assert TOKEN not in " ".join(parent.cmdline())
    assert TOKEN not in server.text


def test_a_strategy_that_one_rank_lacks_falls_back() -> None:
    environment = {ADMIN_TOKEN: TOKEN, LACKING: "object@1"}
    options = (*SMALL, "--workers", "1", "--strategy", "object-inline")
    with ServerProcess(*options, environment=environment, module="tests.support.faulty_server") as server:
        client = Client(server)
        text, used = client.ask()
        assert used == "dict-inline"
        assert client.ask("async") == (text, "dict-inline")
        assert client.ask("combined") == (text, "dict-background")
        for name in ("object-inline", "object-background"):
            refused = client.switch(name)
            assert refused.status_code == 409
            assert "rank 1: ImportError" in refused.json()["error"]["message"]
            assert server.text.count(f"strategy {name} is unavailable") == 1
        assert "strategy dict-inline in place of object-inline" in server.text
        assert client.switch("dict-background").status_code == 200
        assert client.ask() == (text, "dict-background")
        page = client.metrics()
        assert 'coatcheck_strategy_fallbacks_total{strategy="object-inline"} 1.0' in page
        assert 'coatcheck_strategy_fallbacks_total{strategy="object-background"} 1.0' in page
        assert 'coatcheck_requests_total{outcome="ok",strategy="dict-inline"} 2.0' in page
