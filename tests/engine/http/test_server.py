"""The official client against the real server with real workers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from coatcheck.engine.records import Arrived, FromEntry, Rejected, Tokens
from coatcheck.intake.records import prompt_tokens
from tests.support.front_end import ANSWER, RunningServer, chat_body, encoded, image_part, wait_for

RED = encoded(Image.new("RGB", (140, 112), "red"))
BLUE = encoded(Image.new("RGB", (112, 112), "blue"))


def ask(client: openai.OpenAI, *parts: Any, **more: Any) -> Any:
    return client.chat.completions.create(**chat_body(*parts, **more))


def test_answers_with_usage(server: RunningServer, client: openai.OpenAI) -> None:
    answer = ask(client, "What is this?", image_part(RED), max_tokens=64, temperature=0.5, top_p=0.9, seed=7)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "coatcheck-tiny"
    arrived = server.entry.last
    assert answer.usage.prompt_tokens == prompt_tokens(arrived.ids, arrived.items)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert arrived.strategy == "auto"
    sampling = arrived.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (64, 0.5, 0.9, 7)
    assert len(sampling.stop_ids) >= 1


def test_items_describe_their_payloads(server: RunningServer, client: openai.OpenAI) -> None:
    ask(client, "Compare", image_part(RED), "and", image_part(BLUE))
    arrived, frames = server.entry.requests[-1]
    image_pad = server.entry.tokenizer.token_to_id("<|image_pad|>")
    places = [at for at, token in enumerate(arrived.ids) if token == image_pad]
    first, second = arrived.items
    assert places == [first.start, second.start - (first.count - 1)]
    assert [item.grid for item in arrived.items] == [(1, 8, 10), (1, 8, 8)]
    for item, frame, colour in zip(arrived.items, frames, ("red", "blue"), strict=True):
        t, h, w = item.grid
        assert item.count == t * h * w // 4
        pixels = np.frombuffer(frame, item.pixels.dtype).reshape(item.pixels.shape)
        assert pixels.shape == (t * h * w, 588)
        means = pixels.reshape(-1, 3, 196).mean(axis=(0, 2))  # a patch is channels first
        assert int(means.argmax()) == {"red": 0, "blue": 2}[colour]


def test_defaults_where_the_client_gives_none(server: RunningServer, client: openai.OpenAI) -> None:
    ask(client, "Hi")
    first = server.entry.last.sampling
    ask(client, "Hi")
    second = server.entry.last.sampling
    assert (first.max_tokens, first.temperature, first.top_p) == (256, 1.0, 1.0)
    assert first.seed != second.seed


@pytest.mark.parametrize(("ignore_eos", "ends"), [(True, False), (False, True), (None, True)])
def test_ignore_eos_leaves_no_token_that_ends_the_answer(
    server: RunningServer, client: openai.OpenAI, ignore_eos: bool | None, ends: bool
) -> None:
    ask(client, "Hi", extra_body={"ignore_eos": ignore_eos})
    assert bool(server.entry.last.sampling.stop_ids) == ends


def test_roles_reach_the_template(server: RunningServer, client: openai.OpenAI) -> None:
    roles = ["developer", "user", "assistant", "user"]
    messages: Any = [{"role": role, "content": f"I am {role}"} for role in roles]
    client.chat.completions.create(model="coatcheck-tiny", messages=messages)
    prompt = server.entry.prompt()
    assert "<|im_start|>system\nI am developer<|im_end|>" in prompt
    assert prompt.endswith("I am user<|im_end|>\n<|im_start|>assistant\n")


def test_stream(server: RunningServer, client: openai.OpenAI) -> None:
    chunks = list(ask(client, "Hi", stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == ANSWER
    assert "\ufffd" not in text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == prompt_tokens(server.entry.last.ids, server.entry.last.items)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stream_without_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, "Hi", stream=True))
    assert all(chunk.choices for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string_ends_text_and_aborts(server: RunningServer, client: openai.OpenAI, stream: bool) -> None:
    server.entry.script = server.entry.say("one two three", finish=False)
    answer = ask(client, "Count", stop=["tw", "nothing"], stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, finish) == ("one ", "stop")
    request = server.entry.last.request
    wait_for(lambda: request in server.entry.aborted)


def test_length(server: RunningServer, client: openai.OpenAI) -> None:
    def script(arrived: Arrived) -> list[FromEntry]:
        return [Tokens(request=arrived.request, tokens=(5,) * arrived.sampling.max_tokens, finish="length")]

    server.entry.script = script
    answer = ask(client, "Hi", max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
def test_rejected_by_the_ranks(server: RunningServer, client: openai.OpenAI, stream: bool) -> None:
    server.entry.script = lambda arrived: [Rejected(request=arrived.request, reason="no memory", rank=1)]
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "Hi", stream=stream)
    assert caught.value.code == "rejected"
    assert "no memory" in caught.value.message
    assert "rank 1" in caught.value.message


def test_error_after_a_stream_began(server: RunningServer, client: openai.OpenAI) -> None:
    say = server.entry.say("begun", finish=False)
    server.entry.script = lambda arrived: [*say(arrived), Rejected(request=arrived.request, reason="late", rank=None)]
    with pytest.raises(openai.APIError, match="late"):
        list(ask(client, "Hi", stream=True))


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["coatcheck-tiny"]
    assert client.models.retrieve("coatcheck-tiny").owned_by == "coatcheck"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_health_and_metrics(server: RunningServer, client: openai.OpenAI) -> None:
    ask(client, "Hi")
    assert httpx.get(f"{server.url}/health").json() == {"status": "ready"}
    page = httpx.get(f"{server.url}/metrics").text
    assert 'coatcheck_requests_total{outcome="ok",strategy="auto"}' in page
    assert "coatcheck_workers_ready 1.0" in page


@pytest.mark.parametrize("stream", [False, True])
def test_disconnect_aborts_on_the_ranks(server: RunningServer, stream: bool) -> None:
    server.entry.script = server.entry.say("going on", finish=False)
    before = len(server.entry.requests)
    body = httpx.Request("POST", f"{server.url}/v1/chat/completions", json=chat_body("Hi", stream=stream))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body.content)}\r\n\r\n"
        connection.sendall(head.encode() + body.content)
        wait_for(lambda: len(server.entry.requests) > before)
    request = server.entry.last.request
    wait_for(lambda: request in server.entry.aborted)
    wait_for(lambda: server.front_end.app.state.capacity.requests == 0)


def test_overload_is_503_with_retry_after(server: RunningServer, client: openai.OpenAI) -> None:
    server.entry.script = server.entry.say("holding", finish=False)
    streams = [ask(client, "Hi", stream=True) for _ in range(server.config.max_waiting)]
    response = httpx.post(f"{server.url}/v1/chat/completions", json=chat_body("Hi"))
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["error"]["code"] == "overloaded"
    for stream in streams:
        stream.close()
    wait_for(lambda: server.front_end.app.state.capacity.requests == 0)
    server.entry.script = server.entry.say("room again")
    assert ask(client, "Hi").choices[0].message.content == "room again"


@pytest.mark.timeout(120)  # a worker starts anew
def test_death_of_a_worker_costs_its_job_only(server: RunningServer, client: openai.OpenAI) -> None:
    pool = server.front_end.pool
    (worker,) = pool._workers.values()
    assert Path(f"/proc/{worker.process.pid}/comm").read_text() == "coatcheck-work0\n"
    os.kill(worker.process.pid, signal.SIGSTOP)  # so that the job is still at it when it dies
    responses: list[httpx.Response] = []

    def post() -> None:
        responses.append(httpx.post(f"{server.url}/v1/chat/completions", json=chat_body("Hi"), timeout=100))

    first = threading.Thread(target=post)
    first.start()
    wait_for(lambda: pool.statistics().busy == 1)
    os.kill(worker.process.pid, signal.SIGKILL)
    first.join()
    assert responses[0].status_code == 500
    assert responses[0].json()["error"]["code"] == "worker_failed"
    assert "again" in responses[0].json()["error"]["message"]
    answer: Any = client.with_options(timeout=100).chat.completions.create(**chat_body("Hi"))
    assert answer.choices[0].message.content == ANSWER
    assert pool.statistics().deaths >= 1
