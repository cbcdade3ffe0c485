"""What clients of a real SGLang server with two ranks see: the same with the plugin and without."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from typing import Any

import httpx
import pytest

from benchmarks.sglang.questions import Client, questions
from benchmarks.sglang.server import SglangServer
from benchmarks.support.questions import ask, client
from tests.sglang.conftest import END_S, SERVERS, Servers, until_idle
from training.evaluate import BUCKETS, Sample, held_out, held_out_form

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(400)]

LONG: dict[str, Any] = {"ignore_eos": True, "max_new_tokens": 4000}  # a minute and more


def sample() -> Sample:
    (one,) = held_out(1, 3, kinds=("describe",))
    return one


async def until_busy(opened: Client) -> None:
    deadline = time.monotonic() + END_S
    while not await opened.busy():
        assert time.monotonic() < deadline, f"still idle after {END_S} s"
        await asyncio.sleep(0.1)


async def test_questions_are_answered_rightly(servers: Servers, name: str) -> None:
    answers = await servers.answers(name)
    for kind, requests in questions().items():
        for samples, got in zip(requests, answers[kind], strict=True):
            for asked, answer in zip(samples, got, strict=True):
                assert answer.ended == "stop"
                if len(asked.images) < 3:  # the model was trained on few pictures of more, and errs
                    assert answer.text == asked.answer, (kind, asked.question)


async def test_a_stream_grows_into_the_same_answer(server: SglangServer) -> None:
    async with Client(server.url) as opened:
        (whole,) = await opened.ask(sample())
        states = [state async for state in opened.stream(sample())]
    assert len(states) > 3
    for earlier, later in itertools.pairwise(states):
        assert later.ids[: len(earlier.ids)] == earlier.ids
    assert (states[-1].ids, states[-1].text) == (whole.ids, whole.text)


async def test_the_openai_api_answers(server: SglangServer) -> None:
    asked = [sample(), *held_out_form("two-images", 2, 3)]
    async with client(f"{server.url}/v1") as openai:
        assert [await ask(openai, one) for one in asked] == [one.answer for one in asked]


async def test_parallel_sampling_gives_each_the_same_answer(server: SglangServer) -> None:
    async with Client(server.url) as opened:
        (alone,) = await opened.ask(sample())
        several = await opened.ask(sample(), n=3)
    assert [answer.ids for answer in several] == [alone.ids] * 3


async def test_sixteen_clients_are_answered_rightly(server: SglangServer) -> None:
    samples = [*held_out(28, 12, BUCKETS), *held_out_form("two-images", 4, 12)]
    gate = asyncio.Semaphore(16)

    async def one(asked: Sample) -> str:
        async with gate:
            return (await opened.ask(asked))[0].text

    async with Client(server.url) as opened:
        assert await asyncio.gather(*map(one, samples)) == [asked.answer for asked in samples]


async def test_an_aborted_request_ends_at_once(server: SglangServer) -> None:
    async with Client(server.url) as opened:
        asking = asyncio.create_task(opened.ask(sample(), rid="to be aborted", **LONG))
        await until_busy(opened)
        await opened.abort("to be aborted")
        (answer,) = await asyncio.wait_for(asking, END_S)
        assert answer.ended == "abort"
        await until_idle(opened)
        assert (await opened.ask(sample()))[0].text == sample().answer


@pytest.mark.parametrize("streaming", [True, False], ids=["streaming", "waiting for all"])
async def test_a_client_that_hangs_up_ends_its_request(server: SglangServer, streaming: bool) -> None:
    async with Client(server.url) as opened:
        if streaming:
            states = opened.stream(sample(), **LONG)
            for _ in range(3):
                await anext(states)
            assert await opened.busy() == 1
            await states.aclose()
        else:
            asking = asyncio.create_task(opened.ask(sample(), **LONG))
            await until_busy(opened)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
        await until_idle(opened)
        assert (await opened.ask(sample()))[0].text == sample().answer


async def test_requests_aborted_at_any_moment_hold_nothing_up(server: SglangServer) -> None:
    rng = random.Random(5)
    samples = list(held_out(16, 13, BUCKETS))

    async def one(index: int, asked: Sample) -> None:
        asking = asyncio.create_task(opened.ask(asked, rid=f"one of many {index}"))
        await asyncio.sleep(rng.uniform(0, 2))
        await opened.abort(f"one of many {index}")
        (answer,) = await asking
        ended.append(answer.ended)
        assert answer.ended == "abort" or answer.text == asked.answer

    ended: list[str] = []
    async with Client(server.url) as opened:
        await asyncio.gather(*[one(index, asked) for index, asked in enumerate(samples)])
        await until_idle(opened)
        assert (await opened.ask(sample()))[0].text == sample().answer
    assert "abort" in ended


async def test_all_are_aborted(server: SglangServer) -> None:
    async with Client(server.url) as opened:
        asking = [asyncio.create_task(opened.ask(one, **LONG)) for one in held_out(4, 14, BUCKETS)]
        await until_busy(opened)
        await asyncio.sleep(1)  # some run, some wait
        await opened.abort(everything=True)
        for (answer,) in await asyncio.wait_for(asyncio.gather(*asking), END_S):
            assert answer.ended == "abort"
        await until_idle(opened)
        assert (await opened.ask(sample()))[0].text == sample().answer


async def test_a_picture_that_is_none_is_refused(server: SglangServer) -> None:
    async with Client(server.url) as opened:
        body = {"text": "<|vision_start|><|image_pad|><|vision_end|>", "image_data": "data:image/png;base64,bm9uZQ=="}
        refused = await opened.http.post("/generate", json=body)
        assert refused.status_code == httpx.codes.BAD_REQUEST
        assert (await opened.ask(sample()))[0].text == sample().answer


async def test_every_server_gives_the_same_tokens(servers: Servers) -> None:
    first, *others = [await servers.answers(name) for name in SERVERS]
    for other in others:
        for kind, requests in first.items():
            ids = [[answer.ids for answer in got] for got in requests]
            assert [[answer.ids for answer in got] for got in other[kind]] == ids, kind
