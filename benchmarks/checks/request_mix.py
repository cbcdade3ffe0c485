"""A mix of requests from many clients at once, under each strategy: ``python -m benchmarks.checks.request_mix``.

Text, one image, two images, streaming, clients that leave in the middle, bad input. Every answer is compared with
what ``model.generate()`` says alone. Prints what happened by kind; exit status 1 on a wrong answer, a failure, a
hang, or anything left after SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import openai

from benchmarks.support.questions import MODEL, ask, client, data_url, messages
from coatcheck.bench.support.server import ServerProcess
from coatcheck.engine.strategies.table import NAMES
from training.evaluate import DEFAULT_MODEL, Generator, Sample, held_out, held_out_form

HANG_S = 60.0  # no request may take longer

BAD: tuple[dict[str, Any], ...] = (
    {"messages": []},
    {"messages": [{"role": "robot", "content": "hi"}]},
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": -1},
    {"messages": [{"role": "user", "content": "hi " * 20_000}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(b"no image")}}]}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}
        ]
    },
)


@dataclass
class Tally:
    """What happened."""

    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


class Mix:
    """``samples`` and their expected answers, asked in every way by each of the clients."""

    def __init__(self, samples: list[Sample], expected: list[str], seed: int) -> None:
        self.pairs = list(zip(samples, expected, strict=True))
        self.seed = seed

    async def run(self, url: str, clients: int, seconds: float) -> Tally:
        """All clients at once for that time; what is under way then is waited for."""
        tally = Tally()
        until = time.monotonic() + seconds
        async with client(url) as opened:
            await asyncio.gather(*[self._client(opened, index, until, tally) for index in range(clients)])
        return tally

    async def _client(self, opened: openai.AsyncOpenAI, index: int, until: float, tally: Tally) -> None:
        rng = random.Random(f"{self.seed} {index}")
        while time.monotonic() < until:
            sample, expected = rng.choice(self.pairs)
            way = rng.choices(("plain", "stream", "leave", "bad"), (5, 3, 1, 1))[0]
            kind = f"{len(sample.images)} images, {way}"
            start = time.monotonic()
            try:
                async with asyncio.timeout(HANG_S):
                    fault = await getattr(self, f"_{way}")(opened, sample, expected, rng)
            except TimeoutError:
                fault = "a hang"
            except openai.OpenAIError as error:
                fault = f"{type(error).__name__}: {error}"
            tally.done[kind] += 1
            tally.latencies.append(time.monotonic() - start)
            if fault:
                tally.faults.append(f"{kind}: {fault}")

    async def _plain(self, opened: openai.AsyncOpenAI, sample: Sample, expected: str, _: random.Random) -> str:
        answer = await ask(opened, sample)
        return "" if answer == expected else f"{sample.question!r} answered {answer!r}, alone {expected!r}"

    async def _stream(self, opened: openai.AsyncOpenAI, sample: Sample, expected: str, _: random.Random) -> str:
        stream = await opened.chat.completions.create(
            model=MODEL, messages=messages(sample), temperature=0, max_tokens=100, stream=True
        )
        answer = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        return "" if answer == expected else f"{sample.question!r} answered {answer!r}, alone {expected!r}"

    async def _leave(self, opened: openai.AsyncOpenAI, sample: Sample, _: str, rng: random.Random) -> str:
        """Hangs up at a random moment: before, during or after the answer."""
        try:
            async with asyncio.timeout(rng.expovariate(5)):
                await ask(opened, sample)
        except TimeoutError:
            pass
        return ""

    async def _bad(self, opened: openai.AsyncOpenAI, _: Sample, __: str, rng: random.Random) -> str:
        body = rng.choice(BAD)
        try:
            await opened.chat.completions.create(model=MODEL, **body)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return "" if error.body else "an error without a body"
        return f"accepted {str(body)[:80]}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategies", default=",".join(NAMES))
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--samples", type=int, default=60, help="of each of: text, one image, two images")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    samples = [
        *held_out(args.samples, args.seed),
        *held_out_form("two-images", args.samples, args.seed),
        *held_out_form("chat", args.samples, args.seed),
    ]
    mix = Mix(samples, Generator(DEFAULT_MODEL, batch=1)(samples), args.seed)
    faults = 0
    for strategy in args.strategies.split(","):
        with ServerProcess("--tp", str(args.tp), "--strategy", strategy) as server:
            processes = server.family()
            tally = asyncio.run(mix.run(server.url, args.clients, args.seconds))
            status = server.stop()
            tally.faults += [f"exit status {status}"] if status else []
            tally.faults += [f"{process} still runs" for process in processes if process.is_running()]
            tally.faults += [f"{path} was left behind" for path in sorted(server.left_behind())]
        latencies = sorted(tally.latencies)
        print(
            f"{strategy}: {sum(tally.done.values())} requests from {args.clients} clients in {args.seconds:g} s, "
            f"latency p50 {latencies[len(latencies) // 2]:.2f} s, longest {latencies[-1]:.2f} s, "
            f"{len(tally.faults)} faults"
        )
        for kind, count in sorted(tally.done.items()):
            print(f"  {kind}: {count}")
        for fault in tally.faults[:20]:
            print(f"  FAULT {fault}")
        sys.stdout.flush()
        faults += len(tally.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
