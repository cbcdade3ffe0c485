"""A control group with a limit on memory, made and removed by a test: as a container has."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTS = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
REMOVED_S = 20.0  # until the last of its processes has ended
_ENTER = 'echo $$ > "$0" && exec "$@"'


class NoControlGroup(Exception):
    """None can be made here; the message says why."""


@dataclass(frozen=True)
class Limited:
    """A group below one that has the limit, so that what looks for limits has to look above its own group."""

    outer: Path
    inner: Path

    @property
    def within(self) -> list[str]:
        """A command that runs the one that follows it there."""
        return ["sh", "-c", _ENTER, str(self.inner / "cgroup.procs")]

    @property
    def kills(self) -> int:
        """How many processes the kernel has ended there for want of memory."""
        counts = [0]
        for group in (self.outer, self.inner):
            for name in ("memory.oom_control", "memory.events"):
                with contextlib.suppress(FileNotFoundError):
                    rows = map(str.split, (group / name).read_text().splitlines())
                    counts += [int(number) for key, number in rows if key == "oom_kill"]
        return max(counts)


@contextlib.contextmanager
def memory_limit(nbytes: int) -> Iterator[Limited]:
    """Makes the groups.

    Processes that are left in it at the end are killed. Raises NoControlGroup.
    """
    outer, limit = _place()
    inner = outer / "inner"
    try:
        outer.mkdir()
        (outer / limit).write_text(str(nbytes))
        inner.mkdir()
    except OSError as error:
        for made in (inner, outer):
            with contextlib.suppress(OSError):
                made.rmdir()
        raise NoControlGroup(f"{outer}: {error}") from error
    try:
        yield Limited(outer, inner)
    finally:
        _empty(inner)
        inner.rmdir()
        outer.rmdir()


def _place() -> tuple[Path, str]:
    """Of a group that does not exist, and the name of the file with its limit."""
    for mount, limit in MOUNTS.items():
        control = mount / "cgroup.subtree_control"  # version 2
        if (mount / "memory.use_hierarchy").exists() or (control.exists() and "memory" in control.read_text().split()):
            return mount / f"coatcheck-test-{os.getpid()}", limit
    raise NoControlGroup("no control groups of memory, or their controller is not for children of the one mounted")


def _empty(group: Path) -> None:
    deadline = time.monotonic() + REMOVED_S
    while pids := (group / "cgroup.procs").read_text().split():
        assert time.monotonic() < deadline, f"{group} still has {pids}"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.05)
