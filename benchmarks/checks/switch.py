"""Is a request lost when the default strategy is switched under load?

``python -m benchmarks.checks.switch [--switches 10]``

Clients ask held-out questions without pause while PUT /admin/strategy goes round all strategies. Every answer is
compared with what ``model.generate()`` says alone, and the server's counts with the clients'. Prints each switch and
how many requests each strategy served; exit status 1 if a request was lost, failed or was answered wrongly, or if a
strategy that was switched to served none.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.support.questions import ask, client
from coatcheck.bench.support.server import ServerProcess
from coatcheck.engine.config import ADMIN_TOKEN
from coatcheck.engine.strategies.table import NAMES
from training.evaluate import DEFAULT_MODEL, Generator, Sample, held_out, held_out_form

START = "dict-inline"  # the server's first default
SWITCH_S = 30.0  # an answer to PUT, on a host with more clients than cores
AFTER_FAILURE_S = 0.1  # so that a server that is gone is not asked a million times


@dataclass
class Tally:
    """What the clients saw."""

    submitted: int = 0
    answered: int = 0
    failed: int = 0
    faults: list[str] = field(default_factory=list)  # failures and wrong answers
    latencies: list[float] = field(default_factory=list)

    @property
    def under_way(self) -> int:
        return self.submitted - self.answered - self.failed


async def keep_asking(
    opened: openai.AsyncOpenAI, pairs: Sequence[tuple[Sample, str]], seed: str, tally: Tally, enough: asyncio.Event
) -> None:
    """One client: the next question as soon as the last is answered."""
    rng = random.Random(seed)
    while not enough.is_set():
        sample, expected = rng.choice(pairs)
        tally.submitted += 1
        start = time.monotonic()
        try:
            answer = await ask(opened, sample)
        except openai.OpenAIError as error:
            tally.failed += 1
            tally.faults.append(f"{sample.question!r}: {type(error).__name__}: {error}")
            await asyncio.sleep(AFTER_FAILURE_S)
            continue
        tally.answered += 1
        tally.latencies.append(time.monotonic() - start)
        if answer != expected:
            tally.faults.append(f"{sample.question!r} answered {answer!r}, alone {expected!r}")


async def switch(http: httpx.AsyncClient, name: str, number: int, tally: Tally) -> None:
    """One switch, with a line about it. Raises httpx.HTTPError if it is refused."""
    before = (await http.get("/admin/strategy")).raise_for_status().json()["strategy"]
    under_way, start = tally.under_way, time.monotonic()
    after = (await http.put("/admin/strategy", json={"strategy": name})).raise_for_status().json()["strategy"]
    seconds = time.monotonic() - start
    print(f"switch {number}: {before} -> {after}, {under_way} requests under way, {seconds * 1e3:.0f} ms", flush=True)
    if after != name:
        tally.faults.append(f"switch {number} to {name} left {after}")


async def run(
    url: str, token: str, pairs: Sequence[tuple[Sample, str]], targets: Sequence[str], clients: int, every_s: float
) -> Tally:
    """All clients at once, through all switches; what is under way after the last one's time is waited for."""
    tally, enough = Tally(), asyncio.Event()
    headers = {"Authorization": f"Bearer {token}"}
    root = url.removesuffix("/v1")
    async with client(url) as opened, httpx.AsyncClient(base_url=root, headers=headers, timeout=SWITCH_S) as http:
        asking = [
            asyncio.create_task(keep_asking(opened, pairs, f"{index}", tally, enough)) for index in range(clients)
        ]
        try:
            await asyncio.sleep(every_s)
            for number, name in enumerate(targets, 1):
                await switch(http, name, number, tally)
                await asyncio.sleep(every_s)
        finally:
            enough.set()
            await asyncio.gather(*asking)
    return tally


def served(url: str) -> Counter[tuple[str, str]]:
    """The server's own count of requests, by outcome and strategy."""
    page = httpx.get(f"{url.removesuffix('/v1')}/metrics").raise_for_status().text
    counts: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "coatcheck_requests_total":
                counts[sample.labels["outcome"], sample.labels["strategy"]] = round(sample.value)
    return counts


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--switches", type=int, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between switches")
    parser.add_argument("--samples", type=int, default=60, help="of each of: one image, two images, text")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()

    samples = [
        *held_out(args.samples, args.seed),
        *held_out_form("two-images", args.samples, args.seed),
        *held_out_form("chat", args.samples, args.seed),
    ]
    pairs = list(zip(samples, Generator(DEFAULT_MODEL, batch=1)(samples), strict=True))
    targets = list(itertools.islice(itertools.cycle(NAMES), args.switches))
    token = secrets.token_urlsafe()
    options = ("--tp", str(args.tp), "--strategy", START)
    with ServerProcess(*options, environment={ADMIN_TOKEN: token}) as server:
        tally = asyncio.run(run(server.url, token, pairs, targets, args.clients, args.every))
        counts = served(server.url)
    latencies = sorted(tally.latencies) or [0.0]
    ok = {name: counts["ok", name] for name in NAMES}
    for name, count in ok.items():
        print(f"{name}: {count} requests served")
    other = {key: count for key, count in counts.items() if key[0] != "ok" and count}
    wrong = len(tally.faults) - tally.failed
    print(
        f"{tally.submitted} submitted, {tally.answered} answered ({sum(ok.values())} by the server's count), "
        f"{tally.failed} failed, {wrong} wrong; "
        f"latency p50 {latencies[len(latencies) // 2]:.2f} s, longest {latencies[-1]:.2f} s"
    )
    if not tally.submitted == tally.answered == sum(ok.values()):
        tally.faults.append("requests were lost")
    tally.faults += [f"{count} requests ended as {outcome} under {name}" for (outcome, name), count in other.items()]
    tally.faults += [f"{name} served nothing" for name in sorted(set(targets)) if not ok[name]]
    for fault in tally.faults[:20]:
        print(f"  FAULT {fault}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
