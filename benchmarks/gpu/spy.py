"""Where a server's processes spend their time: py-spy's samples of some seconds under load, summed by thread.

py-spy slows what it samples, so a window with it does not count. It is asked not to stop the process for every sample;
a few samples are torn by that, and left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import psutil

from benchmarks.gpu.counters import title
from coatcheck.errors import ConfigError

RATE = 50  # samples a second
THREADS, INCLUSIVE, LEAVES = 6, 60, 25  # of each process, of each thread: those most often seen
GRACE_S = 20.0  # py-spy writes what it has
_LINE_NUMBER = re.compile(r":\d+\)$")


class Thread(msgspec.Struct, frozen=True):
    """Frames as ``function (file)``, with the number of samples in which they were seen."""

    name: str
    samples: int
    inclusive: dict[str, int]
    leaves: dict[str, int]


class Process(msgspec.Struct, frozen=True):
    """One that was sampled. ``error``: what py-spy said if it could not."""

    name: str
    samples: int
    threads: list[Thread]
    error: str = ""


class Sampling(msgspec.Struct, frozen=True):
    """One server's."""

    contender: str
    cell: str
    seconds: float
    requests_per_s: float  # while it was sampled
    processes: list[Process]


def check() -> None:
    """Raises ConfigError without py-spy."""
    if shutil.which("py-spy") is None:
        raise ConfigError("--spy: there is no py-spy on the path; 'pip install py-spy' brings it")


async def sample(family: Sequence[psutil.Process], directory: Path, after_s: float, seconds: float) -> list[Process]:
    """The tokenizer's process and the schedulers of a server, at once, from ``after_s`` on. ``directory`` exists."""
    await asyncio.sleep(after_s)
    named = {title(process): process.pid for process in family}
    wanted = {name: pid for name, pid in named.items() if name == "tokenizer" or name.startswith("scheduler")}
    return list(await asyncio.gather(*(_record(name, pid, directory, seconds) for name, pid in wanted.items())))


async def _record(name: str, pid: int, directory: Path, seconds: float) -> Process:
    output = directory / f"{name}.raw"
    with contextlib.suppress(FileNotFoundError):
        output.unlink()
    command = ["py-spy", "record", "--nonblocking", "-r", str(RATE), "-d", str(round(seconds)), "-t", "-f", "raw"]
    process = await asyncio.create_subprocess_exec(
        *command, "-o", str(output), "-p", str(pid),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = await asyncio.wait_for(process.communicate(), seconds + GRACE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return Process(name, 0, [], "py-spy did not end in time")
    if not output.exists():
        return Process(name, 0, [], said.decode(errors="replace")[-500:])
    return summed(name, output.read_text(errors="replace"))


def summed(name: str, raw: str) -> Process:
    """``raw``: py-spy's, a line for each stack: frames from the outermost on, the thread first, and its count."""
    totals: Counter[str] = Counter()
    inclusive: Mapping[str, Counter[str]] = defaultdict(Counter)
    leaves: Mapping[str, Counter[str]] = defaultdict(Counter)
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if not stack or not count.isdigit():
            continue
        thread, *frames = stack.split(";")
        frames = [_LINE_NUMBER.sub(")", frame) for frame in frames] or ["(no frame)"]
        totals[thread] += int(count)
        leaves[thread][frames[-1]] += int(count)
        for frame in set(frames):
            inclusive[thread][frame] += int(count)
    threads = [
        Thread(
            thread, samples, dict(inclusive[thread].most_common(INCLUSIVE)), dict(leaves[thread].most_common(LEAVES))
        )
        for thread, samples in totals.most_common(THREADS)
    ]
    return Process(name, sum(totals.values()), threads)


def append(path: Path, sampling: Sampling) -> None:
    """To a file that is a list of them."""
    every = msgspec.json.decode(path.read_bytes(), type=list[Sampling]) if path.exists() else []
    path.write_bytes(msgspec.json.encode([*every, sampling]))
