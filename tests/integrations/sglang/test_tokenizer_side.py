"""What becomes of a request at the tokenizer: carried and let go, or SGLang's own way as it came, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from coatcheck.arena import ArenaReader
from coatcheck.arena.handle import Handle
from coatcheck.delivery.records import Ready
from coatcheck.errors import ConfigError
from coatcheck.integrations.sglang.codec import LARGE, MOST_BODY, Remembered, unpack
from coatcheck.integrations.sglang.compact import Stored
from coatcheck.integrations.sglang.metrics import NoFrontMetrics
from coatcheck.integrations.sglang.records import Claim, Failed, Ticket, Withdrawn
from coatcheck.integrations.sglang.rollcall import Facts
from coatcheck.integrations.sglang.settings import Settings
from coatcheck.pixels import PixelTable
from tests.support.sglang_peer import Hashes, Peer, until

MANAGERS = "sglang.srt.managers"
SERVER = "ipc://a-server"
ARENA = 1 << 20


def settings(share: float = 1.0, whole: bool = False) -> Settings:
    return Settings(enabled=True, arena_bytes=ARENA, share=share, whole=whole, workers=None)


def feature(value: float = 1.0, nbytes: int = LARGE) -> torch.Tensor:
    return torch.full((nbytes // 4,), float(value))


def item(tensor: Any, **fields: Any) -> Any:
    modality = sys.modules["sglang.srt.multimodal.modality"].Modality.IMAGE
    made = sys.modules[f"{MANAGERS}.schedule_batch"].MultimodalDataItem
    return made(modality=modality, feature=tensor, model_specific_data=fields.pop("data", {}), **fields)


def inputs(*items: Any, **fields: Any) -> Any:
    return sys.modules[f"{MANAGERS}.schedule_batch"].MultimodalProcessorOutput(mm_items=[*items], **fields)


def request(rid: str, mm_inputs: Any, session: Any = None) -> Any:
    return sys.modules[f"{MANAGERS}.io_struct"].TokenizedGenerateReqInput(rid, mm_inputs, False, session)


class World:
    """A tokenizer's process with its ranks, and what SGLang's own code was given there."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.peer = Peer()
        self.sent: list[Any] = []
        self.aborted: list[str] = []
        self.sending: Callable[[], None] = lambda: None
        self.manager: Any = SimpleNamespace(
            send_to_scheduler=SimpleNamespace(getsockopt=lambda option: SERVER.encode()),
            rid_to_state={},
            _dispatch_to_scheduler=lambda abort: self.aborted.append(abort.rid),
        )

    def open(self, share: float = 1.0, whole: bool = False) -> None:
        facts = [
            Facts(
                tickets=rank.tickets,
                pid=rank.pid,
                server=s,
                whole=whole,
                **dict.fromkeys(("pool_tokens", "running", "input_tokens", "token_bytes"), 1),
            )
            for rank, s in zip(self.peer.addresses, (SERVER, ""), strict=True)
        ]
        self.tokenizer.open_arena(settings(share, whole), facts)
        until(self.tokenizer.opening(self.manager).done.is_set)

    @property
    def side(self) -> Any:
        return self.tokenizer.side(self.manager)

    @property
    def owner(self) -> Any:
        owner = self.side.owner
        assert owner is not None
        return owner

    async def _one(self, manager: Any, given: Any) -> None:
        assert manager is self.manager
        self.sending()
        self.sent.append(given)

    async def _batch(self, manager: Any, given: Sequence[Any]) -> None:
        self.sending()
        self.sent.extend(given)

    async def send(self, given: Any) -> None:
        await self.tokenizer.send_one(self._one, self.manager, given)

    async def send_batch(self, given: Sequence[Any]) -> None:
        await self.tokenizer.send_batch(self._batch, self.manager, [*given])

    def run(self, *given: Any) -> None:
        """One after the other."""

        async def each() -> None:
            for one in given:
                await self.send(one)

        asyncio.run(each())

    def ways(self) -> dict[str, int]:
        return {way: count for way, count in self.side.counts.items() if count}

    def read(self, ticket: Ticket) -> Any:
        """What the ranks get, copied."""
        reader = ArenaReader(self.peer.arena)
        made = unpack(ticket.body, [bytes(reader.view(handle)) for handle in ticket.handles])  # type: ignore[misc]
        reader.close()
        return made

    def close(self) -> None:
        self.peer.close()
        opening = self.tokenizer.opening(self.manager)
        if opening is not None and opening.ready is not None:
            opening.ready.close()


