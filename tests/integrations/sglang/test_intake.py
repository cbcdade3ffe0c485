"""Images from their encoded bytes into the arena of an SGLang server, and on to its ranks: with real workers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import signal
import time
from collections.abc import Awaitable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from coatcheck.arena.handle import Handle
from coatcheck.errors import ArenaFull, BadRequest, Overloaded, WorkerFailed
from coatcheck.integrations.sglang import intake as module
from coatcheck.integrations.sglang.arena_owner import ArenaHolding, ArenaOwner, Trouble
from coatcheck.integrations.sglang.codec import pack
from coatcheck.integrations.sglang.compact import Stored
from coatcheck.integrations.sglang.intake import Intake, NoWorker, default_workers
from coatcheck.integrations.sglang.pace import Pace
from coatcheck.integrations.sglang.records import ImageProcessorConfig
from coatcheck.pixels import PixelTable
from tests.support import image_handler
from tests.support.sglang_peer import Peer, until

pytestmark = pytest.mark.processes

SIZE = 256 << 10
TABLE = PixelTable(torch.arange(3 * 256, dtype=torch.float32).view(3, 256), 2, 1)
CONFIG = ImageProcessorConfig("m:C", "{}", "{}")


class World:
    """A tokenizer's process with workers, and its ranks."""

    def __init__(self, workers: int, starting_s: str) -> None:
        self.peer = Peer()
        self.owner = ArenaOwner(SIZE, self.peer.addresses, Pace(0.0))
        assert self.owner.wait_attached(10) == ""
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(module, "HANDLER", image_handler.HANDLER)
        self._patch.setattr(module, "to_argument", lambda config: starting_s)
        self.intake = Intake(self.owner, CONFIG, workers, lambda: TABLE)

    def until_ready(self, workers: int = 1) -> None:
        until(lambda: len(self.intake.pids()) == workers and self.intake.ready)

    async def prepare(self, *images: bytes | str) -> list[Stored]:
        """Prepared."""
        async with asyncio.timeout(10):
            items, holding = await self.intake.prepare(images)
        assert all(isinstance(item.pixels, Handle) for item in items)
        return [Stored(item.pixels, TABLE, holding) for item in items]  # type: ignore[arg-type]

    @property
    def held(self) -> int:
        statistics = self.owner.statistics()
        return statistics.reserved + statistics.in_use + statistics.quarantined

    def until_free(self) -> None:
        gc.collect()
        until(lambda: self.held == 0)

    def close(self) -> None:
        self.owner.close()
        self.peer.close()
        self._patch.undo()


@contextlib.contextmanager
def opened(workers: int = 1, starting_s: str = "") -> Iterator[World]:
    made = World(workers, starting_s)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with opened() as made:
        made.until_ready()
        yield made


def values(image: Stored) -> bytes:
    return image.holding.read(image.handle).numpy().tobytes()


async def outcome(waiting: Awaitable[Any]) -> Any:
    try:
        return await waiting
    except Exception as error:
        return error


