"""Mode ``whole``: the worker processes of a server, which decode and resize its images, on a thread of their own.

The thread has an event loop of its own, so that the tokenizer's only awaits. All of what is here may be called from
that one; nothing blocks it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence

from coatcheck.errors import CoatcheckError, WorkerFailed
from coatcheck.intake.config import PoolConfig
from coatcheck.intake.placement import Policy
from coatcheck.intake.records import Item
from coatcheck.integrations.sglang.arena_owner import ArenaHolding, ArenaOwner, Trouble
from coatcheck.integrations.sglang.records import ImageProcessorConfig, Images
from coatcheck.pixels import PixelTable
from coatcheck.process import set_name
from coatcheck.wire import Buffer, encode, to_argument

log = logging.getLogger(__name__)

HANDLER = "coatcheck.integrations.sglang.image_worker:ImageHandler"
MOST_WORKERS = 8  # a core decodes and resizes some 50 pictures of 1024 x 1024 a second, more than a GPU encodes
START_S = 120.0  # of a worker: importing torch and transformers takes 5 to 20 s, while the server starts, too
JOB_S = 30.0  # one request's images in a worker; past it the worker is killed, and SGLang's own way decides
ROOM_S = 0.1  # that images wait for room in a full arena: what SGLang's own way takes for one of 1024 x 1024
WAITING = 16  # requests for each worker that wait for one, before SGLang's own way is taken: some 0.3 s of pictures
CLOSE_S = 5.0  # until the workers have ended


class NoWorker(Trouble):
    """None is ready: they start, or start again."""


def default_workers(ranks: int) -> int:
    """From the cores that this process may use: one for each rank, one for the tokenizer, the rest, but at most 8."""
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) - ranks - 1))


class Intake:
    """Started when it is made; ends with the arena's owner."""

    def __init__(
        self, owner: ArenaOwner, config: ImageProcessorConfig, workers: int, measure: Callable[[], PixelTable]
    ) -> None:
        """``measure``: what widens the images, computed on the thread. If that fails no worker is started."""
        self.owner, self._config, self._workers, self._measure = owner, config, workers, measure
        self.table: PixelTable | None = None  # once it is known
        self._pool = owner.worker_pool(
            PoolConfig(
                workers=workers,
                max_waiting=WAITING * workers,
                worker_start_timeout_s=START_S,
                job_timeout_s=JOB_S,
                arena_wait_s=ROOM_S,
            ),
            HANDLER,
            to_argument(config),
        )
        self._gate, self._ending = threading.Lock(), False  # what has passed it is answered before the loop is closed
        self._end = asyncio.Event()
        self._loop = asyncio.SelectorEventLoop()  # not the policy's: SGLang sets uvloop's
        self._thread = threading.Thread(target=self._run, name="coatcheck-intake", daemon=True)
        self._thread.start()
        owner.before_end(self.close)

    def _run(self) -> None:
        """The workers die with this thread."""
        set_name("coatcheck-intake")
        try:
            self.table = self._measure()
            self._loop.run_until_complete(self._serve())
        except CoatcheckError as error:
            log.warning("coatcheck processes no images itself, and carries what SGLang makes of them: %s", error)
        except Exception:
            log.exception("coatcheck processes no images itself, and carries what SGLang makes of them")
        finally:
            with self._gate:
                self._ending = True
            self._loop.run_until_complete(_answered())
            self._loop.close()

    async def _serve(self) -> None:
        await self._pool.start()
        announcing = asyncio.create_task(self._announce())
        try:
            await self._end.wait()
        finally:
            announcing.cancel()
            await self._pool.close()

    async def _announce(self) -> None:
        try:
            await self._pool.ready(START_S)
        except (WorkerFailed, TimeoutError) as error:
            log.warning("coatcheck processes no images itself, and carries what SGLang makes of them: %s", error)
        else:
            log.info("coatcheck processes images in %d workers (mode whole)", self._workers)

    @property
    def ready(self) -> bool:
        """A worker takes images, or will after a restart."""
        return self.table is not None and not self._loop.is_closed() and self._pool.is_ready

    async def prepare(self, images: Sequence[bytes | str]) -> tuple[Sequence[Item], ArenaHolding]:
        """The images in the arena, compact, in their order; and what keeps them there. On any event loop.

        ``images``: encoded, or base64 of it, which may be in a data URL. Raises RequestError (Overloaded: more wait
        than the workers can do), ArenaError and Trouble (NoWorker: none is ready); then nothing is held.
        """
        with self._gate:
            if self._ending:
                raise Trouble("the workers have ended")
            preparing = asyncio.run_coroutine_threadsafe(self._prepare(images), self._loop)
        return await asyncio.wrap_future(preparing)

    async def _prepare(self, images: Sequence[bytes | str]) -> tuple[Sequence[Item], ArenaHolding]:
        if not self._pool.statistics().ready:
            raise NoWorker("no worker is ready")
        body = [encode(Images(tuple(isinstance(one, str) for one in images))), *map(_frame, images)]
        holder = self.owner.new_holder()
        try:
            done, _ = await self._pool.process(*body, policy=Policy("uint8", holder))
        except BaseException:
            self.owner.end(holder)
            raise
        return done.items, ArenaHolding(self.owner, holder)

    def close(self) -> None:
        """Ends the workers, and waits for that, but not long. On any thread but its own."""
        with self._gate:
            if not self._ending:
                self._ending = True
                self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(CLOSE_S)

    def pids(self) -> tuple[int, ...]:
        """Of the workers."""
        return self._pool.pids()


def _frame(image: bytes | str) -> Buffer:
    """Not to be done on SGLang's event loop: a photograph has megabytes."""
    if isinstance(image, bytes):
        return image
    data = memoryview(image.encode())
    return data[image.index(",") + 1 :] if image.startswith("data:") else data


async def _answered() -> None:
    """All that was asked for on this loop has its answer, and who asked on another one has heard it."""
    await asyncio.sleep(0)  # what was asked last is a task now
    asking = asyncio.all_tasks() - {asyncio.current_task()}
    if asking:
        await asyncio.wait(asking, timeout=CLOSE_S)
    await asyncio.sleep(0)
