"""The metrics of a whole server: what docs/metrics.md names is there, with figures of every rank."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.support.questions import ask_all
from coatcheck.bench.support.server import ServerProcess
from training.evaluate import held_out

ROOT = Path(__file__).parents[3]
WAIT_S = 15.0

pytestmark = [pytest.mark.timeout(240), pytest.mark.processes]


def documented() -> set[str]:
    """Every name in the tables about a server of ours; a name that begins with _ continues the one before it."""
    names: set[str] = set()
    ours, sglang, _ = (ROOT / "docs/metrics.md").read_text().partition("## Inside SGLang")
    assert sglang, "the page has another order"
    for line in ours.splitlines():
        base = ""
        for name in re.findall(r"`((?:coatcheck)?_\w+)`", line.split("|")[1] if line.startswith("|") else ""):
            base = name if name.startswith("coatcheck") else base
            names.add(name if name.startswith("coatcheck") else base.rsplit("_", 1)[0] + name)
    return names


def page(server: ServerProcess) -> str:
    return httpx.get(server.url.removesuffix("/v1") + "/metrics", trust_env=False).text


def value(text: str, sample: str) -> float | None:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.M)
    return float(found[1]) if found else None


def test_a_server_tells_what_is_documented() -> None:
    assert len(documented()) > 25
    with ServerProcess("--tp", "2", "--arena-mib", "64", "--workers", "1", "--strategy", "object-background") as server:
        samples = list(held_out(3, seed=5))
        asyncio.run(ask_all(server.url, samples, 2))
        deadline = time.monotonic() + WAIT_S
        while True:
            text = page(server)
            counts = [
                value(text, f'coatcheck_stall_seconds_count{{rank="{rank}",strategy="object-background"}}')
                for rank in (0, 1)
            ]
            if counts == [3, 3]:
                break
            assert time.monotonic() < deadline, counts
            time.sleep(0.2)
    # A counter without a sample yet (no fallback) is named by its TYPE line alone.
    missing = [name for name in documented() if not re.search(rf"^(# TYPE )?{name.removesuffix('_total')}", text, re.M)]
    assert not missing
    assert value(text, 'coatcheck_materialize_seconds_count{rank="0",strategy="object-background"}') == 3
    assert value(text, 'coatcheck_materialize_seconds_count{rank="1",strategy="object-background"}') is None
    carried = 'coatcheck_broadcast_bytes_sum{carrier="object",collective="exchange",rank="1"}'
    raw = 'coatcheck_broadcast_bytes_sum{carrier="object",collective="plan",rank="1"}'
    assert (value(text, carried) or 0) > (value(text, raw) or 0) > 0, "the pickled object is larger than its pixels"
    assert value(text, 'coatcheck_lane_depth{rank="1"}') == 0
    assert value(text, 'coatcheck_ranks_running{rank="0"}') == 0
    for process in ("front-end", "worker0", "rank0", "rank1"):
        assert (value(text, f'coatcheck_cpu_seconds_total{{process="{process}"}}') or 0) > 0
