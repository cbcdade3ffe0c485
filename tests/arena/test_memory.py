"""The segment between real processes: who can map it, who can write, and what is left of it."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coatcheck.arena import Arena, ArenaAddress, ArenaReader, AttachedMemory
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle
from coatcheck.arena.memory import first_payload
from coatcheck.errors import ConfigError, HandleInvalid, HandleStale, PayloadTooLarge
from coatcheck.wire import encode

NOBODY = 65534  # the kernel's overflow uid: another user
MAX_HANDLE = 128  # bytes encoded


def handle_of(arena: Arena, payload: bytes, request: str = "a") -> Handle:
    block = arena.put(request, memoryview(payload))
    return Handle(block.offset, block.nonce, (block.nbytes,), "uint8")


def python(code: str, *arguments: str, **options: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload,no-any-return]


READ = """
import sys
from coatcheck.arena import ArenaAddress, ArenaReader
from coatcheck.arena.handle import Handle
read, size, offset, nonce, nbytes = sys.argv[1], *map(int, sys.argv[2:])
reader = ArenaReader(ArenaAddress(read, "", size))
view = reader.view(Handle(offset, nonce, (nbytes,), "uint8"))
sys.stdout.write(bytes(view).decode())
"""


def test_another_process_reads_what_was_put() -> None:
    with Arena(1 << 20) as arena:
        handle = handle_of(arena, b"pixels")
        address = arena.address
        done = python(READ, address.read, *map(str, (address.size, handle.offset, handle.nonce, 6)))
        assert done.stdout == "pixels", done.stderr


def test_a_reader_cannot_write() -> None:
    with Arena(1 << 20) as arena:
        handle = handle_of(arena, b"pixels")
        reader = ArenaReader(arena.address)
        view = reader.view(handle)
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 1
        # Nor by asking the kernel to make the mapping writable.
        libc = ctypes.CDLL(None, use_errno=True)
        start = ctypes.addressof(ctypes.c_char.from_buffer_copy(b"x"))  # any address, replaced below
        maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "coatcheck-arena" in line]
        (mapped,) = [line for line in maps if line.split()[1] == "r--s"]
        start = int(mapped.split("-")[0], 16)
        assert libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(PAGE), 3) == -1
        assert ctypes.get_errno() == 13  # EACCES
        view.release()
        reader.close()


def test_nor_through_the_descriptor_that_it_mapped() -> None:
    with Arena(1 << 20) as arena:
        memory = AttachedMemory(arena.address)
        fd = os.open(arena.address.read, os.O_RDONLY)
        (row,) = [
            line for line in Path("/proc/self/maps").read_text().splitlines() if "arena" in line and "r--s" in line
        ]
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fd, b"x", 0)
        # This way a process, such as a debugger, writes to pages of its own that are read-only.
        with Path("/proc/self/mem").open("r+b", buffering=0) as opened, pytest.raises(OSError):
            opened.seek(int(row.split("-")[0], 16))
            opened.write(b"x")
        os.close(fd)
        memory.close()


def test_the_user_is_the_boundary_not_the_rank() -> None:
    # docs/decisions/arena-boundary.md: if this is refused some day, the page is to say so.
    with Arena(1 << 20) as arena:
        for path in (arena.address.read, arena.address.write):
            os.close(os.open(path, os.O_RDWR))


def test_nobody_can_resize_it() -> None:
    with Arena(1 << 20) as arena:
        fd = os.open(arena.address.write, os.O_RDWR)
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        os.close(fd)


def test_a_worker_writes_in_place() -> None:
    with Arena(1 << 20) as arena:
        block = arena.reserve(100)
        worker = AttachedMemory(arena.address, writable=True)
        worker.view[block.offset : block.offset + 3] = b"abc"
        worker.close()
        with arena.writable(block) as view:
            assert bytes(view[:3]) == b"abc"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_cannot_map_it() -> None:
    with Arena(1 << 20) as arena:
        code = "import os, sys; os.setuid(int(sys.argv[2])); os.open(sys.argv[1], os.O_RDONLY)"
        for path in (arena.address.read, arena.address.write):
            assert python(code, path, str(os.getuid())).returncode == 0, "the test cannot fail"
            refused = python(code, path, str(NOBODY))
            assert "PermissionError" in refused.stderr


def test_nothing_is_left_after_kill_9() -> None:
    code = "from coatcheck.arena import Arena; a = Arena(1 << 20); print(a.address.read, flush=True); input()"
    before = set(Path("/dev/shm").iterdir())
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    path = owner.stdout.readline().strip()
    reader = AttachedMemory(ArenaAddress(path, "", (1 << 20) + first_payload(1 << 20)))
    owner.send_signal(signal.SIGKILL)
    owner.communicate(timeout=10)
    assert reader.view[0] == 0, "a reader's mapping outlives the owner"
    reader.close()
    assert set(Path("/dev/shm").iterdir()) == before
    with pytest.raises(ConfigError, match="cannot be mapped"):
        AttachedMemory(ArenaAddress(path, "", 1 << 20))


def test_forged_and_stale_handles_read_nothing() -> None:
    with Arena(1 << 20) as arena:
        handle = handle_of(arena, b"pixels")
        reader = ArenaReader(arena.address)
        size = arena.address.size
        for offset, shape in (
            (0, (6,)),  # the table of nonces
            (handle.offset + 1, (6,)),
            (size, (1,)),
            (size - PAGE, (PAGE + 1,)),
            (-PAGE, (6,)),
            (handle.offset, (-6,)),
            (handle.offset, (1 << 62, 8)),
        ):
            with pytest.raises(HandleInvalid):
                reader.view(Handle(offset, handle.nonce, shape, "uint8"))
        for nonce in (0, handle.nonce + 2):
            with pytest.raises(HandleStale):
                reader.view(Handle(handle.offset, nonce, (6,), "uint8"))
        arena.end("a")  # no digest: free at once
        with pytest.raises(HandleStale):
            reader.view(handle)
        with pytest.raises(HandleStale):
            reader.check(handle)
        reader.close()


def test_requests_may_end_after_the_arena_is_closed() -> None:
    arena = Arena(1 << 20)
    handle_of(arena, b"pixels")
    arena.dispatch("a", [0])
    arena.close()
    arena.close()
    arena.end("a")
    arena.acknowledge("a", 0)


def test_a_handle_is_small() -> None:
    largest = Handle(2**48, 2**64 - 1, (10**6, 3, 10**6), "float32")
    assert len(encode(largest)) <= MAX_HANDLE


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="is not to be had"):
        Arena(1 << 52)
    with Arena(1 << 20) as arena:
        assert arena.capacity >= 1 << 20
        with pytest.raises(PayloadTooLarge, match=f"{arena.capacity + 1} bytes, the whole arena {arena.capacity}"):
            arena.reserve(arena.capacity + 1)
        assert arena.statistics().reservations == 0
