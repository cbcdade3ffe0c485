"""What the two sides say to each other, and the claim that SGLang pickles in place of inputs."""

from __future__ import annotations

import copy
import pickle

import pytest

from coatcheck.arena import ArenaAddress
from coatcheck.arena.handle import Handle
from coatcheck.delivery.records import Ready, Returned
from coatcheck.errors import WireError
from coatcheck.integrations.sglang.records import (
    Alive,
    Attached,
    Claim,
    Failed,
    Hello,
    Probe,
    Ticket,
    Withdrawn,
    from_ranks,
    to_ranks,
)
from coatcheck.wire import Record, encode

TICKET = Ticket("7", b"\x80body", (Handle(4096, 1, (9,), "uint8"), Handle(8192, 2, (9,), "uint8")))
DOWN = [Hello(ArenaAddress("/proc/1/fd/3", "/proc/1/fd/4", 8192), "ipc://x"), TICKET, Withdrawn("7"), Probe(3)]
UP = [Attached(1), Attached(1, "why"), Ready("7", 0), Failed("7", 0, "why"), Returned("7", 0), Alive(3, 1)]


@pytest.mark.parametrize("record", DOWN, ids=lambda record: type(record).__name__)
def test_what_ranks_are_told_comes_back_as_it_was(record: Record) -> None:
    assert to_ranks(encode(record)) == record


@pytest.mark.parametrize("record", UP, ids=lambda record: type(record).__name__)
def test_what_ranks_tell_comes_back_as_it_was(record: Record) -> None:
    assert from_ranks(encode(record)) == record


@pytest.mark.parametrize("frame", [b"", b"junk", b"\xc1", encode(UP[0]), encode(TICKET)[:-1]], ids=range(5))
def test_ranks_refuse_anything_else(frame: bytes) -> None:
    with pytest.raises(WireError):
        to_ranks(frame)


@pytest.mark.parametrize("frame", [b"", b"junk", b"\xc1", encode(TICKET), encode(UP[0])[:-1]], ids=range(5))
def test_and_so_does_the_tokenizer(frame: bytes) -> None:
    with pytest.raises(WireError):
        from_ranks(frame)


def test_a_ticket_s_size_is_its_body_s() -> None:
    assert len(encode(TICKET)) <= 128


@pytest.mark.parametrize("claim", [Claim("7"), Claim("", "why")])
def test_a_claim_travels_as_a_pickle_and_has_no_items(claim: Claim) -> None:
    made = pickle.loads(pickle.dumps(claim))
    assert type(made) is Claim
    assert made == claim == copy.copy(claim)
    assert made  # SGLang looks at the items of what is true
    assert [*made.mm_items] == []
