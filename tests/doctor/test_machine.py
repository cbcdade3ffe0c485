"""What the doctor says about a machine."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from coatcheck.arena.available import Available, needed
from coatcheck.doctor import machine

MEBI = 1 << 20


def test_on_this_machine_nothing_fails() -> None:
    findings = machine.machine(MEBI)
    assert {finding.status for finding in findings} <= {"ok", "warning"}
    assert len({finding.what for finding in findings}) == len(findings) >= 6


def refused(name: str, flags: int) -> int:
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_without_memfd_there_is_no_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "memfd_create", refused)
    assert machine.arena().status == "failed"
    monkeypatch.delattr(os, "memfd_create")
    assert machine.arena().status == "failed"


def test_an_arena_that_ranks_could_write_to_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: opened(path, (flags & ~os.O_ACCMODE) | os.O_RDWR))
    finding = machine.arena()
    assert (finding.status, finding.found) == ("failed", "a rank could write to it")


@pytest.mark.parametrize(
    ("release", "status"),
    [("5.13.0-generic", "warning"), ("4.18.0", "warning"), ("5.14.0", "ok"), ("6.1.2+", "ok"), ("odd", "ok")],
)
def test_old_kernels_are_slower_to_start(release: str, status: str) -> None:
    assert machine.kernel(release).status == status


@pytest.mark.parametrize(
    ("more", "status", "means"),
    [(-1, "failed", "takes 118 MiB"), (0, "warning", "more than half"), (81, "warning", "half"), (82, "ok", "enough")],
)
def test_the_arena_has_to_fit_into_memory(more: int, status: str, means: str) -> None:
    free = needed(100 * MEBI) + more * MEBI
    finding = machine.memory(100 * MEBI, free)
    assert finding.status == status
    assert finding.found == f"{free // MEBI} MiB to be had, the arena takes 100 MiB"
    assert means in finding.means


@pytest.mark.parametrize(("nbytes", "status"), [(100 * MEBI, "failed"), (1 << 40, "ok")])
def test_what_the_machine_and_its_limits_leave_counts(
    monkeypatch: pytest.MonkeyPatch, nbytes: int, status: str
) -> None:
    monkeypatch.setattr(machine, "available", lambda: Available(nbytes, "a test's limit"))
    (finding,) = [finding for finding in machine.machine(200 * MEBI) if finding.what == "memory"]
    assert finding.status == status


def test_a_small_or_missing_shm_is_sglang_s_trouble_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.shm(str(tmp_path / "none")).status == "warning"
    usage = type("Usage", (), {"total": 64 * MEBI, "free": MEBI})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert (machine.shm().status, machine.shm().found) == ("warning", "64 MiB, 1 MiB free")
    usage.total = 65 * MEBI  # type: ignore[attr-defined]
    assert machine.shm().status == "ok"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a shell script the only nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return make


def test_without_nvidia_smi_ranks_run_on_the_cpu(smi: Callable[[str], None]) -> None:
    (finding,) = machine.gpus()
    assert (finding.status, finding.found) == ("ok", "no nvidia-smi")
    smi("echo 'NVIDIA-SMI has failed'; exit 9")
    (finding,) = machine.gpus()
    assert finding.status == "warning"


def test_gpus_are_counted_by_name_and_their_links_shown(smi: Callable[[str], None]) -> None:
    smi('[ "$1" = topo ] && echo "GPU0 X NV18 SYS" || printf "NVIDIA H200\\nNVIDIA H200\\n"')
    found = [(finding.what, finding.found, finding.status) for finding in machine.gpus()]
    assert found == [("GPUs", "2 x NVIDIA H200", "ok"), ("NVLink", "NV18 between GPUs", "ok")]
    smi('[ "$1" = topo ] && echo "GPU0 X SYS" || printf "NVIDIA L4\\nNVIDIA L4\\n"')
    assert machine.gpus()[1].found == "none between GPUs"
    smi("echo NVIDIA H200")
    assert [finding.what for finding in machine.gpus()] == ["GPUs"]
