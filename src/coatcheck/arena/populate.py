"""Faults a whole mapping in, while other threads of this process run.

``mmap.madvise`` keeps the interpreter's lock: a GiB takes a second and more, and every other thread would stand still.
Functions of ctypes give the lock up. In steps, as the kernel holds the lock of the process's address space meanwhile,
which whoever maps memory waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
from collections.abc import Iterator

import numpy

STEP = 16 << 20  # bytes; 5 to 20 ms of a core
_POPULATE_READ = 22  # linux/mman.h, both since Linux 5.14
_POPULATE_WRITE = 23

_madvise = ctypes.CDLL(None, use_errno=True).madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_madvise.restype = ctypes.c_int


def populate_write(memory: mmap.mmap) -> None:
    """Takes every page of a fresh, writable mapping. Raises OSError; what was taken until then stays.

    Kernels before 5.14 do it by writing zeros.
    """
    for address, nbytes in _steps(memory):
        try:
            advise(address, nbytes, _POPULATE_WRITE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            ctypes.memset(address, 0, nbytes)


def populate_read(memory: mmap.mmap) -> None:
    """Enters every page into this process's page table, now, instead of one fault per page at first use.

    As far as it goes: what fails here is left to those faults.
    """
    with contextlib.suppress(OSError):
        for address, nbytes in _steps(memory):
            advise(address, nbytes, _POPULATE_READ)


def advise(address: int, nbytes: int, advice: int) -> None:
    """The system call. Raises OSError."""
    while _madvise(address, nbytes, advice):
        if (number := ctypes.get_errno()) != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _steps(memory: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Address and length of each; while they are taken, the mapping cannot be closed."""
    held = numpy.frombuffer(memory, numpy.uint8)
    for at in range(0, held.nbytes, STEP):
        yield held.ctypes.data + at, min(STEP, held.nbytes - at)
