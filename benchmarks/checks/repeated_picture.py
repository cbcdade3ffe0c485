"""What a picture costs in a conversation's later turns: ``python -m benchmarks.checks.repeated_picture [--side 448]``.

Two servers side by side, one with its embedding cache and one without, are asked the same conversations in turn, each
about a picture of its own that rides along in every turn. Prints, for each turn, the median time to the first token
and how many images each rank encoded; exit status 1 if an answer differs between the two.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import time
from collections import defaultdict
from typing import Any

import httpx
import openai
from PIL import Image

from benchmarks.support.questions import MODEL, client, data_url
from coatcheck.bench.support.server import ServerProcess
from training.scenes import encode_png, scenes

QUESTIONS = ("Describe the image.", "How many shapes are there?", "What color is the background?", "Are you sure?")
OPTIONS = ("--strategy", "dict-inline", "--arena-mib", "0")
SETTLE_S = 2.5  # until the ranks' last snapshot is in: they come once a second


async def converse(opened: openai.AsyncOpenAI, url: str, turns: int) -> tuple[list[str], list[float]]:
    """The greedy answers, and each turn's milliseconds to the first token."""
    messages: list[Any] = []
    answers, times = [], []
    for turn in range(turns):
        text = {"type": "text", "text": QUESTIONS[turn % len(QUESTIONS)]}
        picture = [] if turn else [{"type": "image_url", "image_url": {"url": url}}]
        messages.append({"role": "user", "content": [*picture, text]})
        start, first, said = time.monotonic(), 0.0, ""
        asked = opened.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=40, stream=True
        )
        async for chunk in await asked:
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.monotonic()
                said += chunk.choices[0].delta.content
        messages.append({"role": "assistant", "content": said})
        answers.append(said)
        times.append((first - start) * 1e3)
    return answers, times


async def measure(urls: dict[str, str], pictures: list[str], turns: int) -> tuple[dict[str, list[list[float]]], int]:
    """Times by server, conversation and turn, and how many answers differ. The first conversation warms up."""
    times: dict[str, list[list[float]]] = defaultdict(list)
    differing = 0
    opened = {name: client(url) for name, url in urls.items()}
    for index, picture in enumerate(pictures):
        answers = []
        for name in list(urls)[:: 1 if index % 2 else -1]:  # neither is always first
            said, took = await converse(opened[name], picture, turns)
            answers.append(said)
            if index:
                times[name].append(took)
        differing += sum(a != b for a, b in zip(*answers, strict=True))
    for one in opened.values():
        await one.close()
    return times, differing


def encoded(url: str) -> dict[str, int]:
    """Images that each rank has encoded."""
    page = httpx.get(f"{url.removesuffix('/v1')}/metrics", trust_env=False).raise_for_status().text
    found = re.findall(r'^coatcheck_images_encoded_total\{rank="(\d+)"\} (\S+)$', page, re.M)
    return {rank: round(float(value)) for rank, value in found}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=448, help="of the square picture, in pixels")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--conversations", type=int, default=10, help="and one before them to warm up")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    pictures = [
        data_url(encode_png(scene.image.resize((args.side, args.side), Image.Resampling.BICUBIC)))
        for scene in scenes(args.conversations + 1, args.seed, (448, 448))
    ]
    options = ("--tp", str(args.tp), *OPTIONS)
    with ServerProcess(*options) as cached, ServerProcess(*options, "--embedding-cache-mib", "0") as bare:
        urls = {"with the cache": cached.url, "without": bare.url}
        times, differing = asyncio.run(measure(urls, pictures, args.turns))
        time.sleep(SETTLE_S)
        images = {name: encoded(url) for name, url in urls.items()}
    print(f"{args.side}x{args.side}, {args.tp} ranks: median ms to the first token over {args.conversations} runs")
    for name, runs in times.items():
        medians = [statistics.median(turn) for turn in zip(*runs, strict=True)]
        turns = "  ".join(f"turn {number}: {median:6.0f}" for number, median in enumerate(medians, 1))
        print(f"{name:>15}  {turns}  images encoded by rank: {images[name]}")
    print(f"{differing} answers differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
