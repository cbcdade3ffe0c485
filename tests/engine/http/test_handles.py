"""Payloads on their way through the arena: a worker writes in place, the ranks get handles, every block comes back."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from PIL import Image

from coatcheck.arena import Arena, ArenaReader
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle, PixelForm, nbytes
from coatcheck.delivery.records import Returned
from coatcheck.engine.chat.handler import Processor
from coatcheck.engine.http.config import FrontendConfig
from coatcheck.engine.records import Arrived, FromRanks, Rejected
from coatcheck.engine.strategies.materialize import tensor_over
from coatcheck.errors import BadRequest, Overloaded, WorkerFailed
from coatcheck.intake.placement import Payloads
from coatcheck.intake.pool import WorkerPool
from coatcheck.intake.records import Job, Stored, Tensor, Want
from coatcheck.intake.rooms import Rooms
from coatcheck.intake.writer import Take, Values
from coatcheck.pixels import PixelTable, image_processor
from tests.support.front_end import ANSWER, RunningServer, chat_body, encoded, image_part, process, wait_for

HEADER = "X-Coatcheck-Strategy"
IMAGES = [encoded(Image.effect_noise((200, 120), 80).convert("RGB")), encoded(Image.new("RGB", (60, 60), "red"))]


def ask(server: RunningServer, strategy: str, *images: bytes, **more: Any) -> httpx.Response:
    body = chat_body(*map(image_part, images), "What is it?", **more)
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={HEADER: strategy}, timeout=15)


def statistics(server: RunningServer) -> tuple[int, int, int]:
    arena = server.front_end.arena
    assert arena is not None
    found = arena.statistics()
    return found.reserved, found.in_use, found.quarantined


def reading(server: RunningServer, seen: list[list[bytes]], last: Callable[[Arrived], FromRanks] | None = None) -> None:
    """The fake entry rank looks at what the handles stand for, answers, and gives the blocks back."""
    say = server.entry.say(ANSWER)
    arena = server.front_end.arena
    assert arena is not None
    reader = ArenaReader(arena.address)

    def script(arrived: Arrived) -> Iterable[FromRanks]:
        views = [reader.view(item.pixels) for item in arrived.items if isinstance(item.pixels, Handle)]
        seen.append([bytes(view) for view in views])
        yield from say(arrived) if last is None else [last(arrived)]
        yield Returned(arrived.request, 0)

    server.entry.script = script


def test_ranks_see_the_same_pixels_by_handle_as_by_frame(server: RunningServer) -> None:
    """Compact by handle, wide by frame: the same once widened."""
    table = PixelTable.of(image_processor(server.config.model_dir))
    seen: list[list[bytes]] = []
    reading(server, seen)
    assert ask(server, "dict-inline", *IMAGES).status_code == 200
    by_frame, frames = server.entry.requests[-1]
    answer = ask(server, "handle-inline", *IMAGES)
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER
    by_handle, nothing = server.entry.requests[-1]
    assert nothing == []
    assert by_handle.ids == by_frame.ids
    for item, payload, frame in zip(by_handle.items, seen[-1], frames, strict=True):
        assert isinstance(item.pixels, Handle)
        wide = table.widen(tensor_over(payload, item.pixels))
        assert wide.numpy().tobytes() == frame
    strip = {"pixels": by_frame.items[0].pixels}
    assert [replace(item, **strip) for item in by_handle.items] == [replace(item, **strip) for item in by_frame.items]
    wait_for(lambda: statistics(server) == (0, 0, 0))


def test_an_image_that_comes_again_is_stored_once(server: RunningServer) -> None:
    arena = server.front_end.arena
    assert arena is not None
    seen: list[list[bytes]] = []
    reading(server, seen)
    picture = encoded(Image.effect_noise((90, 60), 50).convert("RGB"))
    assert ask(server, "handle-inline", picture).status_code == 200
    wait_for(lambda: statistics(server) == (0, 0, 0))
    before = arena.statistics()
    assert ask(server, "handle-inline", picture, picture).status_code == 200
    wait_for(lambda: statistics(server) == (0, 0, 0))
    after = arena.statistics()
    assert (after.hits - before.hits, after.cached - before.cached) == (2, 0)
    first, second = [item.pixels for item in server.entry.last.items]
    assert first == second
    assert seen[0][0] == seen[1][0] == seen[1][1]
    assert after.reservations == before.reservations, "room was reserved for content that was there"


def test_what_is_stored_is_not_decoded_again(model_dir: Path) -> None:
    body = json.dumps(chat_body(*map(image_part, [*IMAGES, IMAGES[0]]))).encode()
    processor = Processor(FrontendConfig(model_dir=model_dir, model_name="coatcheck-tiny"))
    made, _ = process(processor, body, "uint8")
    decoded = []

    def room(wants: Sequence[Want]) -> Sequence[Take | Stored]:
        assert [want.digest for want in wants] == [item.digest for item in made.items]
        assert [want.nbytes for want in wants] == [nbytes(item.pixels) for item in made.items], "sizes from the headers"

        def taken(values: Values, dtype: PixelForm) -> Tensor:
            decoded.append(values.shape)
            return Tensor(0, made.items[1].pixels.shape, dtype)

        return [Stored(made.items[0]), taken, Stored(made.items[0])]

    again = processor.process(Job(1, "uint8"), body, room)
    assert decoded == [made.items[1].pixels.shape]
    assert again.ids == made.ids
    assert [item.start for item in again.items] == [item.start for item in made.items]


def test_a_broken_image_gives_its_room_back(server: RunningServer) -> None:
    reading(server, [])
    broken = IMAGES[0][: len(IMAGES[0]) // 2]
    refused = ask(server, "handle-inline", IMAGES[1], broken)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_image"
    wait_for(lambda: statistics(server) == (0, 0, 0))


def test_identity_is_of_the_encoded_bytes_and_how_they_are_processed(model_dir: Path, tmp_path: Path) -> None:
    def digests(directory: Path, *pictures: bytes) -> list[bytes]:
        processor = Processor(FrontendConfig(model_dir=directory, model_name="m"))
        body = json.dumps({**chat_body(*map(image_part, pictures)), "model": "m"}).encode()
        return [item.digest for item in process(processor, body)[0].items]

    one, two = digests(model_dir, *IMAGES)
    assert len(one) == 32
    assert one != two
    assert digests(model_dir, IMAGES[0]) == [one]
    other = tmp_path / "other"
    shutil.copytree(model_dir, other)
    settings = json.loads((other / "preprocessor_config.json").read_text())
    settings["image_mean"] = [0.5, 0.5, 0.5]
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    assert digests(other, IMAGES[0]) != [one]


def test_text_needs_no_room(server: RunningServer) -> None:
    arena = server.front_end.arena
    assert arena is not None
    before = arena.statistics().reservations
    assert ask(server, "handle-background").status_code == 200
    assert arena.statistics().reservations == before


def test_blocks_come_back_from_a_rejected_request(server: RunningServer) -> None:
    seen: list[list[bytes]] = []
    reading(server, seen, lambda arrived: Rejected(arrived.request, "no", 0))
    assert ask(server, "handle-inline", IMAGES[0]).status_code == 500
    wait_for(lambda: statistics(server) == (0, 0, 0))


def test_a_full_arena_is_back_pressure(server: RunningServer) -> None:
    arena = server.front_end.arena
    assert arena is not None
    filled = arena.reserve(arena.capacity - PAGE)
    try:
        answer = ask(server, "handle-inline", IMAGES[0])
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert "had no room" in answer.json()["error"]["message"]
    finally:
        server.loop.call_soon_threadsafe(arena.cancel, filled)
    seen: list[list[bytes]] = []
    reading(server, seen)
    assert ask(server, "handle-inline", IMAGES[0]).status_code == 200, "the worker did not go on"
    wait_for(lambda: statistics(server) == (0, 0, 0))


def test_what_is_larger_than_the_arena_says_both_sizes(server: RunningServer) -> None:
    arena = server.front_end.arena
    assert arena is not None
    answer = ask(server, "handle-inline", *[encoded(Image.new("RGB", (1960, 1960)))] * 3)
    assert answer.status_code == 413
    assert f"this server's arena has {arena.capacity}" in answer.json()["error"]["message"]
    assert str(3 * 74 * 74 * 588) in answer.json()["error"]["message"]


def test_metrics_tell_the_arena_s_state(server: RunningServer) -> None:
    page = httpx.get(f"{server.url}/metrics").text
    assert 'coatcheck_arena_bytes{state="in_use"} 0.0' in page
    assert 'coatcheck_arena_bytes{state="free"}' in page
    assert "coatcheck_arena_reservations_total" in page


# A worker that asks for room, and then does what the body says.
SCRIPT = """
import os, sys, time, zmq
from coatcheck import process, wire
from coatcheck.arena import ArenaAddress, AttachedMemory
from coatcheck.arena.handle import *
from coatcheck.intake.records import *
from coatcheck.intake.records import FromWorker, ToWorker
process.die_with_parent(); process.leave_signals_to_parent()
socket = zmq.Context().socket(zmq.DEALER)
socket.setsockopt(zmq.IDENTITY, sys.argv[2].encode())
socket.connect(sys.argv[1])
memory = AttachedMemory(ArenaAddress.from_json(sys.argv[4]), writable=True)
wire.send(socket, WorkerReady(pid=os.getpid()))
poller = zmq.Poller()
poller.register(socket, zmq.POLLIN)
poller.register(0, zmq.POLLIN)
decode = wire.Decoder[ToWorker](ToWorker)
while 0 not in dict(poller.poll()):
    record, body = socket.recv_multipart()
    job = decode(record).job
    wire.send(socket, Need(job, (Want(5), Want(6))))
    granted = decode(socket.recv())
    if isinstance(granted, NoRoom):
        wire.send(socket, Failed(job, "no room"))
        continue
    items = []
    for place, size in zip(granted.places, (5, 6)):
        memory.view[place.offset : place.offset + size] = body[:1] * size
        items.append(Item(Handle(place.offset, place.nonce, (size,), "uint8"), (1, 1, 1), 0, 1))
    match body:
        case b"die": os._exit(3)
        case b"sleep": time.sleep(60)
        case b"refuse": wire.send(socket, Refused(job, "no", "p", "c", 422)); continue
        case b"twice": wire.send(socket, Need(job, (Want(5), Want(6)))); time.sleep(60)
        case b"elsewhere": items[0] = Item(Handle(0, 1, (5,), "uint8"), (1, 1, 1), 0, 1)
    wire.send(socket, Processed(job, (1,), tuple(items), Sampling(1), False, False, ()))
