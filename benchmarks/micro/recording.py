"""What a rank's own metrics cost: ``python -m benchmarks.micro.recording``.

Times the calls that one step and one request make of the recorder, and a snapshot as the telemetry thread takes and
encodes it, each with every strategy's histograms filled. Exit status 1 if a step's calls cost 1 % of a millisecond or
more: no step of an engine is shorter than that (the null runner's takes 1 to 2 ms on two cores).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from coatcheck.engine.ranks.recorder import Recorder
from coatcheck.engine.ranks.telemetry import INTERVAL_S, take
from coatcheck.engine.records import Arrived, Sampling
from coatcheck.engine.strategies.table import STRATEGIES, strategy_named
from coatcheck.intake.records import Item, Tensor
from coatcheck.stopwatch import Stopwatch
from coatcheck.wire import encode

ROUNDS = 7
LIMIT_US = 10.0  # 1 % of a millisecond


def request(recorder: Recorder, name: str) -> None:
    """Everything that is recorded of one request on the entry rank."""
    item = Item(Tensor(0, (1024, 1176), "float32"), (1, 32, 32), 1, 256)
    arrived = Arrived("a", name, (1,), (item,), Sampling(1))
    recorder.received(arrived, Stopwatch().stop())
    recorder.broadcast([arrived], Stopwatch().stop())
    recorder.delivered(arrived, strategy_named(name), Stopwatch().stop(), Stopwatch().stop(), 1)
    recorder.admitted("a", name, 0.0, Stopwatch().stop())


def microseconds(call: Callable[[], object], times: int) -> float:
    """Median over rounds of the mean time of one call."""
    means = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            call()
        means.append((time.perf_counter() - start) / times * 1e6)
    return statistics.median(means)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    recorder = Recorder()
    for name in STRATEGIES:
        request(recorder, name)
    step = microseconds(lambda: recorder.step(Stopwatch().stop()), 20_000)
    whole = microseconds(lambda: request(recorder, "object-inline"), 2_000)
    snapshot = microseconds(lambda: encode(take(0, recorder.registry)), 100)
    print(f"a step: {step:.2f} us")
    print(f"a request, all its phases: {whole:.1f} us")
    print(
        f"a snapshot: {snapshot:.0f} us, at most every {INTERVAL_S:g} s: {snapshot / INTERVAL_S / 1e4:.3f} % of a core"
    )
    return 1 if step >= LIMIT_US else 0


if __name__ == "__main__":
    sys.exit(main())
