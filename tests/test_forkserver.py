"""The fork server with real processes: children start, end, are killed, and die with it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from coatcheck.forkserver import ForkServer
from tests.support.processes import runs

pytestmark = pytest.mark.anyio

# Children write their argument into a file of that name, with what was prepared; then they do as it says.
SERVER = """
import os, pathlib, signal, sys, time
from coatcheck import forkserver, process
process.die_with_parent()
prepared = os.getpid()
def run(argument):
    path, what = argument.split()
    pathlib.Path(path + ".new").write_text(f"{os.getpid()} {prepared}")
    os.rename(path + ".new", path)
    match what:
        case "reads": assert sys.stdin.read() == ""
        case "raises": raise ValueError("a child's")
        case "sleeps": time.sleep(60)
match sys.argv[1]:
    case "ends": raise SystemExit(7)
    case "slow": time.sleep(60)
forkserver.serve(run)
"""
LIMIT_S = 10.0


@asynccontextmanager
async def server(how: str = "serves") -> AsyncIterator[ForkServer]:
    made = ForkServer([sys.executable, "-c", SERVER, how], os.environ)
    try:
        async with asyncio.timeout(LIMIT_S):
            yield made
    finally:
        made.kill()
        made.kill()


async def said(path: Path) -> list[int]:
    """The child's pid, and that of the process that had prepared."""
    while not os.access(path, os.R_OK):  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)
    return [int(word) for word in path.read_text().split()]  # noqa: ASYNC240


async def test_children_share_what_was_prepared_and_end_with_their_input(tmp_path: Path) -> None:
    async with server() as forking:
        paths = [tmp_path / str(n) for n in range(3)]
        children = await asyncio.gather(*(forking.fork(f"{path} reads") for path in paths))
        assert [await said(path) for path in paths] == [[child.pid, forking.pid] for child in children]
        ends = [asyncio.create_task(child.wait()) for child in children]
        await asyncio.sleep(0.05)
        assert not any(end.done() for end in ends)
        for child in children:
            child.close_input()
            child.close_input()
        await asyncio.gather(*ends)
        assert not any(runs(child.pid) for child in children)
        for child in children:
            child.kill()  # nothing happens
            await child.wait()
        assert forking.status() is None
        await forking.close()
        assert forking.status() == 0
        assert not any(psutil.pid_exists(child.pid) for child in children), "not even zombies"


@pytest.mark.parametrize("how", ["kill", "signal", "raises"])
async def test_a_child_s_end_is_noticed_and_the_server_forks_on(tmp_path: Path, how: str) -> None:
    async with server() as forking:
        child = await forking.fork(f"{tmp_path / 'a'} {'raises' if how == 'raises' else 'sleeps'}")
        if how == "kill":
            child.kill()
        elif how == "signal":
            os.kill(child.pid, signal.SIGKILL)
        await child.wait()
        assert not runs(child.pid), "it is known to have ended only then"
        other = await forking.fork(f"{tmp_path / 'b'} reads")
        assert (await said(tmp_path / "b"))[0] == other.pid != child.pid
        other.close_input()
        await other.wait()


async def test_children_die_with_the_server(tmp_path: Path) -> None:
    async with server() as forking:
        child = await forking.fork(f"{tmp_path / 'a'} sleeps")
        os.kill(forking.pid, signal.SIGKILL)
        await child.wait()
        with pytest.raises(ChildProcessError):
            await forking.fork(f"{tmp_path / 'b'} reads")
        assert forking.status() == -signal.SIGKILL


async def test_a_server_that_ends_before_it_serves_says_so() -> None:
    async with server("ends") as forking:
        with pytest.raises(ChildProcessError, match="status 7"):
            await forking.fork("nothing reads")


async def test_who_does_not_wait_for_a_slow_server_kills_it() -> None:
    async with server("slow") as forking:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await forking.fork("nothing reads")
        start = time.monotonic()
        await forking.close()
        assert time.monotonic() - start < 1, "it hears nothing yet, and is not waited for"
        with pytest.raises(ChildProcessError):
            await forking.fork("nothing reads")
