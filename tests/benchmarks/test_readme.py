"""benchmarks/README.md names every command that is there, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_command_has_its_line() -> None:
    named = set(re.findall(r"`(benchmarks\.[\w.]+)`", (ROOT / "benchmarks/README.md").read_text()))
    files = [path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py")]
    there = {
        ".".join(path.parent.parts if path.name == "__main__.py" else path.with_suffix("").parts)
        for path in files
        if path.name == "__main__.py" or '__name__ == "__main__"' in (ROOT / path).read_text()
    }
    # What a team's processes and a benchmark's own subprocesses run is nobody's command.
    assert named == there - {"benchmarks.handoff.member"}
