"""A program that uses the core, in one page: encoded images in, pixels on readers; no HTTP, no model, no group.

What a real program adds is around this: who asks, what for, and a model behind the readers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coatcheck import wire
from coatcheck.arena import Arena, ArenaReader
from coatcheck.arena.handle import Handle
from coatcheck.arena.queue import ArenaQueue
from coatcheck.intake.config import PoolConfig
from coatcheck.intake.media.handler import HANDLER, Encoded, Media, MediaConfig
from coatcheck.intake.placement import Policy
from coatcheck.intake.pool import WorkerPool
from coatcheck.intake.records import Item

READERS = 2


class ToyProgram(AbstractAsyncContextManager["ToyProgram"]):
    """``read`` is all that it does. Its readers are threads; each maps the arena for itself, as a rank would."""

    def __init__(self, model_dir: Path, arena_bytes: int, pool: PoolConfig) -> None:
        self.arena = Arena(arena_bytes)
        queue = ArenaQueue(self.arena, threading.Lock())
        config = wire.to_argument(MediaConfig(str(model_dir)))
        self.pool = WorkerPool(pool, HANDLER, config, arena=self.arena, queue=queue)
        self._readers = [ArenaReader(self.arena.address) for _ in range(READERS)]

    async def __aenter__(self) -> ToyProgram:
        await self.pool.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()
        for reader in self._readers:
            reader.close()
        self.arena.close()

    async def read(self, request: str, *images: bytes) -> tuple[tuple[Item, ...], list[list[NDArray[np.uint8]]]]:
        """The images as items, and their pixels as each reader sees them. Raises as ``WorkerPool.process``."""
        body = wire.encode(
            Media(tuple(Encoded("image", image, param=f"image {at}") for at, image in enumerate(images)))
        )
        try:
            done, _ = await self.pool.process(body, policy=Policy("uint8", request))
            handles = [item.pixels for item in done.items if isinstance(item.pixels, Handle)]
            self.arena.dispatch(request, range(READERS))
            seen = await asyncio.gather(*(asyncio.to_thread(self._seen, at, handles) for at in range(READERS)))
            for reader in range(READERS):
                self.arena.returned(request, reader)
            return done.items, list(seen)
        finally:
            self.arena.end(request)

    def _seen(self, reader: int, handles: Sequence[Handle]) -> list[NDArray[np.uint8]]:
        views = [self._readers[reader].view(handle) for handle in handles]
        return [
            np.frombuffer(view, np.uint8).reshape(handle.shape).copy()
            for view, handle in zip(views, handles, strict=True)
        ]
