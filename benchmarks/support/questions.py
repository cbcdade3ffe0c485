"""Held-out samples as an OpenAI client asks them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

from openai import AsyncOpenAI

from training.evaluate import Sample
from training.scenes import encode_png

MODEL = "coatcheck-default"
ANSWER_S = 120.0


def client(url: str) -> AsyncOpenAI:
    """A client that never retries: a failure is a finding."""
    return AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=ANSWER_S)


def messages(sample: Sample) -> list[Any]:
    """The sample's chat messages, images as ``data:`` URLs of PNGs."""
    images = iter(sample.images)
    converted = []
    for message in sample.messages():
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "image_url", "image_url": {"url": data_url(encode_png(next(images)))}}
                if part["type"] == "image"
                else part
                for part in content
            ]
        converted.append({"role": message["role"], "content": content})
    return converted


def data_url(png: bytes) -> str:
    """A ``data:`` URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


async def ask(openai: AsyncOpenAI, sample: Sample, **more: Any) -> str:
    """The greedy answer, not streamed."""
    completion = await openai.chat.completions.create(
        model=MODEL, messages=messages(sample), temperature=0, max_tokens=100, **more
    )
    return completion.choices[0].message.content or ""


async def ask_all(url: str, samples: Sequence[Sample], clients: int) -> list[str]:
    """Answers in order, ``clients`` requests at a time."""
    gate = asyncio.Semaphore(clients)
    async with client(url) as openai:

        async def one(sample: Sample) -> str:
            async with gate:
                return await ask(openai, sample)

        return await asyncio.gather(*[one(sample) for sample in samples])
