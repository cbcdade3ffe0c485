"""docs/howto/troubleshooting.md quotes what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/howto/troubleshooting.md").read_text()
# Messages in the source stand in pieces: neighbouring literals are one again.
SOURCE = re.sub(r'"\s*f?"', "", "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py")))
# Where a value stands, or another message begins.
PLACE = re.compile(r": |\. (?=coatcheck)|\.\.\.\S*|\b[A-Z]\b|\b\d[\d.x]*%?|COATCHECK_\w+|REASON\.|\([^)]*\)")
QUOTED = [
    quoted
    for line in PAGE.splitlines()
    if line.startswith(("| ", "`coatcheck stands aside"))
    for quoted in re.findall(r"`([^`]+)`", line.strip("| ").split(" | ")[0])
    if " " in quoted and not quoted.startswith("No matching")  # pip's own
]


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_line_of_the_log_is_one_that_the_code_writes(quoted: str) -> None:
    pieces = [piece.strip(" .:;,'") for piece in PLACE.split(quoted)]
    known = [piece for piece in pieces if len(piece) > 3]
    assert known
    assert [piece for piece in known if piece not in SOURCE] == []


def test_there_are_many() -> None:
    assert len(QUOTED) > 20