"""


@asynccontextmanager
async def pool(wait_s: float = 0.2, **options: Any) -> AsyncIterator[tuple[WorkerPool, Arena]]:
    config = FrontendConfig(model_dir=Path("unused"), model_name="m", **{"workers": 1, **options})
    with Arena(8 * PAGE) as arena:
        made = WorkerPool(config, command=(sys.executable, "-c", SCRIPT), rooms=Rooms(arena, wait_s))
        await made.start()
        try:
            yield made, arena
        finally:
            await made.close()


@pytest.mark.anyio
async def test_a_worker_writes_in_place_and_its_blocks_are_leased() -> None:
    async with pool() as (made, arena):
        record, frames = await made.process(b"write", Payloads(holder="a"))
        assert frames == []
        reader = ArenaReader(arena.address)
        handles = [item.pixels for item in record.items if isinstance(item.pixels, Handle)]
        assert [bytes(reader.view(handle)) for handle in handles] == [b"wwwww", b"wwwwww"]
        assert arena.statistics().in_use == 2 * PAGE
        arena.end("a")
        assert arena.statistics().free == 8 * PAGE
        reader.close()


@pytest.mark.anyio
@pytest.mark.parametrize("body", [b"die", b"twice", b"elsewhere", b"sleep", b"refuse"])
async def test_a_worker_s_end_costs_its_request_and_no_room(body: bytes) -> None:
    async with pool(job_timeout_s=2) as (made, arena):
        with pytest.raises((WorkerFailed, BadRequest)):
            await made.process(body, Payloads(holder="a"))
        arena.end("a")
        assert arena.statistics().free == 8 * PAGE, "the range of a worker that ended did not come back"
        await made.process(b"write", Payloads(holder="b"))
        assert arena.statistics().in_use == 2 * PAGE


@pytest.mark.anyio
async def test_no_room_in_time_is_overload_and_the_worker_lives() -> None:
    async with pool() as (made, arena):
        filled = arena.reserve(8 * PAGE)
        with pytest.raises(Overloaded):
            await made.process(b"write", Payloads(holder="a"))
        arena.cancel(filled)
        await made.process(b"write", Payloads(holder="b"))
        assert made.statistics().deaths == 0


@pytest.mark.anyio
async def test_a_client_that_leaves_the_line_holds_up_nobody() -> None:
    async with pool(wait_s=30) as (made, arena):
        filled = arena.reserve(7 * PAGE)  # one page is left; a job wants two
        leaving = asyncio.create_task(made.process(b"write", Payloads(holder="a")))
        await made.ready(30)
        await asyncio.sleep(0.3)
        leaving.cancel()
        async with asyncio.timeout(5):  # its only worker is free again, long before the wait is over
            with pytest.raises(asyncio.CancelledError):
                await leaving
            waiting = asyncio.create_task(made.process(b"write", Payloads(holder="b")))
            await asyncio.sleep(0.1)
            arena.cancel(filled)
            await waiting
        assert arena.statistics().in_use == 2 * PAGE
        assert made.statistics().deaths == 0


@pytest.mark.anyio
async def test_waiting_for_room_is_no_time_of_the_worker_s() -> None:
    async with pool(wait_s=30, job_timeout_s=0.5) as (made, arena):
        filled = arena.reserve(8 * PAGE)
        waiting = asyncio.create_task(made.process(b"write", Payloads(holder="a")))
        await asyncio.sleep(1)
        arena.cancel(filled)
        async with asyncio.timeout(5):
            await waiting
        assert made.statistics().deaths == 0
