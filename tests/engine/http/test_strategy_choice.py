"""Which strategy a request gets, and who is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.front_end import FrontEnd
from coatcheck.engine.http.strategy_choice import HEADER
from coatcheck.engine.records import Rejected
from coatcheck.errors import UnknownStrategy
from tests.support.front_end import ANSWER
from tests.support.house import house

pytestmark = pytest.mark.anyio

LACKING = (("object-inline", "rank 1: ImportError: no such thing"), ("object-background", "rank 1: no such thing"))


def header(name: str) -> dict[str, str]:
    return {HEADER: name}


async def test_without_a_header_the_default(model_dir: Path) -> None:
    async with house(model_dir, strategy="async") as made:
        response = await made.post("Hi")
        assert response.status_code == 200
        assert made.entry.last.strategy == "object-background"
        assert HEADER not in response.headers  # this server does not speak of strategies


async def test_an_unknown_default_is_refused(model_dir: Path) -> None:
    with pytest.raises(UnknownStrategy, match="known: object-inline"):
        FrontEnd(FrontendConfig(model_dir=model_dir, model_name="m", strategy="fast"))


async def test_a_header_where_it_is_not_allowed(model_dir: Path) -> None:
    async with house(model_dir) as made:
        response = await made.post("Hi", header("dict-inline"))
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "strategy_header_disabled", HEADER)
        assert "--strategy-header" in error["message"]
        assert not made.entry.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_a_header_chooses_and_every_answer_says_what_was_used(model_dir: Path, stream: bool) -> None:
    async with house(model_dir, strategy_header=True, strategy="dict-background") as made:
        for asked, used in ((None, "dict-background"), ("object-inline", "object-inline"), (" lazy ", "dict-inline")):
            response = await made.post("Hi", None if asked is None else header(asked), stream=stream)
            assert response.status_code == 200
            assert response.headers[HEADER] == used == made.entry.last.strategy
        made.entry.script = lambda arrived: [Rejected(request=arrived.request, reason="no memory", rank=1)]
        for text, status in (("Hi", 500), ("bug", 500)):
            response = await made.post(text, header("async"), stream=stream)
            assert (response.status_code, response.headers[HEADER]) == (status, "object-background")


@pytest.mark.parametrize("name", ["fast", "", "dict-inline, object-inline", "DICT-INLINE", "x" * 9000])
async def test_an_unknown_name_is_refused_with_the_known_ones(model_dir: Path, name: str) -> None:
    async with house(model_dir, strategy_header=True) as made:
        response = await made.post("Hi", header(name))
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "unknown_strategy", HEADER)
        assert "handle-inline, handle-background, auto, 17a57fd86" in error["message"]
        assert len(error["message"]) < 500
        assert HEADER not in response.headers  # none was used
        assert not made.entry.requests


async def test_two_headers_are_no_choice(model_dir: Path) -> None:
    async with house(model_dir, strategy_header=True) as made:
        twice: Any = [(HEADER, "dict-inline"), (HEADER, "object-inline")]
        assert (await made.post("Hi", twice)).status_code == 400


async def test_what_is_unavailable_falls_back_with_one_warning_and_a_count(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(model_dir, strategy="object-inline", strategy_header=True, unavailable=LACKING) as made:
        for asked in (None, None, "async", "17a57fd86"):
            response = await made.post("Hi", None if asked is None else header(asked))
            assert response.status_code == 200
            assert response.headers[HEADER] == "dict-inline" == made.entry.last.strategy
        assert (await made.post("Hi", header("combined"))).headers[HEADER] == "dict-background"
        page = await made.metrics()
        assert 'coatcheck_strategy_fallbacks_total{strategy="object-inline"} 3.0' in page
        assert 'coatcheck_strategy_fallbacks_total{strategy="object-background"} 1.0' in page
        assert 'coatcheck_strategy_fallbacks_total{strategy="dict' not in page
        assert 'coatcheck_requests_total{outcome="ok",strategy="dict-inline"} 4.0' in page
    warnings = [record.getMessage() for record in caplog.records if "unavailable" in record.getMessage()]
    assert warnings == [
        f"strategy {name} is unavailable, requests for it fall back to dict-inline: {reason}"
        for name, reason in LACKING
    ]


async def test_metrics_go_by_the_request_s_own_strategy(model_dir: Path) -> None:
    async with house(model_dir, strategy="dict-background", strategy_header=True) as made:
        await made.post("Hi", header("object-inline"))
        await made.post("bug", header("async"))
        await made.post("Hi", header("fast"))  # refused before it had one: the default
        page = await made.metrics()
        assert 'coatcheck_requests_total{outcome="ok",strategy="object-inline"} 1.0' in page
        assert 'coatcheck_requests_total{outcome="error",strategy="object-background"} 1.0' in page
        assert 'coatcheck_requests_total{outcome="bad_request",strategy="dict-background"} 1.0' in page
        assert 'coatcheck_first_token_seconds_count{strategy="object-inline"} 1.0' in page
        assert 'coatcheck_request_seconds_count{strategy="object-inline"} 1.0' in page
        gaps = len(made.entry.tokenizer.encode(ANSWER).ids)
        assert f'coatcheck_inter_token_seconds_count{{strategy="object-inline"}} {gaps}.0' in page
        assert 'seconds_count{strategy="dict-background"}' not in page
