"""The link to the entry rank, against a bare ZMQ peer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import zmq
import zmq.asyncio

from coatcheck import wire
from coatcheck.engine.http.rank_link import RankLink, TokenStream
from coatcheck.engine.records import Abort, Arrived, RanksReady, Rejected, Sampling, Stop, ToEntry, Tokens, Verified
from coatcheck.errors import Overloaded, RankLost, RequestRejected
from coatcheck.wire import Record

pytestmark = pytest.mark.anyio
READY = RanksReady(ranks=2, pids=(1, 2), max_running=4, kv_tokens=100)


def arrived(request: str) -> Arrived:
    return Arrived(request=request, strategy="dict-inline", ids=(1,), items=(), sampling=Sampling(max_tokens=1))


class Peer:
    def __init__(self, link: RankLink) -> None:
        self._context = zmq.asyncio.Context()
        self._pull = self._context.socket(zmq.PULL)
        self._push = self._context.socket(zmq.PUSH)
        self._pull.connect(link.to_entry)
        self._push.connect(link.from_entry)
        self._decode = wire.Decoder[ToEntry](ToEntry)

    async def heard(self) -> ToEntry:
        async with asyncio.timeout(5):
            return self._decode((await self._pull.recv_multipart())[0])

    async def say(self, *records: Record) -> None:
        for record in records:
            await self._push.send(wire.encode(record))

    async def say_raw(self, data: bytes) -> None:
        await self._push.send(data)

    def close(self) -> None:
        self._context.destroy(linger=0)


@asynccontextmanager
async def linked(queue: int = 256) -> AsyncIterator[tuple[RankLink, Peer]]:
    link = RankLink(queue=queue)
    await link.start()
    peer = Peer(link)
    try:
        await peer.say(READY)
        assert await link.ready(5) == READY
        yield link, peer
    finally:
        peer.close()
        await link.close()
        await link.close()


async def words(answer: TokenStream) -> list[Tokens]:
    return [word async for word in answer]


async def test_messages_arrive_in_the_order_of_submit() -> None:
    async with linked() as (link, peer):
        for number in range(100):
            link.submit(arrived(str(number)), [])
        link.stop()
        assert [await peer.heard() for _ in range(101)] == [*[arrived(str(n)) for n in range(100)], Stop()]
        assert await link.flushed(1)


async def test_each_request_hears_its_own_words() -> None:
    async with linked() as (link, peer):
        a, b = link.submit(arrived("a"), []), link.submit(arrived("b"), [])
        first, second = Tokens(request="a", tokens=(1,)), Tokens(request="a", tokens=(2,), finish="stop")
        await peer.say(first, Rejected(request="b", reason="no room", rank=3), second, Tokens(request="x", tokens=()))
        assert await words(a) == [first, second]
        with pytest.raises(RequestRejected, match=r"rank 3.*no room"):
            await words(b)
        assert link.statistics().open == 0


async def test_closing_early_aborts_and_late_words_are_ignored() -> None:
    async with linked() as (link, peer):
        answer = link.submit(arrived("a"), [])
        assert await peer.heard() == arrived("a")
        await answer.aclose()
        await answer.aclose()
        assert await peer.heard() == Abort(request="a")
        await peer.say(Tokens(request="a", tokens=(1,), finish="stop"))
        ended = link.submit(arrived("b"), [])
        await peer.say(Tokens(request="b", tokens=(), finish="length"))
        assert len(await words(ended)) == 1
        await ended.aclose()  # after the last word: no abort
        link.stop()
        assert [await peer.heard(), await peer.heard()] == [arrived("b"), Stop()]


async def test_a_request_that_waits_is_taken_back_silently() -> None:
    returned: list[tuple[str, int | None]] = []
    link = RankLink(queue=3, on_returned=lambda request, rank: returned.append((request, rank)))
    await link.start()  # nobody connects, so nothing leaves
    try:
        link.submit(arrived("first"), [])
        await asyncio.sleep(0.05)  # ZeroMQ waits with this one
        answers = [link.submit(arrived(str(n)), []) for n in range(3)]
        with pytest.raises(Overloaded):
            link.submit(arrived("too many"), [])
        await answers[1].aclose()
        assert returned == [("too many", None), ("1", None)], "no rank has them, nor will, also before ranks are ready"
        peer = Peer(link)
        assert [await peer.heard() for _ in range(3)] == [arrived("first"), arrived("0"), arrived("2")]
        peer.close()
    finally:
        await link.close()


async def test_loss_fails_open_and_later_requests() -> None:
    async with linked() as (link, _):
        answer = link.submit(arrived("a"), [])
        link.lost("rank 1 ended with status 9")
        link.lost("a second report")
        with pytest.raises(RankLost, match="rank 1"):
            await words(answer)
        with pytest.raises(RankLost, match="rank 1"):
            link.submit(arrived("b"), [])


async def test_loss_and_time_out_while_starting() -> None:
    link = RankLink()
    await link.start()
    with pytest.raises(TimeoutError):
        await link.ready(0.05)
    link.lost("rank 0 did not start")
    with pytest.raises(RankLost, match="did not start"):
        await link.ready(5)
    await link.close()


async def test_nonsense_from_the_ranks_harms_nobody() -> None:
    async with linked() as (link, peer):
        answer = link.submit(arrived("a"), [])
        await peer.say_raw(b"\xc1nonsense")
        await peer.say(Stop())  # a record, but not one of the entry rank's
        await peer.say(Tokens(request="a", tokens=(), finish="stop"))
        assert len(await words(answer)) == 1


async def test_a_verified_digest_is_no_word_to_the_client(caplog: pytest.LogCaptureFixture) -> None:
    async with linked() as (link, peer):
        answer = link.submit(arrived("a"), [])
        await peer.say(Verified(request="a", digest="d" * 64))
        await peer.say(Tokens(request="a", tokens=(), finish="stop"))
        assert len(await words(answer)) == 1
    assert not caplog.records


async def test_addresses_can_be_given() -> None:
    link = RankLink(to_entry="tcp://127.0.0.1:*", from_entry="tcp://127.0.0.1:*")
    await link.start()
    await link.close()
    for address in (link.to_entry, link.from_entry):
        assert int(address.removeprefix("tcp://127.0.0.1:")) > 0