def test_the_default_leaves_cores_to_the_ranks_and_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, ranks, workers in ((2, 1, 1), (4, 2, 1), (16, 1, 8), (16, 8, 7), (128, 8, 8)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert default_workers(ranks) == workers


def test_bytes_base64_and_data_urls_are_one_image(world: World) -> None:
    data = b"an image \x00\xff"
    text = base64.b64encode(data).decode()
    first, second, third = asyncio.run(world.prepare(data, text, f"data:image/png;base64,{text}"))
    assert values(first) == values(second) == values(third) == data
    assert first.handle == second.handle == third.handle, "one block"
    del first, second, third
    world.until_free()


def test_what_fails_holds_nothing(world: World) -> None:
    with pytest.raises(BadRequest):
        asyncio.run(world.prepare(b"good", b"bad"))
    world.until_free()
    start = time.monotonic()
    with pytest.raises(ArenaFull):
        asyncio.run(_two_that_do_not_fit(world))
    assert time.monotonic() - start < 5
    world.until_free()


async def _two_that_do_not_fit(world: World) -> None:
    first = await world.prepare(b"a" * (SIZE // 2 + 1))
    try:
        await world.prepare(b"b" * (SIZE // 2 + 1))
    finally:
        del first


def test_every_rank_is_told_of_images_and_they_are_kept_until_it_gives_them_back(world: World) -> None:
    async def checked_in() -> Any:
        images = await world.prepare(b"one", b"two")
        return await world.owner.check_in_stored(images, partial(pack, {"images": images}, images))

    ticket = asyncio.run(checked_in())
    assert len(ticket.handles) == 2
    world.peer.until_told(1)
    gc.collect()
    time.sleep(2 * module.ROOM_S)
    assert world.held > 0
    world.peer.give_back(ticket)
    world.until_free()


def test_an_image_of_another_arena_is_not_announced(world: World) -> None:
    async def checked_in() -> Any:
        (image,) = await world.prepare(b"one")
        other = Stored(image.handle, TABLE, ArenaHolding(world.owner, "nobody"))
        with pytest.raises(Trouble):
            await world.owner.check_in_stored([image, other], lambda: b"")

    asyncio.run(checked_in())
    world.until_free()


def test_who_leaves_takes_its_room_along(world: World) -> None:
    async def leaves() -> None:
        asking = asyncio.create_task(world.prepare(b"nap", b"x" * 1000))
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.wait([asking])

    asyncio.run(leaves())
    world.until_free()


def test_images_beyond_what_the_workers_can_do_are_not_queued(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> list[Any]:
        asked = (outcome(world.prepare(b"nap", json.dumps(n).encode())) for n in range(module.WAITING + 4))
        return await asyncio.gather(*asked)

    found = asyncio.run(ask())
    refused = [one for one in found if isinstance(one, Overloaded)]
    assert len(refused) == 3, "one is at the worker, and as many wait as may"
    assert not [one for one in found if isinstance(one, Exception) and not isinstance(one, Overloaded)]
    del found
    world.until_free()


def test_without_a_worker_nobody_waits() -> None:
    with opened(starting_s="2") as world:
        until(lambda: world.intake.table is not None)
        start = time.monotonic()
        assert isinstance(asyncio.run(outcome(world.prepare(b"x"))), NoWorker)
        world.until_ready()

        async def ask() -> Any:
            asking = asyncio.create_task(outcome(world.prepare(b"sleep")))
            await asyncio.sleep(0.2)
            for pid in world.intake.pids():
                os.kill(pid, signal.SIGKILL)
            return await asking

        assert isinstance(asyncio.run(ask()), WorkerFailed)
        assert time.monotonic() - start < 20
        until(lambda: not isinstance(asyncio.run(outcome(world.prepare(b"x"))), Exception))
        world.until_free()


@pytest.mark.parametrize("end", ["owner", "rank"])
def test_all_who_wait_when_it_ends_are_answered(end: str) -> None:
    with opened() as world:
        world.until_ready()

        async def ask() -> list[Any]:
            asking = [asyncio.create_task(outcome(world.prepare(b"sleep", str(n).encode()))) for n in range(5)]
            await asyncio.sleep(0.2)
            if end == "owner":
                await asyncio.to_thread(world.owner.close)
            else:
                await asyncio.to_thread(world.intake.close)
            return [*await asyncio.gather(*asking), await outcome(world.prepare(b"late"))]

        found = asyncio.run(ask())
        assert all(isinstance(one, (WorkerFailed, Trouble)) for one in found), found
        assert isinstance(found[-1], Trouble)


def test_one_that_ends_before_it_has_started_ends() -> None:
    with opened(starting_s="30") as world:
        start = time.monotonic()
        world.intake.close()
        assert not world.intake.ready
        assert time.monotonic() - start < module.CLOSE_S
