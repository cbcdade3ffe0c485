"""The records that cross process boundaries. Frozen, without behaviour; each is named for what it says.

Every record is a msgpack array with a tag, decoded by type into a closed union (see :mod:`coatcheck.wire`): nothing
that arrives on a wire can name a class or run code. Payloads (pixels) never stand inside a record; they travel as raw
byte frames beside it, and a :class:`Tensor` says which frame, of what shape and dtype.

Way of a request::

    client -> front end -> (Job) -> worker -> (Need -> Grant ->, Processed | Refused) -> front end
    front end -> (Arrived | Abort | Stop) -> entry rank -> (Plan) -> every rank
    every rank -> (Ready | Consumed) -> entry rank -> (Tokens | Rejected | ...) -> front end
    every rank -> (Snapshot | Returned) -> front end
"""

from __future__ import annotations

from typing import Literal

import msgspec

PixelForm = Literal["uint8", "float32"]  # compact, wide: see coatcheck.pixels


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all records on a wire."""


# --------------------------------------------------------------------------- parts of records


class Tensor(Record, frozen=True):
    """A payload's description. Its bytes are frame ``frame`` beside the record.

    Contiguous, row-major, little-endian.
    """

    frame: int  # index among the frames beside the record, from 0: the tensors of a request have frames in order
    shape: tuple[int, ...]
    dtype: PixelForm


class Handle(Record, frozen=True):
    """A payload in the arena, at most 128 bytes encoded. Valid while its request holds a lease on the block."""

    offset: int  # bytes from the start of the segment, a multiple of 4096
    nonce: int  # random, 64 bits: equal to the block's as long as the block is this payload's
    shape: tuple[int, ...]  # contiguous, row-major, little-endian
    dtype: PixelForm


class Item(Record, frozen=True):
    """One image or video of a request, as the worker prepared it."""

    pixels: Tensor | Handle  # (patches, values per patch): float32 or uint8, see coatcheck.pixels
    grid: tuple[int, int, int]  # (t, h, w) in patches; t * h * w == patches
    start: int  # index of the item's first token in the prompt as the model gets it
    count: int  # tokens: t * h * w / merge**2
    digest: bytes = b""  # identity: blake3, 32 bytes, over the encoded bytes and the processor's configuration
    seconds: float | None = None  # a video's, from one temporal patch to the next; None: an image


class Sampling(Record, frozen=True):
    """How tokens are drawn and when generation ends."""

    max_tokens: int  # >= 1
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # (0, 1]
    seed: int = 0  # of this request's own generator; the front end draws one where the client gave none
    stop_ids: tuple[int, ...] = ()  # tokens that end generation (not returned as text); empty: run to max_tokens


# --------------------------------------------------------------------------- front end <-> worker


class Job(Record, frozen=True):
    """Front end -> worker. Frame 0: the HTTP request's JSON body, untouched."""

    job: int
    pixels: PixelForm = "float32"  # the form of the payloads
    arena: bool = False  # payloads go into the arena, instead of into frames beside the answer


class Want(Record, frozen=True):
    """Room for one payload."""

    nbytes: int  # at most
    digest: bytes = b""  # its identity, so that content that is there already needs no room; empty: unknown


class Need(Record, frozen=True):
    """Worker -> front end, before anything is decoded: room in the arena. The worker waits for Grant or NoRoom."""

    job: int
    wants: tuple[Want, ...]


class Place(Record, frozen=True):
    """The worker may write there until it has answered the job."""

    offset: int
    nonce: int


class Stored(Record, frozen=True):
    """The content is there already, and leased to the request: nothing has to be decoded or written."""

    item: Item  # as it was made then


class Grant(Record, frozen=True):
    """Front end -> worker: one for each payload wanted, in order."""

    job: int
    places: tuple[Place | Stored, ...]  # none: the payloads go beside the answer


class NoRoom(Record, frozen=True):
    """Front end -> worker: the job is over; the front end knows why."""

    job: int


class Processed(Record, frozen=True):
    """Worker -> front end: a valid request, ready for the ranks. Frames: of the items that are not in the arena."""

    job: int
    ids: tuple[int, ...]  # prompt, a placeholder for each item: see coatcheck.wire.prompt_tokens
    items: tuple[Item, ...]
    sampling: Sampling
    stream: bool
    include_usage: bool  # stream_options.include_usage
    stop: tuple[str, ...]  # stop strings, matched by the front end


class Refused(Record, frozen=True):
    """Worker -> front end: the request is at fault (4xx)."""

    job: int
    message: str
    param: str | None
    code: str
    status: int


class Failed(Record, frozen=True):
    """Worker -> front end: the worker failed on this job (5xx); the message has no internals of the host."""

    job: int
    message: str


class WorkerReady(Record, frozen=True):
    """Worker -> front end, once, when it can take jobs."""

    pid: int


# --------------------------------------------------------------------------- front end <-> entry rank


