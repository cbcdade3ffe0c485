"""Records to bytes and back; anything else is a WireError."""

from __future__ import annotations

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.arena import ArenaAddress
from coatcheck.delivery.records import Ready
from coatcheck.engine.records import Abort, Arrived, Plan, Sampling, Stop, ToEntry
from coatcheck.errors import WireError
from coatcheck.intake.config import WorkerSettings
from coatcheck.intake.records import Item, Tensor, check_frames
from coatcheck.wire import Decoder, encode, from_argument, received, send, to_argument

decode = Decoder[ToEntry](ToEntry)


def item(frame: int, shape: tuple[int, ...] = (2, 3)) -> Item:
    return Item(Tensor(frame, shape, "float32"), (1, 1, 2), 0, 1)


@given(
    st.builds(
        Arrived,
        st.text(),
        st.text(),
        st.lists(st.integers(0, 1 << 40)).map(tuple),
        st.just((item(0),)),
        st.builds(Sampling, st.integers(1, 9), st.floats(0, 2)),
    )
)
def test_round_trip(arrived: Arrived) -> None:
    assert decode(encode(arrived)) == arrived


@pytest.mark.parametrize("record", [Plan(1), Ready("a", 0)])
def test_a_record_of_another_union_is_refused(record: Plan | Ready) -> None:
    with pytest.raises(WireError, match="not a record"):
        decode(encode(record))


@given(st.binary())
def test_noise_is_refused_and_never_runs(noise: bytes) -> None:
    try:
        record = decode(noise)
    except WireError:
        return
    assert isinstance(record, Arrived | Abort | Stop)


def test_a_string_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(WireError, match="not a record"):
        decode(encode(Abort("request")).replace(b"request", b"reque\xff\xfe"))


def test_truncated_bytes_are_refused() -> None:
    whole = encode(Abort("request"))
    for end in range(len(whole)):
        with pytest.raises(WireError):
            decode(whole[:end])


def test_frames_must_be_those_described() -> None:
    check_frames([item(0), item(1)], [bytes(24), bytes(24)])
    for items, frames in (
        ([item(0)], []),
        ([], [b""]),
        ([item(1)], [bytes(24)]),
        ([item(0), item(0)], [bytes(24), bytes(24)]),
        ([item(0)], [bytes(23)]),
        ([item(0, (-2, -3))], [bytes(24)]),
    ):
        with pytest.raises(WireError):
            check_frames(items, frames)


def test_what_lies_ready_is_received_and_nothing_is_waited_for() -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as inbox, context.socket(zmq.PUSH) as peer:
        inbox.bind("inproc://inbox")
        peer.connect("inproc://inbox")
        assert list(received(inbox, decode)) == []
        send(peer, Abort("one"))
        peer.send(b"no record")
        send(peer, Abort("two"), [b"payload"])
        assert [(record, [*map(bytes, frames)]) for record, frames in received(inbox, decode)] == [
            (Abort("one"), []),
            (Abort("two"), [b"payload"]),
        ]


def test_arguments_of_processes_come_back_as_they_were() -> None:
    settings = WorkerSettings("ipc://x", ArenaAddress("/proc/1/fd/3", "/proc/1/fd/4", 8192), "m:C", '{"a":"\u00e9"}')
    assert from_argument(to_argument(settings), WorkerSettings) == settings
    for wrong in ("", "[]", "{}", "junk"):
        with pytest.raises(WireError, match="WorkerSettings"):
            from_argument(wrong, WorkerSettings)
