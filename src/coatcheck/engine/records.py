"""The records of the reference engine: what its front end and its ranks say to each other.

Way of a request::

    client -> front end -> (Job) -> worker -> (Done with Processed | Refused) -> front end
    front end -> (Arrived | Abort | Stop) -> entry rank -> (Plan) -> every rank
    every rank -> (Ready | Consumed) -> entry rank -> (Tokens | Rejected | ...) -> front end
    every rank -> (Snapshot | Returned) -> front end
"""

from __future__ import annotations

from typing import Literal

from coatcheck.delivery.records import Ready, Returned
from coatcheck.intake.records import Item
from coatcheck.wire import Record


class Sampling(Record, frozen=True):
    """How tokens are drawn and when generation ends."""

    max_tokens: int  # >= 1
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0  # (0, 1]
    seed: int = 0  # of this request's own generator; the front end draws one where the client gave none
    stop_ids: tuple[int, ...] = ()  # tokens that end generation (not returned as text); empty: run to max_tokens


# --------------------------------------------------------------------------- worker -> front end


class Processed(Record, frozen=True):
    """What a worker made of a valid body, beside the items (:class:`coatcheck.intake.records.Done`)."""

    ids: tuple[int, ...]  # prompt, a placeholder for each item: see coatcheck.intake.records.prompt_tokens
    sampling: Sampling
    stream: bool
    include_usage: bool  # stream_options.include_usage
    stop: tuple[str, ...]  # stop strings, matched by the front end


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
    """How requests whose strategy is ``auto`` are treated; the entry rank's part: coatcheck.engine.ranks.auto."""

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


ToEntry = Arrived | Abort | Stop
FromEntry = RanksReady | Tokens | Rejected | Verified
FromRanks = FromEntry | Snapshot | Returned
Report = Ready | Consumed