class Arrived(Record, frozen=True):
    """Front end -> entry rank, and from there inside a plan to every rank. Frames: one per item's pixels."""

    request: str  # unique among all requests of one server
    strategy: str  # decided by the front end, or by the entry rank if it is auto; ranks only obey
    ids: tuple[int, ...]  # as in Processed
    items: tuple[Item, ...]
    sampling: Sampling
    verify: bool = False  # debug: compare the inputs as consumed on all ranks


class Abort(Record, frozen=True):
    """Front end -> entry rank: nobody waits for this request any more. Unknown or ended requests: ignored."""

    request: str


class Stop(Record, frozen=True):
    """Front end -> entry rank: end every request that is left, then leave the step loop."""


class AutoRule(Record, frozen=True):
    """How requests whose strategy is ``auto`` are treated; see coatcheck.ranks.auto for the entry rank's part."""

    inside_bytes: int | None = None  # payloads of up to this sum ride beside the request, others by handle; None: all
    timing: str = "measured"  # by load and measured costs, or always "inline" or "background"
    handover_s: float = 0.0  # what the lane adds to a request's way; 0: not measured


class RanksReady(Record, frozen=True):
    """Entry rank -> front end, once, when every rank can execute plans."""

    ranks: int
    pids: tuple[int, ...]
    max_running: int  # requests that run at once
    kv_tokens: int  # KV-cache tokens there are in all
    unavailable: tuple[tuple[str, str], ...] = ()  # strategies that could not start on some rank, and why
    auto: AutoRule = AutoRule()


class Tokens(Record, frozen=True):
    """Entry rank -> front end. With ``finish`` set it is the last word on the request."""

    request: str
    tokens: tuple[int, ...]
    finish: Literal["stop", "length", "abort"] | None = None


class Rejected(Record, frozen=True):
    """Entry rank -> front end: rejected on every rank. The last word on the request."""

    request: str
    reason: str
    rank: int | None  # where the cause lay; None if it is no single rank


class Verified(Record, frozen=True):
    """Entry rank -> front end, if the request asked for it: every rank consumed bit-identical inputs."""

    request: str
    digest: str  # sha256, hex, over pixels, grids, positions and ids as consumed


# --------------------------------------------------------------------------- every rank -> front end


class Sample(Record, frozen=True):
    """One value of a metric, as Prometheus names it."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Returned(Record, frozen=True):
    """The rank will never again read what the request's handles point at. Once for each request with handles."""

    request: str
    rank: int


class Family(Record, frozen=True):
    """One metric with all its samples."""

    name: str
    text: str
    kind: str  # counter, gauge, histogram
    samples: tuple[Sample, ...]


class Snapshot(Record, frozen=True):
    """A rank's metrics at one moment, all of them; it replaces the one before."""

    rank: int
    families: tuple[Family, ...]


# --------------------------------------------------------------------------- rank -> entry rank (side channel)


class Ready(Record, frozen=True):
    """A rank has materialized a request's inputs (``error`` None) or failed to, now or later in its life."""

    request: str
    rank: int
    error: str | None = None


class Consumed(Record, frozen=True):
    """If the request is to be verified: digest of the inputs that this rank fed to the model."""

    request: str
    rank: int
    digest: str


# --------------------------------------------------------------------------- entry rank -> all ranks


class Admit(Record, frozen=True):
    """The request runs from this plan on, its KV in [kv_start, kv_start + kv_count) of every rank's pool."""

    request: str
    kv_start: int
    kv_count: int
    verify: bool = False  # as the request asked


class Work(Record, frozen=True):
    """One request's part of this step's batch."""

    request: str
    start: int  # position in the sequence of the first token computed
    count: int  # tokens computed
    encode: tuple[int, ...]  # items whose vision embeddings are to be computed first
    token: int | None  # decode: the token fed (then count == 1); prefill: None, the ids are in the inputs
    sample: bool  # the entry rank draws a token from the last position
    store: tuple[int, ...] = ()  # those of ``encode`` whose embeddings every rank keeps under the item's digest
    cached: tuple[int, ...] = ()  # items whose embeddings are taken from there, after ``encode`` and ``store``


class Plan(Record, frozen=True):
    """What every rank executes in one step, in this order.

    Arrivals, ended, evicted, admits, work. Frames: of all arrivals in order.
    """

    step: int
    arrivals: tuple[Arrived, ...] = ()
    ended: tuple[str, ...] = ()  # rejected, aborted or finished: drop inputs, KV and results
    admits: tuple[Admit, ...] = ()
    work: tuple[Work, ...] = ()
    stop: bool = False  # leave the step loop after this plan
    evicted: tuple[bytes, ...] = ()  # digests whose embeddings every rank drops; running requests keep what they took


ToWorker = Job | Grant | NoRoom
FromWorker = Need | Processed | Refused | Failed | WorkerReady
ToEntry = Arrived | Abort | Stop
FromEntry = RanksReady | Tokens | Rejected | Verified
FromRanks = FromEntry | Snapshot | Returned
Report = Ready | Consumed
