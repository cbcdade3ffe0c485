"""A video over HTTP, under every strategy: the same answer, from inputs that were compared on all ranks."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from coatcheck.bench.support.server import ServerProcess
from coatcheck.engine.strategies.table import STRATEGIES
from tests.support.clips import clip, noise

pytestmark = [pytest.mark.timeout(150), pytest.mark.processes]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    small = ("--tp", "2", "--arena-mib", "64", "--workers", "1")
    options = ("--strategy-header", "--verify", "--max-video-seconds", "5", "--encode-patches", "512")
    with ServerProcess(*small, *options) as running:
        yield running


def ask(server: ServerProcess, data: bytes, strategy: str = "dict-inline", **more: Any) -> httpx.Response:
    url = "data:video/mp4;base64," + base64.b64encode(data).decode()
    content = [{"type": "text", "text": "Describe the image."}, {"type": "video_url", "video_url": {"url": url}}]
    body = {"model": "coatcheck-default", "messages": [{"role": "user", "content": content}], "temperature": 0, **more}
    headers = {"X-Coatcheck-Strategy": strategy}
    return httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_every_strategy_gives_the_same_answer(server: ServerProcess, container: str) -> None:
    data = clip(96, (96, 64), container, picture=noise(96, 64))  # 4 s: eight frames, more patches than a step encodes
    answers = {}
    for name in STRATEGIES:
        response = ask(server, data, name, max_tokens=12)
        assert response.status_code == 200, response.text
        assert response.headers["x-coatcheck-strategy"] == name
        answer = response.json()
        answers[name] = answer["choices"][0]["message"]["content"], answer["usage"]
    assert len(set(map(str, answers.values()))) == 1, answers
    text, usage = answers["dict-inline"]
    assert text
    assert usage["prompt_tokens"] > 4 * 128


def test_a_video_that_is_refused_says_why(server: ServerProcess) -> None:
    for data, code in ((clip(150), "video_too_long"), (b"abc", "invalid_video"), (clip(48)[:900], "invalid_video")):
        response = ask(server, data)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, code), error
        assert error["param"] == "messages[0].content[1].video_url.url"
    assert ask(server, clip(48), max_tokens=1).status_code == 200  # it goes on
