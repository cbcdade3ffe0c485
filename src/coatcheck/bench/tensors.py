"""Bare ranks, fed with prebuilt tensors by the front end's own link: preprocessing bounds nothing."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from coatcheck.arena import Arena
from coatcheck.arena.queue import ArenaQueue, Want
from coatcheck.bench.config import BenchConfig
from coatcheck.bench.driver import Heard
from coatcheck.bench.workload import TensorWorkload
from coatcheck.engine.http.rank_link import RankLink
from coatcheck.engine.http.strategy_choice import payload_policy
from coatcheck.engine.launcher.processes import RankProcesses, watch
from coatcheck.engine.ranks.config import RankConfig
from coatcheck.engine.ranks.settings import RankSettings
from coatcheck.engine.records import Arrived
from coatcheck.errors import CoatcheckError
from coatcheck.wire import Buffer

START_S = 180.0
REQUEST_S = 300.0  # of a closed loop: includes waiting for all that are under way
STOP_S = 30.0


class TensorDriver:
    """A :class:`coatcheck.bench.driver.Driver`. ``async with`` starts the ranks and, in the end, stops them."""

    def __init__(self, config: BenchConfig, workload: TensorWorkload, trace: Path, verify: bool) -> None:
        self._config = config
        self._workload = workload
        self._trace = trace
        self._verify = verify
        self.arena = Arena(config.arena_mib << 20)  # where payloads are under strategies with handles
        self._queue = ArenaQueue(self.arena, threading.Lock())
        self._link = RankLink(queue=config.concurrency, on_returned=self.arena.returned)
        self._numbers = itertools.count()

    def payload_bytes(self, strategy: str) -> int:
        """See :class:`coatcheck.bench.driver.Driver`."""
        return self._workload.payload_bytes(strategy)

    @property
    def prompt_tokens(self) -> int:
        """See :class:`coatcheck.bench.driver.Driver`."""
        return self._workload.prompt_tokens

    def pids(self) -> dict[str, int]:
        """See :class:`coatcheck.bench.driver.Driver`."""
        return {f"rank{rank}": pid for rank, pid in enumerate(self._ranks.pids)}

    async def ask(self, index: int, strategy: str) -> Heard:
        """See :class:`coatcheck.bench.driver.Driver`."""
        heard = Heard(f"{strategy}/{next(self._numbers)}")
        arrived, frames = self._workload.request(index, heard.name, strategy, self._verify)
        heard.sent = time.monotonic()
        tokens: list[int] = []
        try:
            async with asyncio.timeout(REQUEST_S):
                assert self._link.ranks is not None
                policy = payload_policy(strategy, heard.name, self._link.ranks.auto, "uint8")
                if policy.uses_arena([memoryview(frame).nbytes for frame in frames], self.arena.capacity):
                    arrived, frames = await self._stored(arrived, frames), []
                    self.arena.dispatch(arrived.request, range(self._config.tp))
                async with aclosing(self._link.submit(arrived, frames)) as answer:
                    async for word in answer:
                        if word.finish == "abort":
                            heard.error = "aborted"
                        if word.tokens:
                            heard.times.append(time.monotonic())
                            tokens.extend(word.tokens)
        except TimeoutError:
            heard.error = f"no end within {REQUEST_S:g} s"
        except CoatcheckError as error:
            heard.error = str(error).replace(heard.name, "...")
        finally:
            self.arena.end(heard.name)
        heard.said = " ".join(map(str, tokens))
        return heard

    async def _stored(self, arrived: Arrived, frames: Sequence[Buffer]) -> Arrived:
        """The same request, its payloads copied into the arena and leased to it, as a worker and the pool do."""
        views = [memoryview(frame).cast("B") for frame in frames]
        wants = [Want(len(view), item.digest) for item, view in zip(arrived.items, views, strict=True)]
        reserved = await self._queue.reserve(arrived.request, wants, REQUEST_S)
        items = []
        for item, view, held in zip(arrived.items, views, reserved, strict=True):
            block = held.block
            if not held.filled:
                with self.arena.writable(block) as room:
                    room[: len(view)] = view
                block = self.arena.commit(arrived.request, block, len(view), item.digest)
            pixels = block.handle(item.pixels.shape, item.pixels.dtype)
            items.append(msgspec.structs.replace(item, pixels=pixels))
        return msgspec.structs.replace(arrived, items=tuple(items))

    async def __aenter__(self) -> Self:
        await self._link.start()
        # Waiting in a closed loop is no failure here, however long the queue of a slow strategy gets.
        ranks = RankConfig(ready_timeout_s=REQUEST_S, trace=str(self._trace))
        arena = self.arena.address
        settings = RankSettings(self._config.engine, ranks, self._link.to_entry, self._link.from_entry, arena)
        self._ranks = RankProcesses(settings, self._config.tp)
        self._watch = asyncio.create_task(watch(self._ranks, self._link))
        try:
            await self._link.ready(START_S)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        if self._link.loss is None:
            self._link.stop()
            await asyncio.to_thread(self._ranks.wait, STOP_S)
        await self._close()

    async def _close(self) -> None:
        self._watch.cancel()
        self._ranks.kill()
        await self._link.close()
        self.arena.close()
