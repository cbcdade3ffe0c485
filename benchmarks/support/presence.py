"""What a server has of the system: processes, memory, sockets, ports, files. For the commands that look for leftovers.

Other servers may run on the same machine. A process is the server's if its environment names the server's directory
for temporary files, whatever it is called and whoever its parent is by now; a socket or a segment is the server's if
one of its processes has it open or mapped. Sockets and segments go by inode, so that a number used again is no match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from coatcheck.bench.support.server import SHARED_MEMORY

ARENA = "/memfd:coatcheck-arena"
FILES = ("in /dev/shm", "temporary files")
KINDS = ("processes", "memfds of an arena", "unix sockets", "listening TCP ports", *FILES)
_LISTEN = "0A"  # state in /proc/net/tcp


@dataclass(frozen=True)
class Presence:
    """By kind, then by identity: a line for people. ``own`` are identities that are the server's."""

    all: dict[str, dict[str, str]]
    own: dict[str, set[str]]

    def names(self, kind: str) -> list[str]:
        """The server's of that kind, equal ones counted."""
        counted = Counter(self.all[kind][identity] for identity in self.own[kind])
        return [f"{count} x {text}" if count > 1 else text for text, count in sorted(counted.items())]


def look(directory: Path, before: Presence | None = None) -> Presence:
    """The system now. ``directory``: of the server; names in /dev/shm are the server's if not there ``before``."""
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    own: dict[str, set[str]] = {kind: set() for kind in KINDS}
    inodes: set[str] = set()  # sockets and segments of the server
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:  # has ended and holds nothing; its parent was not told yet
                continue
            identity, name = f"{process.pid} {process.create_time()}", process.name()
            ours = process.environ().get("TMPDIR") == str(directory)
            sockets, arenas = _held(process.pid)
        except (psutil.Error, OSError):  # it ended meanwhile, or is another user's
            continue
        if ours or name.startswith("coatcheck-"):
            found["processes"][identity] = name
        found["memfds of an arena"] |= {inode: f"memfd:coatcheck-arena, inode {inode}" for inode in arenas}
        if ours:
            own["processes"].add(identity)
            inodes |= sockets | arenas
    found["unix sockets"] = {row[6]: row[7] if len(row) > 7 else "unnamed" for row in _rows("unix")}
    for row in (*_rows("tcp"), *_rows("tcp6")):
        if row[3] == _LISTEN:
            found["listening TCP ports"][row[9]] = f"port {int(row[1].split(':')[1], 16)}"
    for kind in ("memfds of an arena", "unix sockets", "listening TCP ports"):
        own[kind] = inodes & found[kind].keys()
    for kind, place in zip(FILES, (SHARED_MEMORY, directory), strict=True):
        found[kind] = {str(path): str(path) for path in (place.rglob("*") if place.is_dir() else ())}
        own[kind] = set(found[kind]) - (set(before.all[kind]) if before is not None else set())
    return Presence(found, own)


def left(earlier: Presence, now: Presence) -> dict[str, list[str]]:
    """What is there ``now`` of all that was the server's ``earlier`` or is the server's now."""
    remains = {}
    for kind in KINDS:
        identities = now.own[kind] | (earlier.own[kind] & now.all[kind].keys())
        if identities:
            remains[kind] = sorted(now.all[kind][identity] for identity in identities)
    return remains


def _rows(table: str) -> Iterator[list[str]]:
    path = Path("/proc/net") / table
    if path.exists():  # tcp6 may not be
        yield from (line.split() for line in path.read_text().splitlines()[1:])


def _held(pid: int) -> tuple[set[str], set[str]]:
    """Inodes of the sockets that a process has open, and of the arenas that it has open or mapped."""
    sockets, arenas = set(), set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            link = str(descriptor.readlink())
            if link.startswith("socket:["):
                sockets.add(link.removeprefix("socket:[").removesuffix("]"))
            elif link.startswith(ARENA):
                arenas.add(str(descriptor.stat().st_ino))
        except FileNotFoundError:  # closed meanwhile
            continue
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sockets, arenas | {line.split()[4] for line in maps if ARENA in line}
