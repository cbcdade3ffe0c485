"""What processes hold of the machine's memory: every page once, shared memory that nobody has mapped or touched too.

The proportional set size of a process (PSS, /proc/PID/smaps_rollup) divides a page by those that map it, so that the
sum over processes counts it once. It leaves out pages of shared memory that exist but are in nobody's page table: a
segment that its maker has unmapped and whose reader has not looked yet. So segments are counted by what they have
allocated, and of each process only what is no shared memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import psutil

from coatcheck.bench.support.server import SHARED_MEMORY

_ROLES = {"scheduler": "scheduler", "detokenizer": "detokenizer", "launch_server": "tokenizer"}
_BLOCK = 512  # bytes of st_blocks


class Footprint(msgspec.Struct, frozen=True):
    """Bytes."""

    pss: dict[str, int]  # by what the process is
    private: int  # of all processes: anonymous memory and files, by PSS
    shared: int  # segments of shared memory, each once, whoever has mapped or touched it

    @property
    def total(self) -> int:
        """Every page once."""
        return self.private + self.shared

    @property
    def pss_total(self) -> int:
        """The sum of PSS alone."""
        return sum(self.pss.values())


def footprint(processes: Iterable[psutil.Process], before: frozenset[str] = frozenset()) -> Footprint:
    """Of these processes, and of what is in /dev/shm that was not there ``before``. For root only."""
    pss: dict[str, int] = {}
    private = 0
    segments: dict[tuple[int, int], int] = {}
    for name in segment_names() - before:
        with contextlib.suppress(FileNotFoundError):
            _add(segments, SHARED_MEMORY / name)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            sizes = _rollup(process.pid)
            role = _role(process.cmdline())
            pss[role] = pss.get(role, 0) + sizes["Pss:"]
            private += sizes["Pss:"] - sizes["Pss_Shmem:"]
            for mapping in _shared_mappings(process.pid):
                with contextlib.suppress(FileNotFoundError):  # unmapped meanwhile
                    _add(segments, mapping)
    return Footprint(pss, private, sum(segments.values()))


def segment_names() -> frozenset[str]:
    """What is in /dev/shm."""
    return frozenset(path.name for path in SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else frozenset()


def _add(segments: dict[tuple[int, int], int], path: Path) -> None:
    found = path.stat()
    segments[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK


def _rollup(pid: int) -> dict[str, int]:
    rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(number) << 10 for name, number, *_ in map(str.split, rows)}


def _shared_mappings(pid: int) -> Iterable[Path]:
    """Links to the files that are mapped, named or not any more; only root may follow them."""
    for row in Path(f"/proc/{pid}/maps").read_text().splitlines():
        where, _, _, _, _, *name = row.split(maxsplit=5)
        if name and name[0].startswith((f"{SHARED_MEMORY}/", "/memfd:", "/dev/zero")):
            start, end = where.split("-")
            yield Path(f"/proc/{pid}/map_files/{int(start, 16):x}-{int(end, 16):x}")


def _role(command: Sequence[str]) -> str:
    text = " ".join(command)
    return next((role for word, role in _ROLES.items() if word in text), "other")
