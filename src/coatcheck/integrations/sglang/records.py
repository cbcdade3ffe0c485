"""What the tokenizer process and the ranks say to each other, beside Ready and Returned of coatcheck.delivery.

Way of a start, and of a request::

    every rank -> (where it takes tickets) -> tokenizer    in what a rank tells SGLang when it is ready (rollcall)
    tokenizer -> (Hello) -> every rank -> (Attached) -> tokenizer
    tokenizer -> (Ticket) -> every rank -> (Ready | Failed) -> tokenizer
    tokenizer -> (Claim) -> every rank         inside the request, in SGLang's own broadcast
    tokenizer -> (Withdrawn) -> every rank     instead, if there will be no claim
    every rank -> (Returned) -> tokenizer      when nothing lies over the request's blocks any more
    tokenizer -> (Goodbye) -> every rank       at the end, or if not every rank could attach
    tokenizer -> (Probe) -> every rank -> (Alive) -> tokenizer     after a rank was silent, until all have answered
"""

from __future__ import annotations

import zlib
from typing import ClassVar

import msgspec

from coatcheck.arena import ArenaAddress
from coatcheck.arena.handle import Handle
from coatcheck.delivery.records import Ready, Returned
from coatcheck.wire import Decoder, Record


class Hello(Record, frozen=True):
    """Tokenizer -> every rank, first and once: where the arena is, and where ranks are heard."""

    arena: ArenaAddress
    reports: str


class Attached(Record, frozen=True):
    """Rank -> tokenizer, once: it has mapped the arena; or why it could not, and then it takes no ticket."""

    rank: int
    problem: str = ""


class Ticket(Record, frozen=True):
    """Tokenizer -> every rank: prepare these inputs. The blocks are valid until this rank has sent Returned for it."""

    request: str  # of one dispatch: unique among all of this server, and not the client's request id
    body: bytes  # the inputs, by :mod:`coatcheck.integrations.sglang.codec`, without their large tensors
    handles: tuple[Handle, ...]  # the large tensors, in the codec's order; each uint8, (bytes,)


class Withdrawn(Record, frozen=True):
    """Tokenizer -> every rank: there will be no claim. Of a ticket that this rank has dropped already: ignored."""

    request: str


class Goodbye(Record, frozen=True):
    """Tokenizer -> every rank, last: there will be no ticket any more. A rank lets go of the arena, if it can."""


class Probe(Record, frozen=True):
    """Tokenizer -> every rank: answer, if you can."""

    number: int


class Alive(Record, frozen=True):
    """Rank -> tokenizer: it works off what it is told, up to that probe."""

    number: int
    rank: int


class Failed(Record, frozen=True):
    """Rank -> tokenizer: the plugin could not prepare a ticket here. SGLang's own way may serve the request."""

    request: str
    rank: int
    why: str


class Images(Record, frozen=True):
    """Tokenizer -> worker, in mode ``whole``: the first frame of a job's body. A frame for each image follows."""

    base64: tuple[bool, ...]  # whether an image's frame is base64 of it


class ImageProcessorConfig(msgspec.Struct, frozen=True):
    """Of which a worker makes the image processor that the tokenizer's process has."""

    kind: str  # "module:Class", of transformers
    settings: str  # JSON: keywords of its constructor
    options: str  # JSON: keywords of every call


class Claim(msgspec.Struct, frozen=True):
    """In place of a request's inputs, where SGLang pickles them: what each rank has prepared, or why there is none.

    SGLang looks at the items of what stands there, on its way; of this there are none.
    """

    request: str  # of the ticket
    refusal: str | None = None
    mm_items: ClassVar[tuple[()]] = ()


to_ranks = Decoder[Hello | Ticket | Withdrawn | Probe | Goodbye](Hello | Ticket | Withdrawn | Probe | Goodbye)
from_ranks = Decoder[Attached | Ready | Failed | Returned | Alive](Attached | Ready | Failed | Returned | Alive)


def in_share(rid: str, share: float) -> bool:
    """Whether a request may go our way: by its id alone, so that one that is sent again goes the same way."""
    return zlib.crc32(rid.encode()) < share * (1 << 32)
