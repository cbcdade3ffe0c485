"""docs/serve.md says what was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serve.agreement import markdown
from coatcheck.bench.serve.result import Report
from coatcheck.bench.support.files import read_json

DOCS = Path(__file__).parents[3] / "docs"


def test_the_table_of_agreement_is_that_of_the_rounds() -> None:
    report = read_json(DOCS / "benchmarks/serve/agreement.json.gz", Report)
    assert markdown(report.runs) in (DOCS / "serve.md").read_text()
