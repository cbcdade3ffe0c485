"""How much memory can be had now: of the machine, and within the limits of the control groups that this process is in.

Beyond a group's limit the kernel returns no error: it kills a process of the group. So whoever takes much memory at
once asks here first. Control groups of version 1 and 2 are read, this process's own and each one above it. Shared
memory (a memfd) counts as used; the page cache gives way, except what is shared memory or locked; swap is not counted.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What an arena costs besides itself, and its group is charged for: its page table, of 8 bytes per page, in the owner
# and in each reader, and the kernel's tree of its pages, 576 bytes for 64 of them. 10 readers come to 2.4 %.
_KERNEL_SHARE = 40
_REST = 16 << 20  # bytes that the group's processes go on with; chosen, not measured


@dataclass(frozen=True)
class Available:
    """``nbytes`` can be had now; ``bound`` says what bounds them, for a message."""

    nbytes: int
    bound: str


@dataclass(frozen=True)
class _Version:
    """Names of one version of control groups: of the file with the limit, with what is used, with its parts."""

    limits: tuple[str, ...]
    used: str
    cache: tuple[str, ...]  # parts that give way: the lists of pages of files, on which no shared memory is


_VERSIONS = {
    "cgroup": _Version(
        ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")
    ),
    "cgroup2": _Version(("memory.max", "memory.high"), "memory.current", ("active_file", "inactive_file")),
}


def needed(size: int) -> int:
    """Bytes that must be available before an arena of ``size`` bytes is made."""
    return size + size // _KERNEL_SHARE + _REST


def available(root: Path = Path("/")) -> Available:
    """The least of all bounds. ``root``: the directory that has proc and sys."""
    return min([_machine(root), *_groups(root)], key=lambda found: found.nbytes)


def _machine(root: Path) -> Available:
    with contextlib.suppress(OSError, KeyError):
        free = _numbers(root / "proc/meminfo")["MemAvailable:"] << 10
        return Available(free, "the machine has no more")
    return Available(sys.maxsize, "nothing is known of this machine's memory")


def _groups(root: Path) -> Iterator[Available]:
    """Of each group that this process is in, and that has a limit."""
    for kind, mounted, directory in _own(root):
        version = _VERSIONS[kind]
        while True:
            for name in version.limits:
                with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
                    limit = int((directory / name).read_text())
                    left = limit - int((directory / version.used).read_text()) + _cache(directory, version)
                    where = (directory / name).relative_to(root)
                    yield Available(max(left, 0), f"/{where} is {limit >> 20} MiB")
            if directory == mounted or _apart(directory.parent):
                break
            directory = directory.parent


def _cache(directory: Path, version: _Version) -> int:
    with contextlib.suppress(OSError):  # some sandboxes have no such file: then nothing gives way
        parts = _numbers(directory / "memory.stat")
        return sum(parts.get(name, 0) for name in version.cache)
    return 0


def _apart(directory: Path) -> bool:
    """Whether this group of version 1 leaves its children out of its own limit; kernels before 5.11 allow it."""
    with contextlib.suppress(OSError):
        return (directory / "memory.use_hierarchy").read_text().strip() == "0"
    return False


def _own(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Kind of file system, where it is mounted, and this process's directory there; of mounts that bound memory."""
    with contextlib.suppress(OSError):
        rows = [row.split(":", 2) for row in (root / "proc/self/cgroup").read_text().splitlines()]
        paths = {"cgroup2" if not names else "cgroup": path for _, names, path in rows if _bounds(names)}
        for row in (root / "proc/self/mountinfo").read_text().splitlines():
            before, _, after = row.partition(" - ")
            top, where = before.split()[3:5]
            kind, _, options = after.split()[:3]
            if kind in paths and (kind == "cgroup2" or "memory" in options.split(",")):
                mounted = root / where.lstrip("/")
                yield kind, mounted, _directory(mounted, top, paths[kind])


def _bounds(controllers: str) -> bool:
    return not controllers or "memory" in controllers.split(",")


def _directory(mounted: Path, top: str, path: str) -> Path:
    """A mount shows the groups from ``top`` on; in a container that may be this process's own group."""
    with contextlib.suppress(ValueError):
        own = mounted / Path(path).relative_to(top)
        if ".." not in own.parts and own.is_dir():
            return own
    return mounted


def _numbers(file: Path) -> dict[str, int]:
    """Name and number of each line."""
    return {name: int(number) for name, number, *_ in map(str.split, file.read_text().splitlines())}
