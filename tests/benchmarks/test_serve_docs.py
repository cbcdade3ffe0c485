"""docs/serve.md says what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.serve_agreement import CLIENTS, figures, markdown
from coatcheck.bench.serve.result import Report
from coatcheck.bench.support.files import read_json

DOCS = Path(__file__).parents[2] / "docs"
WITHIN = 0.1


def test_the_table_of_agreement_is_that_of_the_rounds() -> None:
    report = read_json(DOCS / "benchmarks/serve/agreement.json.gz", Report)
    assert markdown(report.runs) in (DOCS / "serve.md").read_text()
    assert all(not run.errors for run in report.runs)


def test_requests_and_latency_of_every_round_agree() -> None:
    report = read_json(DOCS / "benchmarks/serve/agreement.json.gz", Report)
    by_name = {
        client.name: {r.round: figures(r) for r in report.runs if r.contender == client.name} for client in CLIENTS
    }
    ours, *others = by_name.values()
    for other in others:
        for number, (rate, latency, _, tokens) in other.items():
            assert abs(rate / ours[number][0] - 1) < WITHIN and abs(latency / ours[number][1] - 1) < WITHIN
            assert tokens == ours[number][3]


def test_measuring_needs_no_plots_no_command_line_and_no_torch() -> None:
    names = ("matplotlib", "typer", "jinja2", "av", "torch", "transformers", "rich")
    code = (
        "import sys, coatcheck.bench.serve.config, coatcheck.bench.serve.result, coatcheck.bench.serve.measure, "
        f"coatcheck.bench.serve.worker; sys.exit(', '.join(set({names!r}) & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
