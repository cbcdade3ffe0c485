"""Records to bytes and back: msgpack by closed union, payload frames beside the record.

A message is a list of frames: ``[record, payload 0, payload 1, ...]``. Decoding checks the record against its union
and the frames against the record, and raises :class:`~coatcheck.errors.WireError` for anything else. Nothing is
unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from coatcheck.errors import WireError
from coatcheck.messages import Handle, Item, Record, Tensor

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")

ITEM_SIZE = {"float32": 4, "uint8": 1}  # bytes per element of the dtypes that Tensor allows

_encoder = msgspec.msgpack.Encoder()


def encode(record: Record) -> bytes:
    """A record as msgpack bytes (the frame that stands first in a message)."""
    return _encoder.encode(record)


class Decoder(Generic[T]):
    """Decodes frames of one closed union, given as a type such as ``Decoder[ToEntry](ToEntry)``."""

    def __init__(self, union: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)

    def __call__(self, frame: Buffer) -> T:
        """Raises WireError if ``frame`` is not a record of the union."""
        try:
            record: T = self._decoder.decode(frame)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # the second: a string that is not UTF-8
            raise WireError(f"not a record of ours: {error}") from error
        return record


def tensors(items: Sequence[Item]) -> list[Tensor]:
    """The payloads that travel as frames beside the record, in order; handles do not."""
    return [item.pixels for item in items if isinstance(item.pixels, Tensor)]


def nbytes(tensor: Tensor | Handle) -> int:
    """Bytes that the payload of ``tensor`` takes."""
    return math.prod(tensor.shape) * ITEM_SIZE[tensor.dtype]


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


def send(socket: zmq.Socket[bytes], record: Record, frames: Sequence[Buffer] = ()) -> None:
    """Sends one message without blocking; payload frames are not copied.

    The caller must not change ``frames`` afterwards. Raises zmq.Again where the peer's queue is full.
    """
    socket.send_multipart([encode(record), *frames], flags=zmq.NOBLOCK, copy=not frames)


def split(message: Sequence[zmq.Frame]) -> tuple[memoryview, list[memoryview]]:
    """A received message (``recv_multipart(copy=False)``) as record bytes and payload frames, no copy made."""
    if not message:
        raise WireError("an empty message")
    return message[0].buffer, [frame.buffer for frame in message[1:]]
