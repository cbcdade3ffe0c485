"""SGLang with an arena that is far too small, against SGLang without the plugin, under the same load in turns.

``python -m benchmarks.sglang.small_arena [--arena-mib 8] [--rounds 6] [--json FILE]``

Two real SGLang servers with ranks on the CPU are up at once (see ``tests/sglang/README.md``); the one that is not asked
sleeps, and what it takes of the cores is measured. In each round both are asked the same held-out questions by 16
clients, in turns, about pictures of 112 to 1024 pixels that neither has seen: the features of the largest are three
times the arena. Prints requests per second, their ratio round by round, wrong answers, and the ways that requests took.
Exit status 1 if the median ratio is below 0.95, or if answers are wrong that are right without the plugin.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.sglang.questions import SIDES, Client
from benchmarks.sglang.server import PEERS, SglangServer
from benchmarks.support.documents import ROOT
from coatcheck.bench.support.environment import environment
from coatcheck.bench.support.files import SCHEMA, check_writable, write_json
from training.evaluate import Sample, held_out

CLIENTS, REQUESTS = 16, 48  # the latter of each server in each round
ANSWER_S = 300.0
GOAL = 0.95
PLUGIN, WITHOUT = "with the plugin", "without"
WAYS = "coatcheck_sglang_requests"  # by the way that they took


class Round(msgspec.Struct, frozen=True):
    """One server's part of a round."""

    number: int
    contender: str
    seconds: float
    latencies: list[float]  # s, in the order in which they were asked
    wrong: list[int]  # which answers were not the right ones
    errors: dict[str, int]  # by kind
    idle_cpu: float  # cores that the other server took meanwhile
    load_average: float

    @property
    def per_second(self) -> float:
        """Requests answered."""
        return len(self.latencies) / self.seconds


class Report(msgspec.Struct):
    """What is kept."""

    schema: int
    environment: dict[str, Any]
    arena_mib: int
    clients: int
    requests: int
    rounds: list[Round]
    ways: dict[str, float]  # requests that came with pictures, by the way that they took


async def ask(opened: Client, samples: Sequence[Sample]) -> tuple[float, list[float], list[int], Counter[str]]:
    """By all clients: how long it took, latencies, wrong answers, errors."""
    waiting = iter(enumerate(samples))
    latencies, wrong, errors = list[float](), list[int](), Counter[str]()

    async def client() -> None:
        for number, sample in waiting:
            try:
                (answer,) = await opened.ask(sample)
            except httpx.HTTPError as error:
                errors[type(error).__name__] += 1
                continue
            latencies.append(round(answer.seconds, 4))
            if answer.text != sample.answer:
                wrong.append(number)

    start = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return time.monotonic() - start, latencies, sorted(wrong), errors


def cpu_seconds(server: SglangServer) -> float:
    """Of all its processes, so far."""
    total = 0.0
    for process in server.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def questions(number: int) -> list[Sample]:
    """A round's."""
    return list(held_out(REQUESTS, 500 + number, SIDES, ("describe", "count")))


async def measure(servers: dict[str, SglangServer], rounds: int) -> list[Round]:
    """In turns; who is first alternates. Round 0 warms up and is not kept."""
    found: list[Round] = []
    async with contextlib.AsyncExitStack() as stack:
        opened = {
            name: await stack.enter_async_context(Client(server.url, answer_s=ANSWER_S))
            for name, server in servers.items()
        }
        for number in range(rounds + 1):
            order = list(servers) if number % 2 else list(reversed(servers))
            for name in order:
                (other,) = [server for other, server in servers.items() if other != name]
                before = cpu_seconds(other)
                seconds, latencies, wrong, errors = await ask(opened[name], questions(number))
                idle = (cpu_seconds(other) - before) / seconds
                load = psutil.getloadavg()[0]
                one = Round(number, name, seconds, latencies, wrong, dict(errors), round(idle, 4), load)
                print(f"round {number}, {name}: {_words(one)}", file=sys.stderr, flush=True)
                found += [one] if number else []
    return found


def _words(one: Round) -> str:
    return (
        f"{one.per_second:.2f} requests/s, {len(one.wrong)} wrong, {sum(one.errors.values())} errors, "
        f"the other server took {one.idle_cpu:.2f} cores"
    )


def ways(server: SglangServer) -> dict[str, float]:
    """From the server's metrics."""
    text = httpx.get(f"{server.url}/metrics", timeout=10).raise_for_status().text
    families = [family for family in text_string_to_metric_families(text) if family.name == WAYS]
    samples = [sample for family in families for sample in family.samples if sample.name == f"{WAYS}_total"]
    return {", ".join(sample.labels.values()): sample.value for sample in samples}


def ratios(rounds: Sequence[Round]) -> list[float]:
    """With the plugin to without, of requests per second, round by round."""
    by = {(one.number, one.contender): one.per_second for one in rounds}
    return [by[number, PLUGIN] / by[number, WITHOUT] for number in sorted({one.number for one in rounds})]


def table(rounds: Sequence[Round]) -> str:
    """As Markdown."""
    lines = [["server", "requests/s", "p50 s", "p99 s", "wrong", "errors", "cores while it sleeps"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for name in (WITHOUT, PLUGIN):
        own = [one for one in rounds if one.contender == name]
        rates = [one.per_second for one in own]
        latencies = statistics.quantiles([latency for one in own for latency in one.latencies], n=100)
        asleep = statistics.median(one.idle_cpu for one in rounds if one.contender != name)
        spread = f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})"
        wrong, errors = sum(len(one.wrong) for one in own), sum(sum(one.errors.values()) for one in own)
        lines.append(
            [name, spread, f"{latencies[49]:.1f}", f"{latencies[98]:.1f}", str(wrong), str(errors), f"{asleep:.2f}"]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def worse(rounds: Sequence[Round]) -> list[tuple[int, int]]:
    """Round and number of each answer that only the plugin's server had wrong."""
    by = {(one.number, one.contender): set(one.wrong) for one in rounds}
    return [(n, k) for n, name in by if name == PLUGIN for k in sorted(by[n, PLUGIN] - by[n, WITHOUT])]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arena-mib", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path, help="docs/benchmarks/sglang/small-arena-COMMIT.json.gz if not given")
    parser.add_argument("--peers", type=Path, default=PEERS, help="where 'make test-sglang' puts SGLang's environment")
    args = parser.parse_args()
    about = environment()
    path = args.json or ROOT / f"docs/benchmarks/sglang/small-arena-{about['commit'].rstrip('+')[:7]}.json.gz"
    check_writable(path)
    options = ("--enable-metrics", "--sleep-on-idle")
    setting = {"COATCHECK_SGLANG_ARENA_MIB": str(args.arena_mib)}
    with (
        SglangServer(*options, plugin=False, peers=args.peers) as without,
        SglangServer(*options, environment=setting, peers=args.peers) as ours,
    ):
        rounds = asyncio.run(measure({WITHOUT: without, PLUGIN: ours}, args.rounds))
        report = Report(SCHEMA, about, args.arena_mib, CLIENTS, REQUESTS, rounds, ways(ours))
    write_json(report, path)
    print(table(rounds), end="")
    found = ratios(rounds)
    print(f"with the plugin to without: {statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})")
    print("ways:", ", ".join(f"{way} {count:g}" for way, count in report.ways.items()))
    print("wrong with the plugin only (round, question):", worse(rounds) or "none")
    errors = sum(sum(one.errors.values()) for one in rounds)
    return 1 if statistics.median(found) < GOAL or worse(rounds) or errors else 0


if __name__ == "__main__":
    sys.exit(main())