@pytest.fixture
def unopened(fresh: Callable[[str], Any]) -> Iterator[World]:
    made = World(fresh("tokenizer"))
    yield made
    made.close()


@pytest.fixture
def world(unopened: World) -> World:
    unopened.open()
    return unopened


# ---------------------------------------------------------------------- carried


def test_a_claim_is_sent_and_the_ranks_get_the_inputs(world: World) -> None:
    tensor = torch.rand(LARGE // 4)
    grid = torch.tensor([[1, 2, 3]])
    world.run(request("r", inputs(item(tensor.clone(), data={"grid": grid}), input_ids=[1, 2, 3])))
    (sent,), (ticket,) = world.sent, world.peer.tickets()
    assert sent.mm_inputs == Claim(ticket.request)
    assert sent.rid == "r"
    made = world.read(ticket)
    assert torch.equal(made.mm_items[0].feature, tensor)
    assert torch.equal(made.mm_items[0].model_specific_data["grid"], grid)
    assert made.input_ids == [1, 2, 3]
    assert world.ways() == {"carried": 1}


def test_what_was_sent_is_let_go_although_its_request_is_kept(world: World) -> None:
    """SGLang keeps the request until it is answered, and its own way takes the features out of it when it is sent."""
    tensors = [feature(value) for value in (1, 2, 3)]
    ends = [weakref.ref(tensor) for tensor in tensors]
    given = [request(str(index), inputs(item(tensor))) for index, tensor in enumerate(tensors)]
    del tensors

    async def let_go(*ends: weakref.ref[Any]) -> None:
        deadline = time.monotonic() + 5
        while any(end() is not None for end in ends):  # the writer's thread may still be leaving its function
            assert time.monotonic() < deadline, "the tokenizer keeps pixels that are in the arena"
            await asyncio.sleep(0.01)

    async def serve() -> None:
        await world.send(given[0])
        await let_go(ends[0])
        await world.send_batch(given[1:])
        await let_go(*ends)

    asyncio.run(serve())
    assert all(one.mm_inputs is None for one in given)
    assert all(isinstance(sent.mm_inputs, Claim) for sent in world.sent)


def test_what_took_sglang_s_own_way_is_sglang_s_to_let_go(world: World) -> None:
    given = request("r", inputs(item(feature()), token_type_ids=object()))
    mm_inputs = given.mm_inputs
    world.run(given)
    assert world.sent == [given]
    assert world.sent[0] is given
    assert given.mm_inputs is mm_inputs
    assert world.ways() == {"not packable": 1}


def test_one_picture_in_several_prompts_is_one_block_and_one_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor, hashes = torch.rand(LARGE // 4), Hashes(monkeypatch)
    world.run(*(request(str(n), inputs(item(tensor), input_ids=[n] * 100)) for n in range(3)))
    tickets = world.peer.tickets()
    assert len({ticket.handles for ticket in tickets}) == 1
    assert len({ticket.body for ticket in tickets}) == 3
    assert hashes.count == 1
    assert len({world.read(ticket).mm_items[0].hash for ticket in tickets}) == 1
    assert world.read(tickets[0]).mm_items[0].hash is not None


def test_copies_of_one_request_are_hashed_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As parallel sampling sends them: copies with items of their own, over the same features."""
    tensor, hashes = torch.rand(LARGE // 4), Hashes(monkeypatch)
    world.run(*(request(str(n), inputs(item(tensor), input_ids=[1])) for n in range(4)))
    assert hashes.count == 1
    assert world.owner.statistics().reservations == 1


def test_a_picture_has_the_name_that_sglang_s_own_way_gives_it(world: World) -> None:
    """So that SGLang's caches know it again, whichever way it goes next time."""
    tensor = torch.rand(LARGE // 4)
    theirs = item(tensor)
    theirs.set_pad_value()
    world.run(request("r", inputs(item(tensor))), request("again", inputs(item(tensor.clone()))))
    for ticket in world.peer.tickets():
        (made,) = world.read(ticket).mm_items
        assert (made.hash, made.pad_value) == (theirs.hash, theirs.pad_value)


def test_a_name_that_sglang_gave_stays(world: World) -> None:
    world.run(request("r", inputs(item(feature(), hash=5, pad_value=7))))
    (made,) = world.read(world.peer.tickets()[0]).mm_items
    assert (made.hash, made.pad_value) == (5, 7)


@pytest.mark.parametrize("skip", [True, False])
def test_who_wants_no_names_by_content_gets_none(skip: bool, world: World, fake_sglang: pytest.MonkeyPatch) -> None:
    flag = sys.modules["sglang.srt.environ"].envs.SGLANG_MM_SKIP_COMPUTE_HASH
    fake_sglang.setattr(flag, "get", lambda: skip)
    world.run(request("r", inputs(item(feature()))))
    (made,) = world.read(world.peer.tickets()[0]).mm_items
    assert (made.hash is None, made.pad_value is None) == (skip, skip)
    assert world.ways() == {"carried": 1}
    parcel = world.tokenizer.Parcel(
        inputs(item(feature()), item(feature(), hash=1), item(feature(), pad_value=1)), Remembered[int]()
    )
    assert parcel.unhashed == (0 if skip else LARGE)


def test_a_share_of_the_requests_may_be_carried(world: World, fresh: Callable[[str], Any]) -> None:
    other = World(fresh("tokenizer"))
    try:
        other.open(share=0.5)
        other.run(*(request(str(n), inputs(item(feature()))) for n in range(40)))
        ways = other.ways()
        assert ways.keys() == {"carried", "not in the share"}
        assert 8 <= ways["carried"] <= 32
    finally:
        other.close()


# ---------------------------------------------------------------------- SGLang's own way


def test_text_never_touches_the_plugin(fresh: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = fresh("tokenizer")
    monkeypatch.setattr(tokenizer, "side", lambda manager: pytest.fail("touched"))
    manager: Any = object()
    sent: list[Any] = []

    async def original(manager: Any, given: Any) -> None:
        sent.append(given)

    async def serve() -> None:
        text = request("r", None)
        await tokenizer.send_one(original, manager, text)
        await tokenizer.send_batch(original, manager, [text, text])
        assert sent == [text, [text, text]]
        assert sent[0] is text

    asyncio.run(serve())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def broken_metrics(world: World, patch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    patch.setattr(world.tokenizer, "metrics_wanted", lambda: True)
    patch.setattr(world.tokenizer, "FrontMetrics", fail)


def broken_parcel(world: World, patch: pytest.MonkeyPatch) -> None:
    def fail(given: Any) -> None:
        raise AttributeError("MultimodalDataItem has no attribute 'feature'")

    patch.setattr(world.tokenizer, "Parcel", fail)


def broken_thread(world: World, patch: pytest.MonkeyPatch) -> None:
    def fail(parcel: Any) -> bytes:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    patch.setattr(world.tokenizer.Parcel, "body", fail)


def broken_front(world: World, patch: pytest.MonkeyPatch) -> None:
    async def fail(parcel: Any) -> None:
        raise ValueError("operation forbidden on released memoryview object")

    patch.setattr(world.tokenizer.opening(world.manager).ready, "check_in", fail)


@pytest.mark.parametrize(
    "breaks", [broken_metrics, broken_parcel, broken_thread, broken_front], ids=lambda f: f.__name__
)
def test_whatever_goes_wrong_sglang_s_own_code_gets_the_request_as_it_came(
    breaks: Callable[[World, pytest.MonkeyPatch], None],
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaks(world, monkeypatch)
    given = [request(str(n), inputs(item(feature()))) for n in range(6)]
    kept = [one.mm_inputs for one in given]

    async def serve() -> None:
        for one in given[:4]:
            await world.send(one)
        await world.send_batch(given[4:])

    asyncio.run(serve())
    assert [id(sent) for sent in world.sent] == [id(one) for one in given]
    assert [id(one.mm_inputs) for one in given] == [id(one) for one in kept]
    assert len(warnings(caplog)) == 1, "logged once"
    assert caplog.records[-1].exc_info
    owner = world.tokenizer.opening(world.manager).ready

    def nothing_held() -> bool:
        statistics = owner.statistics()
        return (statistics.reserved, statistics.in_use) == (0, 0)

    until(nothing_held)  # of a batch, the thread of the other one may write on for a moment


def test_metrics_that_cannot_be_written_keep_nobody_from_being_carried(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(NoFrontMetrics):
        def went(self, way: Any) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.tokenizer, "NoFrontMetrics", Full)
    world.run(*(request(str(n), inputs(item(feature()))) for n in range(3)))
    assert all(isinstance(sent.mm_inputs, Claim) for sent in world.sent)
    assert warnings(caplog) == ["coatcheck's metrics could not be written"]


def test_a_full_arena_is_said_once_a_minute_and_costs_no_packing(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hashes = Hashes(monkeypatch)
    world.run(*(request(str(n), inputs(item(feature(n, ARENA // 2 + 5000)))) for n in range(10)))
    assert world.ways() == {"carried": 1, "no room": 9}
    assert hashes.count == 1
    (said,) = warnings(caplog)
    assert said == ("coatcheck's arena of 1 MiB is full: 1 requests took SGLang's own way so far, 1 were carried")
    monkeypatch.setattr(world.tokenizer, "SAY_S", 0)
    world.run(request("r", inputs(item(feature(99, ARENA // 2 + 5000)))))
    assert "10 requests took SGLang's own way so far" in warnings(caplog)[-1]


def test_what_sglang_s_own_way_takes_is_measured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    own: list[tuple[int, float]] = []
    monkeypatch.setattr(world.owner.pace, "own", lambda nbytes, seconds: own.append((nbytes, seconds)))
    world.sending = lambda: time.sleep(0.05)
    world.run(request("large", inputs(item(feature(1, 4 * ARENA)), item([feature()]))), request("r", inputs()))
    ((nbytes, seconds),) = own
    assert nbytes == 4 * ARENA + LARGE
    assert 0.05 <= seconds < 0.5


@pytest.mark.parametrize(
    ("made", "way"),
    [
        (lambda: request("r", inputs(item(feature())), session=object()), "session"),
        (lambda: request("r", inputs(item(torch.ones(2, device="meta")))), "not packable"),
        (lambda: request("r", inputs(item(feature()), input_ids=bytes(MOST_BODY))), "not packable"),
        (lambda: request("r", inputs(item(object()))), "not packable"),
        (lambda: request("r", inputs(item(feature(nbytes=2 * ARENA)))), "no room"),
    ],
    ids=["session", "no cpu tensor", "large body", "stranger", "large picture"],
)
def test_what_does_not_travel_goes_as_it_came(made: Callable[[], Any], way: str, world: World) -> None:
    given = made()
    mm_inputs = given.mm_inputs
    world.run(given)
    assert world.sent[0] is given
    assert given.mm_inputs is mm_inputs
    assert world.ways() == {way: 1}
    assert world.owner.statistics().in_use == 0


def test_inputs_without_items_are_no_business_of_the_plugin_s(world: World) -> None:
    given = request("r", inputs())
    world.run(given)
    assert world.sent[0] is given
    assert world.ways() == {}


def test_until_the_arena_is_open_and_after_its_ranks_have_ended_nothing_is_carried(
    world: World, fresh: Callable[[str], Any]
) -> None:
    def made() -> Any:
        return request("r", inputs(item(feature())))

    other = World(fresh("tokenizer"))
    try:
        other.run(made())  # of no server of ours
        assert other.side is None
        other.open()
        other.run(made())
        assert other.ways() == {"carried": 1}
        other.owner.close()
        other.run(made())
        assert other.ways() == {"carried": 1, "not attached": 1}
        other.open()  # another server, by chance with the same socket
        assert len(other.tokenizer._openings) == 1
    finally:
        other.close()


# ---------------------------------------------------------------------- trouble of ours is never the user's


def test_what_sglang_cannot_take_on_a_rank_is_refused_in_the_broadcast(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.peer.reports = lambda ticket, rank: Ready(ticket.request, rank, "IndexError" if rank else None)
    given = request("r", inputs(item(feature())))
    world.run(given)
    assert world.sent[0].mm_inputs == Claim("", "IndexError")
    assert given.mm_inputs is None
    assert warnings(caplog) == ["request r: IndexError"]


def test_what_fails_on_a_rank_takes_sglang_s_own_way_and_three_in_a_row_open_the_breaker(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.peer.reports = lambda ticket, rank: Failed(ticket.request, rank, "out of memory")
    world.peer.answers = lambda probe, rank: None
    given = [request(str(n), inputs(item(feature()))) for n in range(5)]
    world.run(*given)
    assert [id(sent) for sent in world.sent] == [id(one) for one in given]
    assert world.ways() == {"trouble": 3, "breaker open": 2}
    (said,) = warnings(caplog)
    assert said.startswith("out of memory. coatcheck carries nothing for now")


def test_a_silent_rank_costs_one_wait_and_no_request_fails(
    fresh: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coatcheck.integrations.sglang.arena_owner.READY_TIMEOUT_S", 0.3)
    monkeypatch.setattr("coatcheck.integrations.sglang.arena_owner.LOOK_S", 0.05)
    monkeypatch.setattr("coatcheck.integrations.sglang.breaker.LEAST_S", 0.1)
    world = World(fresh("tokenizer"))
    try:
        world.open()
        answers, ready = world.peer.answers, world.peer.reports
        world.peer.answers = lambda probe, rank: None
        world.peer.reports = lambda ticket, rank: None if rank else Ready(ticket.request, rank)
        given = [request(str(n), inputs(item(feature(n)))) for n in range(20)]

        async def serve() -> None:
            await asyncio.gather(*map(world.send, given[:10]))
            start = time.monotonic()
            await asyncio.gather(*map(world.send, given[10:]))
            assert time.monotonic() - start < 0.2

        asyncio.run(serve())
        assert sorted(int(sent.rid) for sent in world.sent) == [*range(20)]
        assert all(not isinstance(sent.mm_inputs, Claim) for sent in world.sent)
        assert world.ways() == {"trouble": 10, "breaker open": 10}
        assert len(warnings(caplog)) == 1
        world.peer.answers, world.peer.reports = answers, ready
        until(lambda: bool(world.owner.carries))
        world.run(request("later", inputs(item(feature()))))
        assert world.ways()["carried"] == 1
    finally:
        world.close()


def state(dispatched: bool) -> Any:
    return SimpleNamespace(dispatched=dispatched)


@pytest.mark.parametrize(("known", "withdrawn"), [(state(False), True), (state(True), False), (None, False)])
def test_what_sglang_could_not_send_is_withdrawn_unless_it_may_have_gone_out(
    known: Any, withdrawn: bool, world: World
) -> None:
    if known is not None:
        world.manager.rid_to_state["r"] = known

    def fail() -> None:
        raise ConnectionError("closed")

    world.sending = fail
    given = request("r", inputs(item(feature())))
    with pytest.raises(ConnectionError):
        world.run(given)
    assert given.mm_inputs is not None, "it was not sent"
    (ticket,) = world.peer.tickets()
    world.peer.told_all(*([ticket, Withdrawn(ticket.request)] if withdrawn else [ticket]))


def test_who_leaves_while_the_ranks_prepare_is_not_sent(world: World) -> None:
    world.peer.reports = lambda ticket, rank: None

    async def leave() -> None:
        sending = asyncio.create_task(world.send(request("r", inputs(item(feature())))))
        await asyncio.to_thread(world.peer.until_told, 1)
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        assert sending.cancelled()

    asyncio.run(leave())
    assert world.sent == []
    (ticket,) = world.peer.tickets()
    world.peer.told_all(ticket, Withdrawn(ticket.request))


@pytest.mark.parametrize("everything", [True, False])
def test_who_is_aborted_while_it_waits_is_aborted_again_behind_its_request(everything: bool, world: World) -> None:
    world.peer.reports = lambda ticket, rank: None
    originals: list[tuple[str, bool]] = []

    async def abort() -> None:
        sending = [asyncio.create_task(world.send(request(rid, inputs(item(feature()))))) for rid in ("a", "b")]
        await asyncio.to_thread(world.peer.until_told, 2)
        world.tokenizer.abort_request(
            lambda manager, rid, all_: originals.append((rid, all_)),
            world.manager,
            "" if everything else "a",
            everything,
        )
        for ticket in world.peer.tickets():
            world.peer.say(*(Ready(ticket.request, rank) for rank in range(2)))
        await asyncio.gather(*sending)

    asyncio.run(abort())
    assert len(world.sent) == 2
    assert sorted(world.aborted) == (["a", "b"] if everything else ["a"])
    assert originals == [("" if everything else "a", everything)]


def test_a_batch_is_sent_as_one_whatever_becomes_of_its_parts(world: World) -> None:
    given = [
        request("text", None),
        request("picture", inputs(item(feature()))),
        request("stranger", inputs(item(object()))),
        request("large", inputs(item(feature(nbytes=2 * ARENA)))),
        request("other", inputs(item(feature(2)))),
    ]
    asyncio.run(world.send_batch(given))
    assert [sent.rid for sent in world.sent] == [one.rid for one in given]
    assert [isinstance(sent.mm_inputs, Claim) for sent in world.sent] == [False, True, False, False, True]
    assert [one.mm_inputs is None for one in given] == [True, True, False, False, True]
    assert world.ways() == {"carried": 2, "not packable": 1, "no room": 1}


class Began:
    """Stands for ``Whole``."""

    made: ClassVar[list[tuple[Any, ...]]] = []
    fails: ClassVar[Exception | None] = None

    def __init__(self, *given: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.made.append(given)

    def wrap(self, counted: Callable[[Any], None]) -> None:
        """Says that one was processed."""
        counted("whole")


@pytest.mark.parametrize(
    "fails", [None, ConfigError("another model"), ZeroDivisionError()], ids=["begins", "refused", "fault"]
)
def test_workers_are_started_once_the_arena_is_open_and_whatever_happens_requests_go_on(
    unopened: World, monkeypatch: pytest.MonkeyPatch, fails: Exception | None
) -> None:
    world = unopened
    monkeypatch.setattr(world.tokenizer, "Whole", Began)
    monkeypatch.setattr(Began, "made", [])
    monkeypatch.setattr(Began, "fails", fails)
    world.manager.mm_processor = "the manager's"
    world.open(share=0.5, whole=True)

    async def original(manager: Any, given: Any) -> str:
        return f"tokenized {given}"

    async def ask() -> list[str]:
        opened = world.tokenizer.opening(world.manager)
        opened.done.clear()  # as if SGLang's first request came before
        answers = [await world.tokenizer.tokenize_one(original, world.manager, n) for n in range(3)]
        await asyncio.sleep(3 * world.tokenizer.OPENED_S)
        assert not Began.made
        opened.done.set()
        await world.side._beginning
        return answers

    assert asyncio.run(ask()) == ["tokenized 0", "tokenized 1", "tokenized 2"]
    assert Began.made == ([] if fails else [("the manager's", world.owner, 2, None, 0.5)])
    assert world.side.processed == ({} if fails else {"whole": 1})


def test_metrics_that_cannot_be_written_cost_no_request_anything(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Any, how: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(NoFrontMetrics, "taken", full)
    world.side._processed("whole")
    assert world.side.processed["whole"] == 1
    assert "could not be written" in caplog.text


class Kept:
    """Stands for what keeps an image in the arena."""

    def read(self, handle: Handle) -> torch.Tensor:
        return torch.arange(12, dtype=torch.uint8).view(4, 3)


@pytest.mark.parametrize("share", [1.0, 0.0], ids=["an image that is not in the arena any more", "not in the share"])
def test_images_of_ours_that_go_sglang_s_own_way_have_its_features(unopened: World, share: float) -> None:
    """Those that workers have processed are announced, whatever the share; here that fails."""
    world = unopened
    world.open(share)
    table = PixelTable(torch.arange(3 * 256, dtype=torch.float32).view(3, 256), 2, 1)
    image = Stored(Handle(4096, 7, (4, 3), "uint8"), table, Kept())
    world.run(request("a", inputs(item(image))))
    (sent,) = world.sent
    assert torch.equal(sent.mm_inputs.mm_items[0].feature, image.wide())
    assert world.ways() == {"trouble": 1}
