"""Payloads on their way through the arena: a worker writes in place, the ranks get handles, every block comes back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from PIL import Image

from coatcheck.arena import ArenaReader
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle, nbytes
from coatcheck.delivery.records import Returned
from coatcheck.engine.records import Arrived, FromRanks, Rejected
from coatcheck.engine.strategies.materialize import tensor_over
from coatcheck.intake.media.processor import MediaProcessor
from coatcheck.intake.records import Stored
from coatcheck.pixels import PixelTable, image_processor
from tests.support.front_end import (
    ANSWER,
    Grants,
    RunningServer,
    chat_body,
    chat_handler,
    encoded,
    image_part,
    process,
    wait_for,
)

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


def test_what_is_stored_is_not_decoded_again(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps(chat_body(*map(image_part, [*IMAGES, IMAGES[0]]))).encode()
    handler = chat_handler(model_dir)
    made = process(handler, body, "uint8")
    decoded: list[Any] = []
    decode = MediaProcessor.decode

    def noted(*args: Any) -> Any:
        decoded.append(args)
        return decode(*args)

    monkeypatch.setattr(MediaProcessor, "decode", noted)
    process(handler, body, "uint8")
    assert len(decoded) == 3
    decoded.clear()
    pool = Grants(*map(Stored, made.items))
    again = process(handler, body, "uint8", pool)
    assert [want.digest for want in pool.wants] == [item.digest for item in made.items]
    assert [want.nbytes for want in pool.wants] == [nbytes(item.pixels) for item in made.items], "sizes by the headers"
    assert decoded == []
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
        body = json.dumps(chat_body(*map(image_part, pictures))).encode()
        return [item.digest for item in process(chat_handler(directory), body).items]

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
    assert f"the arena has {arena.capacity}" in answer.json()["error"]["message"]
    assert str(3 * 74 * 74 * 588) in answer.json()["error"]["message"]


def test_metrics_tell_the_arena_s_state(server: RunningServer) -> None:
    page = httpx.get(f"{server.url}/metrics").text
    assert 'coatcheck_arena_bytes{state="in_use"} 0.0' in page
    assert 'coatcheck_arena_bytes{state="free"}' in page
    assert "coatcheck_arena_reservations_total" in page
