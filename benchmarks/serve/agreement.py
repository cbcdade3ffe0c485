"""``coatcheck bench serve`` beside the public load clients, on the same work: do they see the same server?

One ``coatcheck serve`` with two ranks, and in each round, in turn: this project's client, SGLang's
(``sglang.bench_serving``) and vLLM's (``vllm bench serve``), from the environments that ``make peers`` builds. Each
keeps so many requests under way, each request with one picture of uniform noise; answers go on to their limit
(``ignore_eos``) and nothing runs beside. The public clients send a number of requests and divide by the time until the
last has ended; ours counts what ends in a window of about as long.

SGLang's client imports ``datasets`` for data that is not used here, and its environment has none: it gets an empty
module of that name.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.measure import measure
from coatcheck.bench.serve.result import Report, Run, Tail
from coatcheck.bench.support.cells import number, spread
from coatcheck.bench.support.environment import environment
from coatcheck.bench.support.files import SCHEMA, write_json
from coatcheck.bench.support.server import ServerProcess
from coatcheck.bench.support.turns import rotated
from coatcheck.engine.model.config import DEFAULT_MODEL

MODEL_NAME = str(DEFAULT_MODEL)  # both clients look there for the tokenizer
TEXT_TOKENS = 8  # of a prompt, beside the picture's
QUALITY = 80  # of our noise: SGLang's client takes 85, vLLM's 75
CLIENT_S = 300.0
FIGURES = ("requests/s", "latency p50, ms", "first text p50, ms", "tokens per request")

_SGLANG = (
    "import runpy, sys, types; m = types.ModuleType('datasets'); m.load_dataset = None; sys.modules['datasets'] = m; "
    "runpy.run_module('sglang.bench_serving', run_name='__main__', alter_sys=True)"
)


class Work(NamedTuple):
    """What each client asks of the server."""

    url: str
    clients: int
    requests: int
    side: int
    output_tokens: int
    peers: Path
    seed: int  # another for each turn: no picture twice


class Client(NamedTuple):
    """Its name, and what makes it run once: a run as ``coatcheck bench serve`` would write it."""

    name: str
    run: Callable[[Work, int], Run]


def ours(work: Work, number_: int) -> Run:
    """With a window of about as many requests."""
    with tempfile.TemporaryDirectory() as directory:
        rng = np.random.default_rng(work.seed)
        for at in range(2 * work.requests):
            noise = rng.integers(0, 256, (work.side, work.side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(Path(directory) / f"{at:05}.jpeg", quality=QUALITY)
        load = Load(
            clients=work.clients,
            side=work.side,
            directory=Path(directory),
            output_tokens=work.output_tokens,
            text_streams=0,
            probe_s=0.0,
            health_s=0.0,
            ramp_s=2.0,
            window_s=WINDOW_S,
        )
        return asyncio.run(measure(work.url, load, contender="coatcheck bench serve", round=number_))


def sglang(work: Work, number_: int) -> Run:
    """``python -m sglang.bench_serving``."""
    with tempfile.TemporaryDirectory() as directory:
        written = Path(directory) / "result.jsonl"
        options = {
            "--backend": "sglang-oai-chat",
            "--base-url": work.url.removesuffix("/v1"),
            "--model": MODEL_NAME,
            "--dataset-name": "image",
            "--image-count": 1,
            "--image-resolution": f"{work.side}x{work.side}",
            "--random-input-len": TEXT_TOKENS,
            "--random-output-len": work.output_tokens,
            "--random-range-ratio": 1,
            "--num-prompts": work.requests,
            "--max-concurrency": work.clients,
            "--seed": work.seed,
            "--output-file": written,
        }
        _client([work.peers / "sglang/bin/python", "-c", _SGLANG], options)
        said = json.loads(written.read_text())
    return _run("sglang.bench_serving", work, number_, said, "median_e2e_latency_ms")


def vllm(work: Work, number_: int) -> Run:
    """``vllm bench serve``."""
    with tempfile.TemporaryDirectory() as directory:
        options = {
            "--backend": "openai-chat",
            "--base-url": work.url.removesuffix("/v1"),
            "--endpoint": "/v1/chat/completions",
            "--model": MODEL_NAME,
            "--dataset-name": "random-mm",
            "--random-mm-base-items-per-request": 1,
            "--random-mm-num-mm-items-range-ratio": 0,
            "--random-mm-limit-mm-per-prompt": '{"image": 1, "video": 0}',
            "--random-mm-bucket-config": f"{{({work.side}, {work.side}, 1): 1.0}}",
            "--random-input-len": TEXT_TOKENS,
            "--random-output-len": work.output_tokens,
            "--num-prompts": work.requests,
            "--max-concurrency": work.clients,
            "--seed": work.seed,
            "--percentile-metrics": "ttft,tpot,itl,e2el",
            "--result-dir": directory,
            "--result-filename": "result.json",
        }
        _client([work.peers / "vllm/bin/vllm", "bench", "serve", "--ignore-eos", "--save-result"], options)
        said = json.loads((Path(directory) / "result.json").read_text())
    return _run("vllm bench serve", work, number_, said, "median_e2el_ms")


WINDOW_S = 15.0
CLIENTS = [
    Client("coatcheck bench serve", ours),
    Client("sglang.bench_serving", sglang),
    Client("vllm bench serve", vllm),
]


def _client(command: list[Any], options: dict[str, Any]) -> None:
    words = [str(word) for word in (*command, *(word for option in options.items() for word in option))]
    environment_ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, env=environment_, capture_output=True, text=True, timeout=CLIENT_S, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with status {done.returncode}: {done.stdout[-500:]}{done.stderr[-2000:]}")


def _run(contender: str, work: Work, number_: int, said: dict[str, Any], latency: str) -> Run:
    failed = work.requests - said["completed"]
    return Run(
        contender=contender,
        round=number_,
        tp=2,
        clients=work.clients,
        images=1,
        side=work.side,
        output_tokens=work.output_tokens,
        requests_per_s=said["request_throughput"],
        latency_ms=Tail(said[latency], said.get("p99_e2el_ms") or said["p99_e2e_latency_ms"]),
        ttft_ms=Tail(said["median_ttft_ms"], said["p99_ttft_ms"]),
        text_gap_ms=None,
        probe_ms=None,
        health_ms=None,
        errors={"failed": failed} if failed else {},
        tokens_expected=work.output_tokens * said["completed"],
        tokens_received=said.get("total_output_tokens", 0),
        samples={},
    )


def figures(run: Run) -> tuple[float, ...]:
    """In order of FIGURES."""
    assert run.latency_ms is not None and run.ttft_ms is not None, run.errors
    tokens = run.tokens_received / max(1, run.tokens_expected) * run.output_tokens
    return run.requests_per_s, run.latency_ms.p50, run.ttft_ms.p50, tokens


def markdown(runs: list[Run]) -> str:
    """Medians of rounds, the smallest and the largest, and ratios to our own of the same round."""
    mine = {run.round: figures(run) for run in runs if run.contender == CLIENTS[0].name}
    lines = [["", *FIGURES], ["---", *["---:"] * len(FIGURES)]]
    for client in CLIENTS:
        found = {run.round: figures(run) for run in runs if run.contender == client.name}
        lines.append([client.name, *(_shown([of[at] for of in found.values()]) for at in range(len(FIGURES)))])
        if client is not CLIENTS[0]:
            ratios = [[found[r][at] / mine[r][at] for r in found] for at in range(len(FIGURES))]
            lines.append(["… to ours", *(f"× {_shown(of)}" for of in ratios)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(values: list[float]) -> str:
    return spread(statistics.median(values), (min(values), max(values))) if values else number(0)


def main() -> None:
    """Prints the table as Markdown; ``--json`` keeps the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("clients", 4), ("requests", 120), ("side", 448), ("output-tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    before, runs = environment(), []
    with ServerProcess("--tp", "2", "--model-name", MODEL_NAME) as server:
        for number_ in range(args.rounds + 1):  # round 0 warms up and does not count
            for turn, name in enumerate(rotated([client.name for client in CLIENTS], number_)):
                client = next(one for one in CLIENTS if one.name == name)
                seed = 1000 * number_ + turn
                requests = args.clients if number_ == 0 else args.requests
                work = Work(server.url, args.clients, requests, args.side, args.output_tokens, args.peers, seed)
                run = client.run(work, number_)
                print(number_, name, *map(number, figures(run)), run.errors or "", file=sys.stderr)
                if number_:
                    runs.append(run)
    print(markdown(runs))
    if args.json:
        options = {name.replace("-", "_"): str(value) for name, value in vars(args).items()}
        write_json(Report(SCHEMA, before, options, runs), args.json)


if __name__ == "__main__":
    main()
