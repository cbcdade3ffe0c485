"""What remains of a server after ``kill -9``: ``python -m benchmarks.checks.leftovers [--cases all,front-end]``.

Each case starts a server, keeps it busy with image requests whose payloads are in the arena (``handle-background``),
and kills, with payloads leased: all of its processes at once, or the front end, a rank, or a worker alone. Prints what
the system had before, during and after. Exit status 1 if anything of the server remains, or if the rest of it does not
do what is documented: end by itself, and after the loss of a worker go on.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

import httpx
import openai

from benchmarks.support.presence import FILES, KINDS, Presence, left, look
from benchmarks.support.questions import ask, ask_all, client
from coatcheck.bench.support.server import ServerProcess
from training.evaluate import LARGE_BUCKETS, Sample, held_out

STRATEGY = "handle-background"
BUSY_S = 60.0  # for payloads to be in the arena
GONE_S = 30.0  # for what was not killed to end by itself, on a busy machine
BACK_S = 30.0  # for a new worker: it imports torch, on a busy machine
HELD = ("reserved", "in_use", "quarantined")  # bytes of the arena that some request keeps
ALONE = {"entry-rank": "coatcheck-rank0", "rank": "coatcheck-rank1", "worker": "coatcheck-work0"}  # case: who
CASES = ("all", "front-end", *ALONE)


class Load:
    """Clients in a thread that ask about images until told to stop or until nobody listens any more."""

    def __init__(self, url: str, samples: list[Sample], clients: int = 8) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url, self._samples, self._clients = url, samples, clients
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    async def _run(self) -> None:
        async with client(self._url) as opened:
            await asyncio.gather(*[self._client(opened, index) for index in range(self._clients)])

    async def _client(self, opened: openai.AsyncOpenAI, index: int) -> None:
        while not self._stop.is_set():
            try:
                await ask(opened, self._samples[index % len(self._samples)])
                self.outcomes["answered"] += 1
            except openai.OpenAIError as error:
                self.outcomes[type(error).__name__] += 1
                if isinstance(error, openai.APIConnectionError):
                    return
            index += self._clients

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def arena(server: ServerProcess) -> dict[str, int]:
    """Bytes of the arena by state, from the server's metrics."""
    text = httpx.get(f"{server.url.removesuffix('/v1')}/metrics").text
    rows = [line for line in text.splitlines() if line.startswith("coatcheck_arena_bytes{")]
    return {row.split('"')[1]: int(float(row.split()[1])) for row in rows}


def until_busy(server: ServerProcess, load: Load) -> int:
    """Waits until requests have been answered and payloads are leased; their bytes."""
    deadline = time.monotonic() + BUSY_S
    while time.monotonic() < deadline:
        if load.outcomes["answered"] >= 8 and (leased := arena(server)["in_use"]):
            return leased
        time.sleep(0.02)
    raise RuntimeError(f"no payload came into the arena within {BUSY_S:g} s: {load.outcomes}")


def kill(case: str, server: ServerProcess) -> None:
    """SIGKILL. All at once: stopped first, so that none can tidy up after another."""
    victims = {"all": server.family(), "front-end": server.family()[:1]}.get(case)
    victims = victims or [process for process in server.family() if process.name() == ALONE[case]]
    for process in victims:
        process.suspend()
    for process in victims:
        process.kill()


def replaced(name: str, server: ServerProcess, known: set[str]) -> bool:
    """Waits until there is a process of that name that is not one of the ``known``."""
    deadline = time.monotonic() + BACK_S
    while time.monotonic() < deadline:
        now = look(server.temporary)
        if any(now.all["processes"][new] == name for new in now.own["processes"] - known):
            return True
    return False


def settled(server: ServerProcess, samples: list[Sample]) -> list[str]:
    """What is wrong with a server that has lost a worker: its answers, leases that never end, its exit status."""
    answers = asyncio.run(ask_all(server.url, samples, 1))
    right = sum(answer == sample.answer for answer, sample in zip(answers, samples, strict=True))
    deadline = time.monotonic() + GONE_S
    while any(held := [arena(server)[state] for state in HELD]) and time.monotonic() < deadline:
        time.sleep(0.1)
    status = server.stop()
    print(f"  then {right} of {len(samples)} answers right, SIGTERM: status {status}, bytes {held} ({', '.join(HELD)})")
    faults = [f"{len(samples) - right} wrong answers"] if right < len(samples) else []
    faults += [f"the arena is not empty: {held}"] if any(held) else []
    return faults + ([f"exit status {status} after SIGTERM"] if status else [])


def ended(case: str, server: ServerProcess) -> list[str]:
    """What is wrong with the end of a server that was killed, or has lost a rank."""
    try:
        status = server.process.wait(GONE_S)
    except subprocess.TimeoutExpired:
        return [f"the front end still runs {GONE_S:g} s later"]
    if case in ("all", "front-end"):
        return [] if status == -signal.SIGKILL else [f"exit status {status}"]
    said = [line for line in server.log if "SIGKILL" in line]
    print(f"  exit status {status}: {' '.join(said)}")
    named = f"rank {ALONE[case][-1]} " in " ".join(said)
    return [] if status == 1 and named else [f"exit status {status}, {'' if named else 'not '}naming the rank"]


def show(before: Presence, during: Presence, after: Presence, remains: dict[str, list[str]]) -> None:
    """The three listings, and what of the server stood in the second."""
    print(f"  {'':22}{'before':>8}{'during':>8}{'server':>8}{'after':>8}{'server':>8}")
    for kind in KINDS:
        counts = [len(before.all[kind]), len(during.all[kind]), len(during.own[kind]), len(after.all[kind])]
        row = "".join(f"{count:8}" for count in [*counts, len(remains.get(kind, ()))])
        print(f"  {kind:22}{row}  {', '.join(during.names(kind))}")


def run(case: str, samples: list[Sample], tp: int) -> list[str]:
    """What was wrong."""
    server = ServerProcess("--tp", str(tp), "--strategy", STRATEGY)
    before = look(server.temporary)
    with server:
        with Load(server.url, samples) as load:
            until_busy(server, load)
            during = look(server.temporary, before)
            leased = until_busy(server, load)
            kill(case, server)
            start = time.monotonic()
            print(f"{case}: killed with {leased / 1e6:.1f} MB leased, {load.outcomes['answered']} requests answered")
            faults = [f"no {kind} seen while it ran" for kind in KINDS if kind not in FILES and not during.own[kind]]
            if case == "worker" and not replaced(ALONE[case], server, during.own["processes"]):
                faults.append(f"no other {ALONE[case]} within {BACK_S:g} s")
        faults += settled(server, samples) if case == "worker" else ended(case, server)
        deadline = time.monotonic() + GONE_S
        while remains := left(during, after := look(server.temporary, before)):
            if time.monotonic() > deadline:
                break
        print(
            f"  {'nothing of it' if not remains else 'REMAINS'} {time.monotonic() - start:.1f} s after the kill",
            end="; ",
        )
        print(f"clients: {dict(load.outcomes)}")
        show(before, during, after, remains)
    return faults + [f"{kind}: {thing}" for kind, things in remains.items() for thing in things]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--tp", type=int, default=2)
    args = parser.parse_args()
    samples = list(held_out(16, 5, buckets=LARGE_BUCKETS))
    faults = 0
    for case in args.cases.split(","):
        for fault in (found := run(case, samples, args.tp)):
            print(f"  FAULT {fault}")
        faults += len(found)
        sys.stdout.flush()
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
