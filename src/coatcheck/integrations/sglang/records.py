"""What the tokenizer process and the ranks say to each other, beside Ready and Returned of :mod:`coatcheck.messages`.

Way of a start, and of a request::

    tokenizer -> (Hello) -> every rank         as a note, in SGLang's own broadcast
    every rank -> (Attached) -> tokenizer      once all have, requests may be carried
    tokenizer -> (Ticket) -> every rank -> (Ready) -> tokenizer
    tokenizer -> (Claim) -> every rank         inside the request, in SGLang's own broadcast
    tokenizer -> (Withdrawn) -> every rank     instead, if there will be no claim
    every rank -> (Returned) -> tokenizer

The note is one of SGLang's own abort messages that can match no request, so that a rank without the plugin ignores it.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from coatcheck.errors import WireError
from coatcheck.messages import Handle, Ready, Record, Returned
from coatcheck.wire import Decoder

MARK = "\0coatcheck"  # the request id of a note: no client's can be its prefix, since SGLang refuses empty ones


class Hello(Record, frozen=True):
    """Tokenizer -> every rank, once: where the arena is (ArenaAddress as JSON), and where ranks are heard."""

    arena: str
    reports: str


class Attached(Record, frozen=True):
    """Rank -> tokenizer, once: it has mapped the arena, and takes tickets at that address."""

    rank: int
    tickets: str


class Ticket(Record, frozen=True):
    """Tokenizer -> every rank: prepare what is in that block. Valid until this rank has sent Returned for it."""

    request: str  # of one dispatch: unique among all of this server, and not the client's request id
    handle: Handle  # uint8, (bytes,)
    copy: bool = False  # SGLang keeps the tensors beyond the request's end: lend none, copy them


class Withdrawn(Record, frozen=True):
    """Tokenizer -> every rank: there will be no claim. Of a ticket that this rank has dropped already: ignored."""

    request: str


class Claim(msgspec.Struct, frozen=True):
    """In place of a request's inputs, where SGLang pickles them: what each rank has prepared, or why there is none.

    SGLang looks at the items of what stands there, on its way; of this there are none.
    """

    request: str  # of the ticket
    refusal: str | None = None
    mm_items: ClassVar[tuple[()]] = ()


ticket_of = Decoder[Ticket | Withdrawn](Ticket | Withdrawn)
from_ranks = Decoder[Attached | Ready | Returned](Attached | Ready | Returned)
_note: msgspec.json.Decoder[Hello] = msgspec.json.Decoder(Hello)


def write_note(hello: Hello) -> str:
    """For the text of an abort message."""
    return msgspec.json.encode(hello).decode()


def read_note(text: str) -> Hello:
    """What ``write_note`` made. Raises WireError for anything else."""
    try:
        return _note.decode(text)
    except msgspec.MsgspecError as error:
        raise WireError(f"not a note of ours: {error}") from error
