"""What the tokenizer process and the ranks say to each other, beside Ready and Returned of :mod:`coatcheck.messages`.

Way of a start, and of a request::

    tokenizer -> (Hello) -> every rank         as a note, in SGLang's own broadcast
    entry rank -> (Opened) -> every rank       likewise
    every rank -> (Attached) -> tokenizer      once all have, requests may carry tickets
    tokenizer -> (Ticket) -> every rank        inside the request
    every rank -> (Ready) -> entry rank -> (Settled) -> every rank
    every rank -> (Returned) -> tokenizer

A note is one of SGLang's own abort messages that can match no request, so that a rank without the plugin ignores it.
"""

from __future__ import annotations

import msgspec

from coatcheck.errors import WireError
from coatcheck.messages import Handle, Ready, Record, Returned
from coatcheck.wire import Decoder

MARK = "\0coatcheck"  # the request id of a note: no client's can be its prefix, since SGLang refuses empty ones
KEY = "coatcheck_ticket"  # where a ticket stands in the model-specific data of the one item that a request carries


class Hello(Record, frozen=True):
    """Tokenizer -> every rank, once: where the arena is (ArenaAddress as JSON), and where give-backs are taken."""

    arena: str
    returns: str


class Opened(Record, frozen=True):
    """Entry rank -> every rank, once: where it takes reports."""

    reports: str


class Attached(Record, frozen=True):
    """Rank -> tokenizer, once: it has mapped the arena, and parks requests that carry tickets."""

    rank: int


class Ticket(Record, frozen=True):
    """In place of a request's inputs: the block that holds them. Valid until this rank has sent Returned for it."""

    request: str  # of one dispatch: unique among all of this server, and not the client's request id
    handle: Handle  # uint8, (bytes,)
    copy: bool = False  # SGLang keeps the tensors beyond the request's end: lend none, copy them


class Settled(Record, frozen=True):
    """Entry rank -> every rank, in the broadcast: which parked requests leave, and how."""

    admitted: tuple[str, ...] = ()  # they leave in order of arrival
    rejected: tuple[tuple[str, str], ...] = ()  # and why


Note = Hello | Opened | Settled

ticket_of = Decoder[Ticket](Ticket)
from_ranks = Decoder[Attached | Returned](Attached | Returned)
report_of = Decoder[Ready](Ready)
_note: msgspec.json.Decoder[Note] = msgspec.json.Decoder(Note)


def write_note(record: Note) -> str:
    """For the text of an abort message."""
    return msgspec.json.encode(record).decode()


def read_note(text: str) -> Note:
    """What ``write_note`` made. Raises WireError for anything else."""
    try:
        return _note.decode(text)
    except msgspec.MsgspecError as error:
        raise WireError(f"not a note of ours: {error}") from error
