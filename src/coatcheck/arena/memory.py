"""The arena's memory: one anonymous segment, faulted in once, sealed, mapped by other processes of the same user.

The owner makes it with ``memfd_create``: it has no name in any file system, does not depend on /dev/shm or its size,
and is gone with the last process that holds it, whatever killed them. It is sealed against resizing, so that no
reader can be killed by SIGBUS. Others open it through the owner's /proc/PID/fd, which the kernel grants to processes
of the same user only: read-only (ranks) or for writing (workers). A mapping of a descriptor opened read-only cannot be
made writable; that the same process opens the segment once more for writing is not prevented.

Layout: a table of nonces, one of 8 bytes for every page of the segment, then the payloads.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from coatcheck.arena.allocator import PAGE, pages
from coatcheck.arena.available import available, needed
from coatcheck.arena.populate import populate_read, populate_write
from coatcheck.errors import ConfigError

NONCE = 8  # bytes of a nonce


@dataclass(frozen=True)
class ArenaAddress:
    """Where another process of the same user and host finds the segment, as long as the owner lives."""

    read: str  # path to open read-only
    write: str  # path to open for writing
    size: int  # bytes, the table of nonces included

    @property
    def first(self) -> int:
        """Where payloads begin."""
        return first_payload(self.size)


def first_payload(size: int) -> int:
    """Bytes of the table of nonces of a segment of ``size`` bytes, rounded up to pages: payloads begin there."""
    return pages(size // PAGE * NONCE)


class OwnedMemory:
    """Made by the owner. ``view`` is writable; ``close`` unmaps it and closes both descriptors."""

    def __init__(self, size: int) -> None:
        """Raises ConfigError if the system cannot give ``size`` bytes now, before it takes any of them.

        Takes them all, now (not on first use); other threads of this process run meanwhile. That others took memory
        in between cannot be ruled out: then the kernel may end a process, as with any use of memory.
        """
        self._closed = False
        have = available()
        if needed(size) > have.nbytes:
            raise ConfigError(
                f"an arena of {size >> 20} MiB is not to be had: it needs {needed(size) >> 20} MiB, "
                f"{have.nbytes >> 20} MiB are available ({have.bound})"
            )
        with contextlib.ExitStack() as undo:
            try:
                self._fd = os.memfd_create("coatcheck-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                undo.callback(os.close, self._fd)
                os.ftruncate(self._fd, size)
                fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
                self._map = mmap.mmap(self._fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                undo.callback(self._map.close)  # it has a descriptor of its own
                populate_write(self._map)
                self._read_fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise ConfigError(f"an arena of {size >> 20} MiB is not to be had: {error.strerror}") from error
            undo.pop_all()
        self.view = memoryview(self._map)
        here = f"/proc/{os.getpid()}/fd"
        self.address = ArenaAddress(f"{here}/{self._read_fd}", f"{here}/{self._fd}", size)

    def close(self) -> None:
        """Idempotent. Raises BufferError while somebody holds a view of it."""
        if self._closed:
            return
        self.view.release()
        self._map.close()
        os.close(self._fd)
        os.close(self._read_fd)
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AttachedMemory:
    """Another process's mapping of the same segment. ``view`` is read-only unless ``writable``."""

    def __init__(self, address: ArenaAddress, writable: bool = False) -> None:
        """Raises ConfigError if the owner is gone, is another user's, or the segment is not of that size."""
        path = address.write if writable else address.read
        try:
            fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_size != address.size:
                    raise ConfigError(f"the arena at {path} does not have {address.size} bytes")
                access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
                self._map = mmap.mmap(fd, address.size, mmap.MAP_SHARED, access)
                populate_read(self._map)
            finally:
                os.close(fd)
        except OSError as error:
            raise ConfigError(f"the arena at {path} cannot be mapped: {error.strerror}") from error
        self.view = memoryview(self._map)

    def close(self) -> None:
        """Idempotent. Raises BufferError while somebody holds a view of it."""
        self.view.release()
        self._map.close()
