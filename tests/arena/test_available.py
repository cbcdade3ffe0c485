"""What memory can be had: control groups as files of a made-up tree, and a real one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from coatcheck.arena import Arena
from coatcheck.arena import memory as arena_memory
from coatcheck.arena.available import Available, available, needed
from coatcheck.errors import ConfigError
from tests.support.memory_limit import NoControlGroup, memory_limit

MIB = 1 << 20
UNLIMITED = 9223372036854771712  # what version 1 says for it
V1 = "33 23 0:1 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory"
V1_CPU = "32 23 0:1 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
V2 = "38 23 0:1 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"


class Tree:
    """Made up; the machine has 4000 MiB."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", f"MemTotal: 9000000 kB\nMemAvailable: {4000 << 10} kB\nHugePages_Total: 0\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def within(self, mounts: Sequence[str], *groups: str) -> None:
        """What the process's own files say."""
        self.write("proc/self/mountinfo", "".join(f"{row}\n" for row in mounts))
        self.write("proc/self/cgroup", "".join(f"{row}\n" for row in groups))

    def v1(self, path: str, limit: int, used: int, *, file: int = 0, shmem: int = 0, hierarchy: int = 1) -> None:
        at = f"sys/fs/cgroup/memory/{path}"
        self.write(f"{at}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{at}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"{at}/memory.use_hierarchy", f"{hierarchy}\n")
        lists = f"total_inactive_anon {shmem}\ntotal_active_file {file // 4}\ntotal_inactive_file {file - file // 4}\n"
        own = "cache 1\nactive_file 1\ninactive_file 1\n"
        self.write(f"{at}/memory.stat", f"{own}total_cache {file + shmem}\ntotal_shmem {shmem}\n{lists}")

    def v2(self, path: str, limit: int | str, used: int, *, file: int = 0, shmem: int = 0, high: str = "max") -> None:
        at = f"sys/fs/cgroup/{path}"
        self.write(f"{at}/memory.max", f"{limit}\n")
        self.write(f"{at}/memory.high", f"{high}\n")
        self.write(f"{at}/memory.current", f"{used}\n")
        lists = f"inactive_anon {shmem}\nactive_file {file // 4}\ninactive_file {file - file // 4}\n"
        self.write(f"{at}/memory.stat", f"anon 1\nfile {file + shmem}\nshmem {shmem}\n{lists}")

    @property
    def mebi(self) -> int:
        return available(self.root).nbytes // MIB

    @property
    def bound(self) -> str:
        return available(self.root).bound


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_control_groups_the_machine_is_the_bound(tree: Tree) -> None:
    assert available(tree.root) == Available(4000 * MIB, "the machine has no more")
    tree.within([V1, V2], "4:memory:/a", "0::/a")  # mounted, but nothing to be read there
    assert tree.mebi == 4000


def test_a_machine_that_says_nothing_bounds_nothing(tmp_path: Path) -> None:
    assert available(tmp_path).nbytes == sys.maxsize


def test_version_1(tree: Tree) -> None:
    tree.within([V1_CPU, V1], "4:cpu:/", "3:memory:/")
    tree.v1("", UNLIMITED, 0)
    assert tree.mebi == 4000
    tree.v1("", 300 * MIB, 250 * MIB, file=100 * MIB, shmem=50 * MIB)
    assert tree.mebi == 150  # the page cache gives way, shared memory does not
    assert tree.bound == "/sys/fs/cgroup/memory/memory.limit_in_bytes is 300 MiB"
    tree.v1("", 300 * MIB, 310 * MIB)
    assert tree.mebi == 0


def test_version_2(tree: Tree) -> None:
    tree.within([V2], "0::/")
    tree.v2("", "max", 250 * MIB)
    assert tree.mebi == 4000
    tree.v2("", 300 * MIB, 250 * MIB, file=100 * MIB, shmem=50 * MIB)
    assert tree.mebi == 150
    assert tree.bound == "/sys/fs/cgroup/memory.max is 300 MiB"
    tree.v2("", 300 * MIB, 310 * MIB)
    assert tree.mebi == 0
    tree.v2("", 300 * MIB, 100 * MIB, high=str(120 * MIB))  # beyond it the kernel slows everything down
    assert tree.mebi == 20


@pytest.mark.parametrize("inner", [500, 100])
def test_an_ancestor_s_limit_counts(tree: Tree, inner: int) -> None:
    tree.within([V1, V2], "3:memory:/pod/container", "0::/")
    tree.v1("", UNLIMITED, 2000 * MIB)
    tree.v1("pod", 400 * MIB, 200 * MIB)
    tree.v1("pod/container", inner * MIB, 50 * MIB)
    tree.v1("another", 1, 1)
    assert tree.mebi == min(200, inner - 50)
    tree.within([V2], "0::/pod/container")
    tree.v2("pod", 400 * MIB, 200 * MIB)
    tree.v2("pod/container", inner * MIB, 50 * MIB)
    tree.v2("another", 1, 1)
    assert tree.mebi == min(200, inner - 50)


def test_an_ancestor_of_version_1_that_leaves_its_children_out_does_not_count(tree: Tree) -> None:
    tree.within([V1], "3:memory:/pod/container")
    tree.v1("pod", 1 * MIB, 0, hierarchy=0)
    tree.v1("pod/container", 400 * MIB, 0, hierarchy=0)
    assert tree.mebi == 400


@pytest.mark.parametrize("top", ["/docker/1234", "/../..", "/elsewhere"])
def test_a_mount_may_show_the_own_group_only(tree: Tree, top: str) -> None:
    tree.within([V1.replace(" / ", f" {top} ")], "3:memory:/docker/1234")
    tree.v1("", 400 * MIB, 100 * MIB)
    assert tree.mebi == 300


def test_without_the_parts_nothing_gives_way(tree: Tree) -> None:
    tree.within([V2], "0::/")
    tree.v2("", 300 * MIB, 250 * MIB, file=100 * MIB)
    (tree.root / "sys/fs/cgroup/memory.stat").unlink()
    assert tree.mebi == 50


def test_an_arena_that_does_not_fit_is_refused_before_any_of_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> None:
        raise AssertionError("memory was taken")

    monkeypatch.setattr(arena_memory, "available", lambda: Available(needed(8 * MIB), "a test's limit"))
    Arena(7 * MIB).close()
    monkeypatch.setattr(arena_memory, "populate_write", taken)
    words = rf"arena of 8 MiB is not to be had: it needs {needed(8 * MIB) // MIB} MiB, 24 MiB are available \(a test's"
    with pytest.raises(ConfigError, match=words):
        Arena(8 * MIB)  # its table of nonces is beyond


def in_group(limit: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run in a real group with that limit."""
    try:
        with memory_limit(limit) as limited:
            done = subprocess.run([*limited.within, *command], capture_output=True, text=True, timeout=60, check=False)
            assert limited.kills == 0
            return done
    except NoControlGroup as reason:
        pytest.skip(f"no control group is to be had: {reason}")


MAKE = """
import sys
from coatcheck.arena import Arena
from coatcheck.arena.available import available, needed
from coatcheck.errors import ConfigError
size = int(sys.argv[1])
if size < 0:  # the largest that is not refused, but for what is used between here and there
    have = available().nbytes - (1 << 20)
    size = next(size for size in range(have, 0, -(1 << 16)) if needed(size + size // 512 + 8192) <= have)
try:
    with Arena(size) as arena:
        print("made", arena.capacity >> 20)
except ConfigError as error:
    print("ConfigError:", error)
"""


def test_beyond_a_real_limit_is_an_error_not_a_kill() -> None:
    done = in_group(150 * MIB, sys.executable, "-c", MAKE, str(400 * MIB))
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert done.stdout.startswith("ConfigError: an arena of 400 MiB is not to be had: it needs ")
    assert " is 150 MiB)" in done.stdout


def test_what_is_not_refused_does_fit_a_real_limit() -> None:
    done = in_group(600 * MIB, sys.executable, "-c", MAKE, "-1")
    assert done.returncode == 0, (done.returncode, done.stderr)
    made, mebi = done.stdout.split()
    assert made == "made"
    assert int(mebi) > 400


@pytest.mark.processes
def test_a_server_with_too_large_an_arena_says_so_in_one_line() -> None:
    done = in_group(700 * MIB, sys.executable, "-m", "coatcheck", "serve", "--port", "0", "--arena-mib", "4096")
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: --arena-mib: an arena of 4104 MiB is not to be had: it needs ")  # with nonces
    assert done.stderr.count("\n") == 1
