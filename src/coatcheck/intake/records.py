"""The records of the intake: what a payload is, and what the pool and its workers say to each other.

A payload never stands inside a record: it is a raw frame beside it (:class:`Tensor`), or in the arena
(:class:`~coatcheck.arena.handle.Handle`).

Way of a job::

    pool -> (Job) -> worker -> (Need) -> pool -> (Grant) -> worker -> (Done | Refused | Failed) -> pool
                                              -> (Later): the worker drops the job, which comes again once it has room
"""

from __future__ import annotations

from collections.abc import Sequence

from coatcheck.arena.handle import Handle, PixelForm, nbytes
from coatcheck.arena.queue import Want
from coatcheck.errors import WireError
from coatcheck.wire import Buffer, Record


class Tensor(Record, frozen=True):
    """A payload's description. Its bytes are frame ``frame`` beside the record.

    Contiguous, row-major, little-endian.
    """

    frame: int  # index among the payloads beside the record, from 0: the tensors of a request have frames in order
    shape: tuple[int, ...]
    dtype: PixelForm


class Item(Record, frozen=True):
    """One image or video of a request, as the worker prepared it."""

    pixels: Tensor | Handle  # (patches, values per patch): float32 or uint8, see coatcheck.pixels
    grid: tuple[int, int, int]  # (t, h, w) in patches; t * h * w == patches
    start: int  # index of the item's first token in the prompt as the model gets it
    count: int  # tokens: t * h * w / merge**2
    digest: bytes = b""  # identity: blake3, 32 bytes, over the encoded bytes and the processor's configuration
    seconds: float | None = None  # a video's, from one temporal patch to the next; None: an image


# --------------------------------------------------------------------------- pool <-> worker


class Job(Record, frozen=True):
    """Pool -> worker. Frame 0: the body, which the program's handler understands."""

    job: int
    form: PixelForm = "float32"  # of the payloads
    arena: bool = False  # payloads go into the arena, instead of into frames beside the answer


class Need(Record, frozen=True):
    """Worker -> pool, before anything is decoded: room in the arena. The worker waits for Grant or Later."""

    job: int
    wants: tuple[Want, ...]


class Slot(Record, frozen=True):
    """The worker may write there until it has answered the job."""

    offset: int
    nonce: int
    nbytes: int  # at most


class Stored(Record, frozen=True):
    """The content is there already, and leased to the request: nothing has to be decoded or written."""

    item: Item  # as it was made then


class Grant(Record, frozen=True):
    """Pool -> worker: one for each payload wanted, in order."""

    job: int
    slots: tuple[Slot | Stored, ...]  # none: the payloads go beside the answer


class Later(Record, frozen=True):
    """Pool -> worker: there is no room now, or nobody waits for the job any more. The worker forgets the job."""

    job: int


class Done(Record, frozen=True):
    """Worker -> pool: the job is done. Frames: payloads of the items that are not in the arena."""

    job: int
    items: tuple[Item, ...]
    result: bytes = b""  # the handler's own record, encoded; the pool hands it on


class Refused(Record, frozen=True):
    """Worker -> pool: the job is at fault; see :class:`coatcheck.errors.BadRequest`."""

    job: int
    message: str
    param: str | None
    code: str


class Failed(Record, frozen=True):
    """Worker -> pool: the worker failed on this job; the message has no internals of the host."""

    job: int
    message: str


class WorkerReady(Record, frozen=True):
    """Worker -> pool, once, when it can take jobs."""

    pid: int


ToWorker = Job | Grant | Later
FromWorker = Need | Done | Refused | Failed | WorkerReady


def tensors(items: Sequence[Item]) -> list[Tensor]:
    """The payloads that travel as frames beside the record, in order; handles do not."""
    return [item.pixels for item in items if isinstance(item.pixels, Tensor)]


def prompt_tokens(ids: Sequence[int], items: Sequence[Item]) -> int:
    """Tokens of the prompt as the model gets it: an item's one placeholder in ``ids`` stands for ``count`` of them."""
    return len(ids) + sum(item.count - 1 for item in items)


def check_frames(items: Sequence[Item], frames: Sequence[Buffer]) -> None:
    """Raises WireError unless tensor i describes frame i, and every frame has exactly the size described."""
    described = tensors(items)
    if [tensor.frame for tensor in described] != list(range(len(frames))):
        raise WireError(f"{len(frames)} frames came, but the items describe {[tensor.frame for tensor in described]}")
    for tensor, frame in zip(described, frames, strict=True):
        have, want = memoryview(frame).nbytes, nbytes(tensor)
        if min(tensor.shape, default=0) < 0 or have != want:
            raise WireError(f"frame {tensor.frame} has {have} bytes, its description says {want}")
