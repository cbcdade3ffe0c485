"""Held-out samples as requests to SGLang's own ``/generate``, whose answers come with their token ids."""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx

from benchmarks.support.questions import data_url
from training.evaluate import BUCKETS, DEFAULT_MODEL, LARGE_BUCKETS, Sample, held_out, held_out_form, load_processor
from training.questions import KINDS, ask_about_many
from training.scenes import encode_png, make_scene, random_size

ANSWER_S = 120.0  # no request may take longer
SIDES = ((112, 112), *BUCKETS, *LARGE_BUCKETS, (1024, 1024))  # of the longer side, in pixels: (lowest, highest)
TOKENS = 100  # of an answer, at most


@dataclass(frozen=True)
class Answer:
    """What came back. ``ended``: ``stop``, ``length``, ``abort``, or "" while it grows; ``seconds`` since asked."""

    ids: tuple[int, ...]
    text: str
    ended: str
    seconds: float


Requests = dict[str, list[tuple[Sample, ...]]]  # by kind; those of more than one sample are batch requests
Answers = dict[str, list[list[Answer]]]


def several(images: int, n: int, seed: int, low: int, high: int) -> Iterator[Sample]:
    """``n`` held-out questions about that many images each, sides of ``low`` to ``high`` pixels; equal by seed."""
    for k in range(n):
        rng = random.Random(f"coatcheck several {images} {seed} {k}")
        first = (seed * 1_000_000 + k) * 1000
        scenes = [make_scene(first + i, random_size(rng, low, high), split="held-out") for i in range(images)]
        question = ask_about_many(scenes, rng, dict.fromkeys(KINDS, 1.0))
        pictures = tuple(scene.image for scene in scenes)
        yield Sample(pictures, question.text, question.answer, question.kind, f"{images} images")


def questions(seed: int = 11) -> Requests:
    """What the default model can be asked by an image, several, none, and in batches."""
    singles = {
        "1 image, 112 to 1024 pixels": held_out(2 * len(SIDES), seed, SIDES, ("describe", "count")),
        **{f"{images} images": several(images, 3, seed, 112, 224) for images in (2, 3, 4)},
        "4 images of 448 pixels": several(4, 1, seed, 448, 448),
        "second turn": held_out_form("second-turn", 2, seed),
        "no image": held_out_form("chat", 2, seed),
    }
    ones = list(held_out(4, seed + 1, SIDES, ("describe",)))
    mixed = (*held_out_form("chat", 1, seed + 1), ones[0], *several(2, 1, seed + 1, 112, 224), ones[0])
    return {
        **{kind: [(sample,) for sample in samples] for kind, samples in singles.items()},
        "batch of 4": [tuple(ones)],
        "batch of 4, of no, 1 and 2 images, one twice": [mixed],
    }


class Client:
    """Context manager. Asks one server, and never retries. Raises httpx.HTTPStatusError for what the server refuses."""

    def __init__(self, url: str, *, answer_s: float = ANSWER_S, connections: int | None = 100) -> None:
        """``connections``: how many requests can be under way at once; None for any number."""
        self._tokenizer = load_processor(DEFAULT_MODEL)[0]
        limits = httpx.Limits(max_connections=connections)
        self.http = httpx.AsyncClient(base_url=url, timeout=answer_s, limits=limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    def _body(self, samples: Sequence[Sample], **sampling: Any) -> dict[str, Any]:
        """A request for one sample, or a batch request."""
        prompts = [
            self._tokenizer.apply_chat_template(sample.messages(), tokenize=False, add_generation_prompt=True)
            for sample in samples
        ]
        images = [[data_url(encode_png(image)) for image in sample.images] for sample in samples]
        one = len(samples) == 1
        return {
            "text": prompts[0] if one else prompts,
            "image_data": images[0] if one else images,
            "sampling_params": {"temperature": 0, "max_new_tokens": TOKENS, **sampling},
        }

    async def ask(self, *samples: Sample, rid: str | None = None, **sampling: Any) -> list[Answer]:
        """One request: of several samples a batch request, with ``n`` that many answers to each."""
        body = self._body(samples, **sampling) | ({} if rid is None else {"rid": rid})
        start = time.monotonic()
        response = await self.http.post("/generate", json=body)
        seconds = time.monotonic() - start
        response.raise_for_status()
        parts = response.json()
        return [_answer(part, seconds) for part in (parts if isinstance(parts, list) else [parts])]

    async def stream(self, sample: Sample, **sampling: Any) -> AsyncGenerator[Answer]:
        """The answer's states as it grows. Closing the generator hangs up."""
        body = self._body([sample], **sampling) | {"stream": True}
        start = time.monotonic()
        async with self.http.stream("POST", "/generate", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                data = line.removeprefix("data: ")
                if data and data != "[DONE]":
                    yield _answer(json.loads(data), time.monotonic() - start)

    async def abort(self, rid: str = "", everything: bool = False) -> None:
        """Ends a request, or all."""
        response = await self.http.post("/abort_request", json={"rid": rid, "abort_all": everything})
        response.raise_for_status()

    async def busy(self) -> int:
        """Requests that run or wait."""
        response = await self.http.get("/v1/loads")
        response.raise_for_status()
        return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in response.json()["loads"])


async def ask_one_by_one(url: str, requests: Requests) -> Answers:
    """All, in order: what is computed together is always the same, and so are the tokens."""
    async with Client(url) as client:
        return {kind: [await client.ask(*samples) for samples in of] for kind, of in requests.items()}


def _answer(part: dict[str, Any], seconds: float) -> Answer:
    meta = part["meta_info"]
    ended = (meta["finish_reason"] or {"type": ""})["type"]
    return Answer(tuple(part["output_ids"]), part["text"], ended, seconds)
