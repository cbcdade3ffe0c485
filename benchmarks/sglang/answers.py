"""Does SGLang say the same with the plugin and without? ``python -m benchmarks.sglang.answers [--control]``.

Starts one real SGLang server after the other, with ranks on the CPU (see ``tests/sglang/README.md``), and asks each the
same questions, one at a time. Prints how long each took to start, to answer first, and to answer questions of each kind
(medians), and how many answers were right and had other tokens than the first server's. Exit status 1 if any had.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path

from benchmarks.sglang.questions import Answers, ask_one_by_one, questions
from benchmarks.sglang.server import PEERS, SglangServer


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=PEERS, help="where 'make test-sglang' puts SGLang's environment")
    parser.add_argument("--control", action="store_true", help="both servers without: do tokens repeat at all?")
    args = parser.parse_args()
    requests = questions(args.seed)
    first: Answers | None = None
    faults = 0
    for plugin in (False, not args.control):
        with SglangServer(ranks=args.ranks, plugin=plugin, peers=args.peers) as server:
            answers = asyncio.run(ask_one_by_one(server.url, requests))
        first = first or answers
        warming = next(iter(answers.values()))[0][0].seconds
        name = "with the plugin" if plugin else "without the plugin"
        print(f"{name}: ready after {server.start_s:.0f} s, first answer after {warming:.1f} s")
        for kind, samples in requests.items():
            pairs = [pair for of, got in zip(samples, answers[kind], strict=True) for pair in zip(of, got, strict=True)]
            right = sum(answer.text == sample.answer for sample, answer in pairs)
            theirs = [answer.ids for got in first[kind] for answer in got]
            differ = sum(answer.ids != ids for (_, answer), ids in zip(pairs, theirs, strict=True))
            seconds = statistics.median(got[0].seconds for got in answers[kind])
            print(f"  {kind}: {right} of {len(pairs)} right, {differ} differ, {seconds:.2f} s a request", flush=True)
            faults += differ
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
