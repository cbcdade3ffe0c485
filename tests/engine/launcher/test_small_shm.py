"""A server needs no /dev/shm: it answers under every strategy where it is tiny, and where it is missing."""

from __future__ import annotations

import pytest

from benchmarks.checks.small_shm import MISSING, SIZE, SMALL, answer, refusal, shared_memory, within
from coatcheck.bench.support.server import ServerProcess
from coatcheck.engine.strategies.table import STRATEGIES
from training.evaluate import LARGE_BUCKETS, held_out

pytestmark = [pytest.mark.processes, pytest.mark.slow]

OPTIONS = ("--tp", "2", "--arena-mib", "64", "--workers", "1", "--strategy-header")


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("script", "seen"), [(SMALL, (SIZE, 0)), (MISSING, None)], ids=["64 KiB", "missing"])
def test_answers_under_every_strategy(script: str, seen: tuple[int, int] | None) -> None:
    if reason := refusal():
        pytest.skip(f"no mount namespace is to be had: {reason}")
    (sample,) = held_out(1, 11, buckets=LARGE_BUCKETS)
    with ServerProcess(*OPTIONS, within=within(script)) as server:
        assert shared_memory(server) == seen
        for strategy in STRATEGIES:
            assert answer(server, sample, strategy) == (sample.answer, strategy)
        assert shared_memory(server) == seen
