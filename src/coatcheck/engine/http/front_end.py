"""The front end as one object, for the launcher."""

from __future__ import annotations

import asyncio
import threading

from coatcheck.arena import Arena
from coatcheck.arena.queue import ArenaQueue
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.http.rank_link import RankLink
from coatcheck.engine.http.routes import create_app
from coatcheck.engine.model_files import context_length
from coatcheck.engine.records import RanksReady
from coatcheck.errors import ConfigError
from coatcheck.intake.pool import WorkerPool
from coatcheck.wire import to_argument

HANDLER = "coatcheck.engine.chat.handler:ChatHandler"  # what workers make of a body


class FrontEnd:
    """Owns the workers, the link to the ranks and the ASGI application ``app``; an HTTP server runs the application.

    ``async with`` starts and closes it, or call ``start`` and ``close``. Raises ConfigError when the model
    directory lacks a part.
    """

    def __init__(
        self,
        config: FrontendConfig,
        *,
        to_entry: str | None = None,
        from_entry: str | None = None,
        admin_token: str | None = None,
    ) -> None:
        """Addresses as in RankLink: None for private ones. Without a token there are no /admin routes.

        The token is no part of ``config``, which stands on the workers' command lines. Raises ConfigError if there
        is no memory for the arena.
        """
        self.config = config
        self.context = context_length(config.model_dir, config.context)
        self.arena = _arena(config.arena_bytes) if config.arena_bytes else None
        queue = ArenaQueue(self.arena, threading.Lock()) if self.arena is not None else None
        self.pool = WorkerPool(config, HANDLER, to_argument(config), arena=self.arena, queue=queue)
        self.link = RankLink(
            queue=config.max_waiting,
            to_entry=to_entry,
            from_entry=from_entry,
            on_returned=self.arena.returned if self.arena is not None else lambda request, rank: None,
        )
        self.app = create_app(config, self.pool, self.link, admin_token, self.arena, queue)

    async def start(self) -> None:
        """Binds the link (``link.to_entry`` and ``link.from_entry`` are valid then) and begins to start workers."""
        await self.link.start()
        await self.pool.start()

    async def ready(self, timeout_s: float) -> RanksReady:
        """Waits for a worker and for every rank. Raises WorkerFailed, RankLost, or TimeoutError after that time."""
        async with asyncio.timeout(timeout_s):
            workers = asyncio.create_task(self.pool.ready(timeout_s))
            ranks = asyncio.create_task(self.link.ready(timeout_s))
            try:
                await asyncio.gather(workers, ranks)
            finally:
                workers.cancel()
                ranks.cancel()
        return ranks.result()

    def drain(self) -> None:
        """New requests get 503 from here on; what is under way goes on."""
        self.app.state.draining = True

    async def drained(self, timeout_s: float) -> bool:
        """Waits until no request is left. False after that time."""
        return bool(await self.app.state.capacity.empty(timeout_s))

    async def stop_ranks(self, timeout_s: float) -> bool:
        """Tells the ranks to leave, and waits until the message is out. False after that time."""
        self.link.stop()
        return await self.link.flushed(timeout_s)

    async def close(self) -> None:
        """Fails what is left, ends the workers and closes the sockets. Idempotent; takes at most a few seconds."""
        self.drain()
        await self.link.close()
        await self.pool.close()
        if self.arena is not None:
            self.arena.close()

    async def __aenter__(self) -> FrontEnd:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _arena(nbytes: int) -> Arena:
    try:
        return Arena(nbytes)
    except ConfigError as error:
        raise ConfigError(f"--arena-mib: {error}") from error
