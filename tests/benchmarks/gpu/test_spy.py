"""py-spy's raw samples, summed."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu import spy
from coatcheck.errors import ConfigError

RAW = """\
MainThread (1);run (a.py:1);step (b.py:10) 3
MainThread (1);run (a.py:1);step (b.py:12) 2
MainThread (1);run (a.py:1) 1
helper (2);wait (c.py:7) 4
torn line
"""


def test_frames_are_summed_by_thread_without_their_lines() -> None:
    found = spy.summed("tokenizer", RAW)
    assert (found.name, found.samples, [thread.name for thread in found.threads]) == (
        "tokenizer",
        10,
        ["MainThread (1)", "helper (2)"],
    )
    assert found.threads[0].inclusive == {"run (a.py)": 6, "step (b.py)": 5}
    assert found.threads[0].leaves == {"step (b.py)": 5, "run (a.py)": 1}


def test_a_frame_that_calls_itself_counts_once_a_sample() -> None:
    assert spy.summed("x", "t;f (a.py:1);f (a.py:2) 5").threads[0].inclusive == {"f (a.py)": 5}


def test_samplings_gather_in_one_file(tmp_path: Path) -> None:
    one = spy.Sampling("carry", "32x1-1024", 8.0, 10.0, [spy.summed("x", RAW)])
    spy.append(tmp_path / "spy.json", one)
    spy.append(tmp_path / "spy.json", one)
    import msgspec

    assert msgspec.json.decode((tmp_path / "spy.json").read_bytes(), type=list[spy.Sampling]) == [one, one]


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A py-spy that writes RAW where it is told to, or nothing if there is a file ``refuse``."""
    tool = tmp_path / "py-spy"
    tool.write_text(f"#!/bin/sh\n[ -e {tmp_path}/refuse ] && echo denied && exit 1\ncat > ${{11}} <<'EOF'\n{RAW}EOF\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_the_processes_of_a_server_are_sampled(pretended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy.check()
    monkeypatch.setattr(spy, "title", lambda process: "tokenizer")
    found = asyncio.run(spy.sample([psutil.Process()], pretended, 0.0, 1.0))
    assert [(one.name, one.samples, one.error) for one in found] == [("tokenizer", 10, "")]
    (pretended / "refuse").touch()
    found = asyncio.run(spy.sample([psutil.Process()], pretended, 0.0, 1.0))
    assert [(one.samples, one.error.strip()) for one in found] == [(0, "denied")]


def test_without_the_tool_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="--spy: there is no py-spy"):
        spy.check()
