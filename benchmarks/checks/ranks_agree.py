"""Do 1, 2 and 4 ranks give the same answers, and right ones?

``python -m benchmarks.checks.ranks_agree [--questions 2000]``

Starts one server after the other and asks each the same held-out questions over HTTP. Prints the accuracy on each
number of ranks and how many answers differ from those of the first; exit status 1 if any does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from pathlib import Path

from benchmarks.support.questions import ask_all
from coatcheck.bench.support.server import ServerProcess
from training.evaluate import FORMS, held_out, held_out_form


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=2000, help="one image, one question")
    parser.add_argument("--forms", type=int, default=50, help="of each other form: two images, second turn, ...")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--strategy", default="dict-inline")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    samples = [
        *held_out(args.questions, args.seed),
        *itertools.chain.from_iterable(held_out_form(form, args.forms, args.seed) for form in FORMS[1:]),
    ]
    answers: dict[int, list[str]] = {}
    report: dict[str, object] = {"questions": len(samples), "seed": args.seed, "strategy": args.strategy, "ranks": {}}
    first = None
    differing = 0
    for ranks in map(int, args.ranks.split(",")):
        with ServerProcess("--tp", str(ranks), "--strategy", args.strategy) as server:
            start = time.monotonic()
            answers[ranks] = asyncio.run(ask_all(server.url, samples, args.clients))
            seconds = time.monotonic() - start
        right = sum(got.strip() == sample.answer for got, sample in zip(answers[ranks], samples, strict=True))
        first = first or ranks
        differ = sum(a != b for a, b in zip(answers[ranks], answers[first], strict=True))
        differing += differ
        print(
            f"{ranks} ranks: {right} of {len(samples)} right ({right / len(samples):.2%}), "
            f"{differ} answers differ from {first} ranks, {len(samples) / seconds:.1f} requests/s",
            flush=True,
        )
        report["ranks"] |= {ranks: {"right": right, "differ": differ, "seconds": round(seconds, 1)}}  # type: ignore[operator]
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
