"""The example in docs/arena.md does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from coatcheck.arena import Arena

PAGE = Path(__file__).parents[2] / "docs" / "arena.md"


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "hello"), done.stderr


def test_every_call_in_the_table_exists_and_no_public_one_is_missing() -> None:
    table = set(re.findall(r"^\| `(\w+)\(", PAGE.read_text(), re.M)) - {"Arena"}
    public = {name for name in vars(Arena) if not name.startswith("_")}
    assert table <= public
    assert public - table <= {"address", "capacity", "available", "writable", "close"}
