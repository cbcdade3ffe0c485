"""Does a server need /dev/shm? ``python -m benchmarks.checks.small_shm [--questions 8]``.

Starts one server as usual, one whose /dev/shm holds 64 KiB, and one in whose /dev there is no shm, the two latter in
mount namespaces of their own. Each is asked the same questions about images under every strategy. Exit status 1 if an
answer differs from the usual server's first, or a request was served by another strategy than it asked for;
2, with the reason, if this machine permits no mount namespaces.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import httpx

from benchmarks.support.questions import ANSWER_S, MODEL, messages
from coatcheck.bench.support.server import SHARED_MEMORY, ServerProcess
from coatcheck.engine.strategies.table import STRATEGIES
from training.evaluate import LARGE_BUCKETS, Sample, held_out

SIZE = 64 << 10  # bytes of the small /dev/shm
SMALL = f"mount -t tmpfs -o size={SIZE} tmpfs /dev/shm"
# A read-only /dev with little more than the devices that Python and torch open. The directory is gone once it is moved.
MISSING = """
new=$(mktemp -d) && mount -t tmpfs -o mode=755,size=64k tmpfs "$new"
for name in null zero full random urandom tty; do : > "$new/$name"; mount --bind "/dev/$name" "$new/$name"; done
ln -s /proc/self/fd "$new/fd"
mount --move "$new" /dev && mount -o remount,ro /dev && rmdir "$new"
"""
PLACES = {"as it is": "", "64 KiB": SMALL, "missing": MISSING}


def within(script: str) -> list[str]:
    """A command that becomes the one that follows it, after ``script`` in a mount namespace of its own."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    return [*unshare, "sh", "-ec", f'{script}\nexec "$@"', "sh"] if script else []


def refusal() -> str:
    """Why such namespaces cannot be had here; "" if they can."""
    for script in (SMALL, MISSING):
        try:
            done = subprocess.run([*within(script), "true"], capture_output=True, text=True, timeout=10, check=False)
        except OSError as error:
            return f"unshare: {error.strerror}"
        if done.returncode:
            return done.stderr.strip()
    return ""


def shared_memory(server: ServerProcess) -> tuple[int, int] | None:
    """Bytes of /dev/shm as the server sees it, and how many of them are used; None if it has none."""
    path = Path(f"/proc/{server.process.pid}/root{SHARED_MEMORY}")
    if not path.exists():
        return None
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize


def answer(server: ServerProcess, sample: Sample, strategy: str) -> tuple[str, str]:
    """The answer's text, and the strategy that was used. The server needs ``--strategy-header``."""
    body = {"model": MODEL, "messages": messages(sample), "temperature": 0, "max_tokens": 100}
    headers = {"X-Coatcheck-Strategy": strategy}
    response = httpx.post(f"{server.url}/chat/completions", json=body, headers=headers, timeout=ANSWER_S)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"], response.headers["X-Coatcheck-Strategy"]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--tp", type=int, default=2)
    args = parser.parse_args()
    if reason := refusal():
        print(f"no mount namespace is to be had here: {reason}")
        return 2
    samples = list(held_out(args.questions, 11, buckets=LARGE_BUCKETS))
    usual: list[str] = []
    faults = 0
    for place, script in PLACES.items():
        with ServerProcess("--tp", str(args.tp), "--strategy-header", within=within(script)) as server:
            print(f"/dev/shm {place}: size and use as the server sees it: {shared_memory(server)}")
            for strategy in STRATEGIES:
                answers, used = zip(*[answer(server, sample, strategy) for sample in samples], strict=True)
                usual = usual or list(answers)
                differ = sum(ours != theirs for ours, theirs in zip(answers, usual, strict=True))
                others = sum(name != strategy for name in used)
                right = sum(ours == sample.answer for ours, sample in zip(answers, samples, strict=True))
                print(f"  {strategy}: {right} of {len(samples)} right, {differ} differ, {others} by another strategy")
                faults += differ + others
            print(f"  afterwards: {shared_memory(server)}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
