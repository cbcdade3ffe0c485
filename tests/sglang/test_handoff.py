"""SGLang with the plugin, and its limit, a text, as contenders of the hand-off's benchmark."""

from __future__ import annotations

import pytest

from benchmarks.handoff.config import HandoffConfig
from benchmarks.handoff.contenders import PLUGIN
from benchmarks.handoff.rounds import measure
from tests.sglang.conftest import Servers

pytestmark = pytest.mark.timeout(300)


def test_the_plugin_carries_what_is_measured(pytestconfig: pytest.Config, servers: Servers) -> None:
    servers.close()
    peers = pytestconfig.getoption("--peers")
    config = HandoffConfig(PLUGIN, ranks=(2,), sizes=(1.0,), rounds=1, repeats=1, burst=3, peers=peers)
    report = measure(config, lambda text: None)
    assert [(run.contender, run.failed) for run in report.runs] == [(name, "") for name in PLUGIN]
    image, text = report.runs
    # What is handed off, every rank has got: the benchmark compares checksums, and fails if SGLang carried it.
    assert (len(image.samples), len(image.queued)) == (2, 2)
    assert image.carried_bytes == image.payload_bytes > 100 * text.carried_bytes
    assert image.stall_ms.entry is not None and image.stall_ms.entry.cpu_p50 > 0
