"""One process of a team: its front end or one of its ranks. Started by ``team``, in a contender's own interpreter.

Commands come as lines of JSON on standard input, answers go as lines to the descriptor that was standard output;
whatever libraries print goes to standard error. An answer with ``failed`` says why the process cannot go on.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.handoff.meter import Front, Meter, Payload, Place, RankSide, checksum
from coatcheck.process import die_with_parent, set_name

VARIANTS = 2  # tensors of one size that take turns
WIDE, COMPACT = 1176, 588  # values per patch: 3 channels x 2 frames x 14 x 14, and one frame


def _values(grid: tuple[int, int, int], seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    patches = grid[0] * grid[1] * grid[2]
    return rng.random((patches, WIDE), dtype=np.float32), rng.integers(0, 256, (patches, COMPACT), dtype=np.uint8)


class FrontMember:
    """Runs each hand-off on an event loop, as a front end does."""

    def __init__(self, make: Callable[[Place], Front], place: Place) -> None:
        self._front = make(place)
        self._loop = asyncio.Runner()  # one for all, as executors and sockets belong to a loop
        self._values: dict[tuple[int, int, int], list[tuple[Any, Any]]] = {}

    def hand_off(self, name: str, grid: tuple[int, int, int], encoded: str, beat: bool) -> dict[str, Any]:
        """``beat``: measures how long the loop was not free, which disturbs everything else that is measured."""
        wide, compact = self._next(grid)
        for values in (wide, compact):  # new content
            values.reshape(-1).view(np.uint32)[0] = time.monotonic_ns() % 2**31
        payload = Payload(name, grid, wide, compact, Path(encoded).read_bytes())
        return self._loop.run(self._hand_off(payload, beat))

    def _next(self, grid: tuple[int, int, int]) -> tuple[Any, Any]:
        made = self._values.setdefault(grid, [])
        if len(made) < VARIANTS:
            made.append(_values(grid, len(made)))
        made.append(made.pop(0))
        return made[-1]

    def burst(self, names: list[str], grid: tuple[int, int, int], encoded: str) -> dict[str, Any]:
        """All of them, before any rank takes one. What is sent again may still be on its way: nothing is changed."""
        data = Path(encoded).read_bytes()
        for name in names:
            self._loop.run(self._hand_off(Payload(name, grid, *self._next(grid), data), False))
        return {}

    async def _hand_off(self, payload: Payload, beat: bool) -> dict[str, Any]:
        pulse = asyncio.create_task(_longest_gap()) if beat else None
        await asyncio.sleep(0)
        written = await self._front.hand_off(payload)
        self._written = written.values
        gap = None
        if pulse is not None:
            await asyncio.sleep(0)
            pulse.cancel()
            gap = await pulse
        return {
            "started": written.started,
            "writer_s": written.writer_s,
            "hash_s": written.hash_s,
            "carried": written.values.nbytes,
            "loop_block_s": gap,
        }

    def check(self) -> dict[str, Any]:
        """What every rank must have, of the last hand-off."""
        return {"checksum": checksum(self._written)}

    def settle(self, count: int) -> dict[str, Any]:
        """See :class:`benchmarks.handoff.meter.Front`."""
        for _ in range(count):
            self._front.settle()
        return {}

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        self._front.close()
        self._loop.close()


class _Clock:
    """Seconds in which this thread ran or slept: a wait for a core does not count."""

    def __init__(self) -> None:
        self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)  # its second number: that wait, in ns

    def now(self) -> float:
        return time.monotonic() - int(os.pread(self._file, 64, 0).split()[1]) / 1e9

    def close(self) -> None:
        os.close(self._file)


async def _longest_gap() -> float:
    """Seconds between two turns on the event loop, until it is cancelled.

    It turns all the time, unlike a front end's loop, so a core may well be taken from it: that does not count.
    """
    clock = _Clock()
    longest, last = 0.0, clock.now()
    while True:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            clock.close()
            return longest
        now = clock.now()
        longest, last = max(longest, now - last), now


class RankMember:
    """Takes what is handed off on its only thread."""

    def __init__(self, make: Callable[[Place], RankSide], place: Place) -> None:
        self._side = make(place)

    def take(self, waiting: Callable[[], None]) -> dict[str, Any]:
        """``waiting`` is called just before it sleeps. The tensor is kept for ``check``."""
        meter = Meter()
        self._side.prepare()
        waiting()
        self._side.wait()
        self._tensor = self._side.take(meter)
        return {"steps": meter.steps, "held": meter.steps[-1][2] if meter.held is None else meter.held}

    def check(self) -> dict[str, Any]:
        """Reads what was taken, and releases it."""
        begin = time.monotonic()
        found = checksum(self._tensor.numpy())
        read_s = time.monotonic() - begin
        del self._tensor
        return {"release": self._release(), "read_s": read_s, "checksum": found}

    def burst(self, count: int) -> dict[str, Any]:
        """Takes and releases so many, one after the other; they wait already."""
        taken = []
        self._side.prepare()
        for _ in range(count):
            meter = Meter()
            self._side.wait()
            self._side.take(meter)
            taken.append({"steps": meter.steps, "release": self._release()})
        return {"taken": taken}

    def _release(self) -> list[float]:
        """Wall and CPU seconds."""
        begin, cpu = time.monotonic(), time.thread_time()
        self._side.release()
        return [time.monotonic() - begin, time.thread_time() - cpu]

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        self._side.close()


class Member:
    """Obeys commands."""

    def __init__(self, directory: str, ranks: int, rank: int, out: IO[str]) -> None:
        self._place = directory, ranks, rank
        self._out = out
        self._sides: dict[str, FrontMember | RankMember] = {}
        self._joined = False

    def answer(self, **words: Any) -> None:
        """One line."""
        print(json.dumps(words), file=self._out, flush=True)

    def obey(self, do: str, contender: str, **options: Any) -> None:
        """One command, one answer; taking has one more, before."""
        side = self._sides.get(contender)
        if do == "open":
            self.answer(ranked=self._open(contender, **options))
        elif do == "hand_off" and isinstance(side, FrontMember):
            self.answer(**side.hand_off(grid=tuple(options.pop("grid")), **options))
        elif do == "burst" and isinstance(side, FrontMember):
            self.answer(**side.burst(grid=tuple(options.pop("grid")), **options))
        elif do == "check" and side is not None:
            self.answer(**side.check())
        elif do == "settle" and isinstance(side, FrontMember):
            self.answer(**side.settle(**options))
        elif do == "burst" and isinstance(side, RankMember):
            self.answer(**side.burst(**options))
        elif do == "take" and isinstance(side, RankMember):
            self.answer(**side.take(lambda: self.answer(waiting=True)))
        else:
            raise ValueError(f"{do} {contender}: not known here")

    def _open(self, contender: str, module: str) -> bool:
        """True if the contender has ranks at all."""
        code = importlib.import_module(module)
        place = Place(contender, *self._place)
        front, rank = code.SIDES[contender]
        if place.rank < 0:
            self._sides[contender] = FrontMember(front, place)
        if place.rank < 0 or rank is None:
            return rank is not None
        if hasattr(code, "join") and not self._joined:
            code.join(place)
            self._joined = True
        self._sides[contender] = RankMember(rank, place)
        return True

    def close(self) -> None:
        """All sides."""
        for side in self._sides.values():
            side.close()


def main(directory: str, ranks: str, rank: str) -> None:
    """Until standard input ends."""
    set_name(f"handoff-{'front' if rank == '-1' else rank}")
    die_with_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    member = Member(directory, int(ranks), int(rank), out)
    try:
        for line in sys.stdin:
            member.obey(**json.loads(line))
        member.close()
    except BaseException as error:
        traceback.print_exc()
        member.answer(failed=f"{type(error).__name__}: {error}".splitlines()[0])
    sys.stderr.flush()
    os._exit(0)  # what threads of libraries still do is not waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
