"""What the SGLang plugin's metrics cost its threads: ``python -m benchmarks.micro.plugin_recording``. Needs no SGLang.

Values are written as SGLang has it, into prometheus_client's files. Beside each figure the same calls with metrics off.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial

from coatcheck.arena import Arena
from coatcheck.integrations.sglang.metrics import FrontMetrics, NoFrontMetrics, NoRankMetrics, RankMetrics

TIMES = 5_000
ARENA = 1 << 20


def request(rank: NoRankMetrics) -> None:
    """What one request adds on the scheduler's thread."""
    rank.start()
    rank.claimed([(0.001, 0.001)])


def request_and_write(rank: RankMetrics) -> None:
    """The same, and what it leaves to the thread that writes."""
    request(rank)
    rank.write()


def materialize(rank: NoRankMetrics) -> None:
    """One request, on the thread beside the scheduler's."""
    rank.materialized(0.001)


def send(front: NoFrontMetrics) -> None:
    """One request, on the event loop."""
    front.went("carried")


def lag(front: NoFrontMetrics) -> None:
    """On the event loop, ten times a second."""
    front.lag(0.001)


def show(arena: Arena, front: NoFrontMetrics) -> None:
    """On the event loop, each second in which the arena was used."""
    arena.cancel(arena.reserve(1))
    front.arena(arena.statistics(), waiting=0, aside=False)


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # before prometheus_client is imported, which is next
        from benchmarks.micro.recording import microseconds

        rank, front, arena = RankMetrics(0), FrontMetrics(), Arena(ARENA)
        off, off_front = NoRankMetrics(), NoFrontMetrics()
        for what, on, without in (
            ("scheduler's thread, a request", partial(request, rank), partial(request, off)),
            ("both, and the thread that writes", partial(request_and_write, rank), partial(request, off)),
            ("thread beside it, a request", partial(materialize, rank), partial(materialize, off)),
            ("event loop, a request", partial(send, front), partial(send, off_front)),
            ("event loop, its lag, ten times a second", partial(lag, front), partial(lag, off_front)),
            ("event loop, the arena once a second", partial(show, arena, front), partial(show, arena, off_front)),
        ):
            print(f"{what:48} {microseconds(on, TIMES):6.2f} us, off {microseconds(without, TIMES):6.2f} us")
        arena.close()


if __name__ == "__main__":
    main()
