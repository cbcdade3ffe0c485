"""Who can do what to a running server: ``python -m benchmarks.checks.isolation``.

A process of the same user, with the mapping that a rank gets, tries to write to the arena; a process of another user
(uid 65534) tries to open it and to connect to the server's sockets. Prints each attempt and its outcome, and how the
server's own processes have the arena mapped. Exit status 1 if something succeeds that must not, or if what must succeed
does not, since then the refusals show nothing; 2 where this is not root, which alone can become another user.

``open`` marks what succeeds by design and is written down in docs/decisions/arena-boundary.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil

from benchmarks.support.presence import look
from coatcheck.arena import ArenaAddress, AttachedMemory
from coatcheck.arena.allocator import PAGE
from coatcheck.bench.support.server import ServerProcess
from coatcheck.engine.ranks.settings import RankSettings
from coatcheck.wire import from_argument, to_argument

NOBODY = 65534  # the kernel's overflow uid: another user
Attempt = tuple[str, Callable[[], object]]


def on_the_mapping(address: ArenaAddress) -> Iterator[Attempt]:
    """Ways to write to the arena for a process that has mapped it as a rank does."""
    memory = AttachedMemory(address)  # what ArenaReader maps
    fd = os.open(address.read, os.O_RDONLY)
    (row,) = [line for line in Path("/proc/self/maps").read_text().splitlines() if "coatcheck-arena" in line]
    start = int(row.split("-")[0], 16)

    def protect() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def own_memory() -> None:
        with Path("/proc/self/mem").open("r+b", buffering=0) as opened:
            opened.seek(start)
            opened.write(b"\0")

    yield "write through the view", lambda: memory.view.__setitem__(0, 0)
    yield "mprotect the mapping writable", protect
    yield "write to the mapping through /proc/self/mem", own_memory
    yield "map the descriptor writable", lambda: mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    yield "write to the descriptor", lambda: os.pwrite(fd, b"\0", 0)
    yield "truncate the descriptor", lambda: os.ftruncate(fd, 0)


def anew(address: ArenaAddress) -> Iterator[Attempt]:
    """Ways to open the arena once more."""
    yield "open a rank's descriptor of the arena to read", lambda: os.open(address.read, os.O_RDONLY)
    yield "open a rank's descriptor of the arena to write", lambda: os.open(address.read, os.O_RDWR)
    yield "open a worker's descriptor of the arena to write", lambda: os.open(address.write, os.O_RDWR)
    yield "open the owner's memory", lambda: os.open(f"{Path(address.read).parents[1]}/mem", os.O_RDWR)


def sockets(paths: list[str]) -> Iterator[Attempt]:
    """Connections to private endpoints."""
    for path in paths:
        yield f"connect to {path}", partial(socket.socket(socket.AF_UNIX).connect, path)


def ports(numbers: list[int]) -> Iterator[Attempt]:
    """Connections to what listens on the loopback interface."""
    for port in numbers:
        yield f"connect to port {port}", partial(socket.socket().connect, ("127.0.0.1", port))


GROUPS: dict[str, Callable[..., Iterator[Attempt]]] = {
    "mapping": lambda address, *_: on_the_mapping(address),
    "anew": lambda address, *_: anew(address),
    "sockets": lambda _, paths, __: sockets(paths),
    "ports": lambda _, __, numbers: ports(numbers),
}
# Who, what, what must come of it ("open": by design), and what it shows.
# The controls come last: a stranger that hangs up looks to the front end like a rank that is gone, and ends the server.
CASES = (
    (0, "mapping", "refused", "a process of the same user, with the mapping that a rank gets"),
    (NOBODY, "anew", "refused", "another user"),
    (NOBODY, "sockets", "refused", "another user"),
    (NOBODY, "ports", "open", "another user: HTTP, and the TCP store and gloo pairs of torch.distributed"),
    (0, "anew", "open", "a process of the same user: the user is the boundary, not the rank"),
    (0, "sockets", "done", "a process of the same user, to show that the endpoints are live"),
)


def child(group: str, uid: int, arena: str, paths: str, numbers: str) -> None:
    """In a process of its own: prints [attempt, error or ""] for each."""
    attempts = GROUPS[group](from_argument(arena, ArenaAddress), json.loads(paths), json.loads(numbers))
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    outcomes = []
    for name, attempt in attempts:
        try:
            attempt()
        except (OSError, TypeError) as error:
            outcomes.append((name, f"{type(error).__name__}: {error}"))
        else:
            outcomes.append((name, ""))
    print(json.dumps(outcomes))


def mappings(server: ServerProcess) -> list[str]:
    """Prints how each process maps the arena; which ranks could make their mapping writable ("mw": may write)."""
    faults = []
    for process in server.family():
        text = Path(f"/proc/{process.pid}/smaps").read_text()
        found = re.findall(r"^\S+ (\S+) .*coatcheck-arena.*\n(?:[A-Z].*\n)*?VmFlags: (.*)$", text, re.MULTILINE)
        print(f"  {process.name()}: {found}")
        flags = {flag for _, row in found for flag in row.split()}
        if "rank" in process.name() and (not found or flags & {"wr", "mw"}):
            faults.append(f"{process.name()} has the arena mapped {found}")
    return faults


def endpoints(family: list[psutil.Process]) -> list[str]:
    """Every private endpoint of the server, by its place in /proc."""
    found = []
    for process in family:
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            if re.search(r"/coatcheck-\w+/s \(deleted\)$", str(descriptor.readlink())):
                found.append(str(descriptor))
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tp", type=int, default=2)
    args = parser.parse_args()
    if os.geteuid() != 0:
        print("only root can become another user")
        return 2
    with ServerProcess("--tp", str(args.tp), "--strategy", "handle-background") as server:
        family = server.family()
        print("mappings of the arena, with the kernel's flags:")
        faults = mappings(server)
        rank = next(process for process in family if "rank" in process.name())
        arena = RankSettings.decode(rank.cmdline()[-1]).arena
        assert arena is not None
        paths = endpoints(family)
        numbers = [int(name.split()[1]) for name in look(server.temporary).names("listening TCP ports")]
        for uid, group, expected, who in CASES:
            print(f"{who} (uid {uid}):")
            command = [
                sys.executable,
                "-m",
                "benchmarks.checks.isolation",
                "--child",
                group,
                str(uid),
                to_argument(arena),
            ]
            done = subprocess.run(
                [*command, json.dumps(paths), json.dumps(numbers)],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
            outcomes = json.loads(done.stdout)
            faults += [f"nothing was tried: {who}"] if not outcomes else []
            for name, error in outcomes:
                print(f"  {name}: {f'refused ({error})' if error else 'done' if expected != 'open' else 'open'}")
                denied = "PermissionError" in error or (error and not uid)  # not: nobody is there any more
                if not (denied if expected == "refused" else not error):
                    faults.append(f"{name}, {who}: {error or 'was not refused'}")
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    else:
        sys.exit(main())
