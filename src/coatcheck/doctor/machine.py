"""What the arena and the ranks need of this machine."""

from __future__ import annotations

import mmap
import os
import platform
import re
import resource
import shutil
import subprocess

from coatcheck.arena.available import available, needed
from coatcheck.arena.memory import AttachedMemory, OwnedMemory
from coatcheck.errors import ConfigError
from coatcheck.findings import Finding

_MEBI = 1 << 20
_SMALL_SHM = 64 * _MEBI  # what containers get by default
_POPULATE = (5, 14)  # the first Linux with MADV_POPULATE_READ and _WRITE
_TIMEOUT = 20.0  # seconds for nvidia-smi


def machine(arena_bytes: int) -> list[Finding]:
    """Looks at all of it; takes a page of memory for a moment, and asks nvidia-smi where there is one."""
    return [arena(), kernel(platform.release()), memory(arena_bytes, available().nbytes), locked(), shm(), *gpus()]


def arena() -> Finding:
    """Makes one of a page, as the real one is made, and tries to write through a rank's descriptor."""
    what = "shared memory (memfd, seals)"
    try:
        with OwnedMemory(2 * mmap.PAGESIZE) as owned:
            AttachedMemory(owned.address).close()
            writable = _writable(owned.address.read)
    except (ConfigError, OSError, AttributeError) as error:  # AttributeError: a Python built without memfd_create
        return Finding(what, str(error), "there is no arena on this system: handles and the plugin need one", "failed")
    if writable:
        return Finding(what, "a rank could write to it", "do not use an arena here", "failed")
    return Finding(what, "made, sealed, mapped read-only", "the arena works, whatever the size of /dev/shm", "ok")


def _writable(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
    except PermissionError:
        return False
    finally:
        os.close(fd)
    return True


def kernel(release: str) -> Finding:
    """Of that release, as ``uname -r`` prints it."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) < _POPULATE:
        return Finding("kernel", release, "before 5.14 an arena is faulted in page by page: a slower start", "warning")
    return Finding("kernel", release, "an arena is faulted in with one call", "ok")


def memory(wanted: int, free: int) -> Finding:
    """``wanted``: bytes of an arena; ``free``: what can be had now."""
    found = f"{free // _MEBI} MiB to be had, the arena takes {wanted // _MEBI} MiB"
    if needed(wanted) > free:
        means = f"too little: with page tables and a rest for the processes it takes {needed(wanted) // _MEBI} MiB"
        return Finding("memory", found, means, "failed")
    if wanted > free // 2:
        return Finding("memory", found, "enough, but the arena takes more than half of it", "warning")
    return Finding("memory", found, "enough", "ok")


def locked() -> Finding:
    """The limit on memory that a process may lock."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    found = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit >> 10} KiB"
    return Finding("locked memory", found, "not a limit: nothing of coatcheck locks memory", "ok")


def shm(path: str = "/dev/shm") -> Finding:
    """What requests need that the plugin leaves to SGLang."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return Finding(path, "not there", "coatcheck does not need it; SGLang's own path does", "warning")
    found = f"{usage.total // _MEBI} MiB, {usage.free // _MEBI} MiB free"
    if usage.total <= _SMALL_SHM:
        means = "coatcheck does not need it; SGLang's own path, for what the plugin leaves to it, will be short of it"
        return Finding(path, found, means, "warning")
    return Finding(path, found, "coatcheck does not need it; SGLang's own path does", "ok")


def gpus() -> list[Finding]:
    """NVIDIA GPUs and the links between them, as nvidia-smi tells."""
    if shutil.which("nvidia-smi") is None:
        return [Finding("GPUs", "no nvidia-smi", "ranks run on the CPU", "ok")]
    listed = _ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if not listed:
        return [Finding("GPUs", "nvidia-smi finds none", "ranks run on the CPU", "warning")]
    names = listed.splitlines()
    counts = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    findings = [Finding("GPUs", counts, f"up to {len(names)} ranks with one of their own each", "ok")]
    if len(names) > 1:
        links = re.findall(r"\bNV\d+\b", _ask("nvidia-smi", "topo", "-m"))
        found = f"{min(links)} between GPUs" if links else "none between GPUs"
        findings.append(Finding("NVLink", found, "payloads do not take it: every rank reads the host's memory", "ok"))
    return findings


def _ask(*command: str) -> str:
    """What it prints; empty if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
