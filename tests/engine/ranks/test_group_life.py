"""A group of real rank processes over its life: idle, losing a rank, losing its parent, started by torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from coatcheck.engine.model.config import DEFAULT_MODEL, EngineConfig
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.ranks.settings import RankSettings
from coatcheck.engine.records import Sampling
from coatcheck.errors import RankLost
from tests.support.engine import Engine
from tests.support.processes import runs
from tests.support.workload import Workload

pytestmark = pytest.mark.timeout(120)

IDLE_SHARE = 0.02  # of a core; the limit
IDLE_S = 8.0


def gone(pids: tuple[int, ...], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not any(map(runs, pids)):
            return True
        time.sleep(0.05)
    return False


def test_idle_ranks_sleep_and_heartbeats_keep_the_group_alive(workload: Workload) -> None:
    # The groups time out after 4 s here: without heartbeats this server would be dead after twice that.
    config = RankConfig(ready_timeout_s=2, heartbeat_s=1, group_timeout_s=4)
    with Engine(DEFAULT_MODEL, 2, config) as engine:
        processes = [psutil.Process(pid) for pid in engine.ready.pids]
        before = [sum(process.cpu_times()[:2]) for process in processes]
        time.sleep(IDLE_S)
        spent = [sum(process.cpu_times()[:2]) - start for process, start in zip(processes, before, strict=True)]
        assert max(spent) / IDLE_S < IDLE_SHARE, spent
        request = workload.request("after the night", "dict-inline", [(8, 8)])
        engine.submit(request.arrived, request.frames)
        assert engine.wait(request.arrived.request, digests=False)[0].tokens == workload.generate(request)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_is_noticed_and_the_rest_ends(workload: Workload, victim: int) -> None:
    engine = Engine(DEFAULT_MODEL, 2)
    try:
        request = workload.request("victim", "dict-inline", [(8, 8)], sampling=Sampling(2000))
        engine.submit(request.arrived, request.frames)
        while not engine.results["victim"].tokens:
            assert engine.pump(30)
        os.kill(engine.processes.pids[victim], signal.SIGKILL)
        assert engine.processes.wait(30), "the other rank went on alone"
        with pytest.raises(RankLost, match=f"rank {victim} .*SIGKILL"):
            engine.processes.check()
    finally:
        engine.close()


def test_inputs_that_differ_between_ranks_are_found(workload: Workload) -> None:
    with Engine(DEFAULT_MODEL, 2) as engine:
        request = workload.request("fault=pixels@1", "dict-inline", [(8, 8)], sampling=Sampling(50))
        engine.submit(request.arrived, request.frames)
        (result,) = engine.wait(request.arrived.request)
        assert result.rejected is not None
        assert "different inputs" in result.rejected


def test_ranks_die_with_the_process_that_started_them() -> None:
    code = """
        import os, sys
        from coatcheck.engine.model.config import DEFAULT_MODEL
        from tests.support.engine import Engine
        engine = Engine(DEFAULT_MODEL, 2)
        print(*engine.ready.pids, flush=True)
        sys.stdin.read()
    """
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}/src{os.pathsep}{Path.cwd()}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert parent.stdout and parent.stdin
    pids = tuple(int(pid) for pid in parent.stdout.readline().split())
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    parent.stdin.close()
    assert gone(pids, 10)


def test_an_option_that_cannot_work_ends_a_rank_with_one_line() -> None:
    settings = RankSettings(EngineConfig(), RankConfig(), "", "")
    done = subprocess.run(
        [sys.executable, "-m", "coatcheck.engine.ranks", settings.encode()],
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "rank 0 ends: ConfigError: --tp: 3 ranks" in done.stderr
    assert done.stderr.count("\n") == 1
