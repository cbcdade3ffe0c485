"""What SGLang's processes hold while many large pictures are in flight, with the plugin and without.

``python -m benchmarks.sglang.memory [--requests 256] [--running 16] [--json FILE]``

Starts one real SGLang server after the other with ranks on the CPU (see ``tests/sglang/README.md``). Each is asked
about that many different pictures of 1024 x 1024 pixels at once (1,369 tokens, 25.8 MB of features each), with answers
so long that none ends meanwhile. Its key-value cache has room for ``--running`` of them; the others wait in the
schedulers' queues, with their pixels. Memory is looked at every two seconds, every page counted once
(``benchmarks.support.footprint``): before anything is asked; when the schedulers have all requests; at the end, half a
minute after that and after so many run; and once all are aborted. Stops before the machine runs out of memory.
Exit status 1 if the plugin's peak or end is more than 0.7 of SGLang's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil

from benchmarks.sglang.questions import Client, several
from benchmarks.sglang.server import PEERS, SglangServer
from benchmarks.support.documents import ROOT
from benchmarks.support.footprint import Footprint, footprint, segment_names
from coatcheck.bench.support.environment import environment
from coatcheck.bench.support.files import SCHEMA, check_writable, write_json

SIDE = 1024
PROMPT_TOKENS = 1500  # a picture's 1,369 and the question, rounded up
ANSWER_TOKENS = 4000  # two minutes and more
EVERY_S, HOLD_S, AFTER_S = 2.0, 30.0, 15.0
FLOOR = 2 << 30  # bytes that the machine keeps
GOAL = 0.7
STAGES = ("idle", "all sent", "peak", "end", "after")


class Sample(msgspec.Struct, frozen=True):
    """One look."""

    seconds: float  # since the first request was asked; negative before
    footprint: Footprint
    available: int  # bytes, of the machine
    running: int | None  # requests, as SGLang counts them; None where it did not answer
    waiting: int | None
    answered: int  # requests that ended, one way or another

    def sent(self, requests: int) -> bool:
        """Whether all are with the schedulers. SGLang counts the one whose prefill is under way nowhere."""
        return self.running is not None and self.running + (self.waiting or 0) >= requests - 1


class Run(msgspec.Struct, frozen=True):
    """Of one server."""

    contender: str
    requests: int
    samples: list[Sample]
    stopped: str  # why it ended
    log: list[str]  # the plugin's lines
    after: Sample | None = None  # when all have been aborted

    def stage(self, name: str) -> Sample | None:
        """The sample that stands for it: of several the one of median size. None if it was not reached."""
        after = [sample for sample in self.samples if sample.seconds >= 0]
        if name == "idle":
            return _median([sample for sample in self.samples if sample.seconds < 0])
        if name == "after":
            return self.after
        if name == "peak":
            return max(after, key=lambda sample: sample.footprint.total)
        if name == "all sent":
            return next((sample for sample in after if sample.sent(self.requests)), None)
        held = [sample for sample in after if not sample.answered] or after
        return _median([sample for sample in held if sample.seconds >= held[-1].seconds - HOLD_S])

    def total(self, name: str) -> int:
        """Bytes at a stage that every run has."""
        sample = self.stage(name)
        assert sample is not None, name
        return sample.footprint.total


class Load(msgspec.Struct, frozen=True):
    """What is asked, and until when."""

    requests: int
    running: int  # of them, at the end
    limit_s: float


class Report(msgspec.Struct):
    """What is kept."""

    schema: int
    environment: dict[str, Any]
    load: Load
    runs: list[Run]


def _median(samples: Sequence[Sample]) -> Sample:
    total = statistics.median_low(sample.footprint.total for sample in samples)
    return next(sample for sample in samples if sample.footprint.total == total)


async def measure(server: SglangServer, contender: str, load: Load, before: frozenset[str]) -> Run:
    """Asks all and looks on."""
    pictures = list(several(1, load.requests, 41, SIDE, SIDE))
    async with Client(server.url, answer_s=load.limit_s + 120, connections=None) as opened:
        for warming in several(1, 3, 42, SIDE, SIDE):
            await opened.ask(warming)
        samples: list[Sample] = []
        start, asked = time.monotonic() + 60, list[asyncio.Task[Any]]()

        async def look() -> Sample:
            """At it."""
            running, waiting = await _loads(opened)
            found = await asyncio.to_thread(lambda: footprint(server.family(), before))
            seconds, free = time.monotonic() - start, psutil.virtual_memory().available
            ended = sum(task.done() for task in asked)
            return Sample(round(seconds, 1), found, free, running, waiting, ended)

        for _ in range(5):
            samples.append(await look())
            await asyncio.sleep(EVERY_S)
        start = time.monotonic()
        sampling: dict[str, Any] = {"max_new_tokens": ANSWER_TOKENS, "ignore_eos": True}
        asked += [asyncio.create_task(opened.ask(picture, **sampling)) for picture in pictures]
        stopped, until = "", load.limit_s
        while not stopped:
            await asyncio.sleep(EVERY_S)
            samples.append(sample := await look())
            if sample.sent(load.requests) and (sample.running or 0) >= load.running:
                until = min(until, sample.seconds + HOLD_S)
            if sample.available < FLOOR:
                stopped = f"the machine had less than {FLOOR >> 20} MiB left"
            elif sample.answered:
                stopped = f"{sample.answered} requests ended"
            elif sample.seconds >= until:
                stopped = "all was there" if until < load.limit_s else f"{load.limit_s:g} s were over"
            print(f"{contender}: {_line(sample)}", file=sys.stderr, flush=True)
        print(f"{contender}: stopped, as {stopped}", file=sys.stderr, flush=True)
        await opened.abort(everything=True)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.sleep(AFTER_S)
        after = await look()
        print(f"{contender}: {AFTER_S:g} s after: {_line(after)}", file=sys.stderr, flush=True)
    said = [line for line in server.log if "coatcheck" in line]
    return Run(contender, load.requests, samples, stopped, said, after)


async def _loads(opened: Client) -> tuple[int, int] | tuple[None, None]:
    """Running and waiting requests."""
    with contextlib.suppress(httpx.HTTPError):
        response = await opened.http.get("/v1/loads", timeout=EVERY_S)
        if response.is_success:
            (load,) = response.json()["loads"]
            return load["num_running_reqs"], load["num_waiting_reqs"]
    return None, None


def _line(sample: Sample) -> str:
    counts = f"{sample.running} running, {sample.waiting} waiting" if sample.running is not None else "no word of it"
    return f"{sample.seconds:5.0f} s, {sample.footprint.total / 1e9:6.2f} GB, {counts}, {sample.answered} ended"


def run_one(plugin: bool, load: Load, peers: Path) -> Run:
    """Starts the server, measures, ends it at once. No other server may run beside it: its segments would count."""
    tokens = max(load.running * (PROMPT_TOKENS + ANSWER_TOKENS), 32768)
    options = ("--max-total-tokens", str(tokens), "--max-running-requests", str(load.requests))
    before = segment_names()
    contender = "with the plugin" if plugin else "without"
    with SglangServer(*options, plugin=plugin, peers=peers) as server:
        found = asyncio.run(measure(server, contender, load, before))
        server.kill()
        return found


def table(runs: Sequence[Run]) -> str:
    """GB by stage, as Markdown; below it the parts at the end."""
    lines = [["GB", *STAGES, "at the end: running / waiting", "tokenizer", "schedulers", "shared memory"]]
    lines.append(["---", *["---:"] * (len(lines[0]) - 1)])
    for run in runs:
        found = [run.stage(name) for name in STAGES]
        end = run.stage("end")
        assert end is not None
        parts = [end.footprint.pss.get("tokenizer", 0), end.footprint.pss.get("scheduler", 0), end.footprint.shared]
        sizes = ["-" if sample is None else f"{sample.footprint.total / 1e9:.2f}" for sample in found]
        lines.append([run.contender, *sizes, f"{end.running} / {end.waiting}", *(f"{x / 1e9:.2f}" for x in parts)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ratios(runs: Sequence[Run]) -> dict[str, float]:
    """With the plugin to without, at its peak and at the end, of all and of what is beyond idle; empty if one lacks."""
    by = {run.contender: run for run in runs}
    if len(by) < 2:
        return {}
    found = {}
    for name in ("peak", "end"):
        whole, idle = (
            [by[contender].total(stage) for contender in ("with the plugin", "without")] for stage in (name, "idle")
        )
        found[name] = whole[0] / whole[1]
        found[f"{name}, beyond idle"] = (whole[0] - idle[0]) / (whole[1] - idle[1])
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--running", type=int, default=16, help="requests that the key-value cache has room for")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds, of each server")
    parser.add_argument("--only", choices=("with", "without"))
    parser.add_argument("--json", type=Path, help="docs/benchmarks/sglang/memory-COMMIT.json.gz if not given")
    parser.add_argument("--peers", type=Path, default=PEERS, help="where 'make test-sglang' puts SGLang's environment")
    args = parser.parse_args()
    about = environment()
    path = args.json or ROOT / f"docs/benchmarks/sglang/memory-{about['commit'].rstrip('+')[:7]}.json.gz"
    check_writable(path)
    plugins = [plugin for plugin in (False, True) if args.only in (None, "with" if plugin else "without")]
    load = Load(args.requests, min(args.running, args.requests), args.limit)
    runs = [run_one(plugin, load, args.peers) for plugin in plugins]
    write_json(Report(SCHEMA, about, load, runs), path)
    print(table(runs), end="")
    found = ratios(runs)
    for name, ratio in found.items():
        print(f"with the plugin to without, {name}: {ratio:.2f}")
    return 1 if found and max(found["peak"], found["end"]) > GOAL else 0


if __name__ == "__main__":
    sys.exit(main())
