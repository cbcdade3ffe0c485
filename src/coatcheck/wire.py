"""Records to bytes and back: msgpack by closed union, payload frames beside the record; JSON on a command line.

A message is a list of frames: ``[record, payload 0, payload 1, ...]``. A record is a msgpack array with a tag. Decoding
checks it against a closed union and raises :class:`~coatcheck.errors.WireError` for anything else, so nothing that
arrives can name a class or run code. Each owner's records stand in its ``records.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from coatcheck.errors import WireError

log = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=True):
    """Base of all records on a wire: frozen, without behaviour, named for what it says."""


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


def received(socket: zmq.Socket[bytes], decode: Decoder[T]) -> Iterator[tuple[T, list[memoryview]]]:
    """Every message that lies ready, as record and payload frames; no copy made, nothing waited for.

    A message that is no record of ours is dropped, with a line in the log.
    """
    while True:
        try:
            message = socket.recv_multipart(flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        try:
            record, frames = split(message)
            decoded = decode(record)
        except WireError as error:
            log.error("a message was dropped: %s", error)
            continue
        yield decoded, frames
        del message, record, frames, decoded  # or the last one's payload would stay until the next message


def to_argument(value: Any) -> str:
    """A record, struct or dataclass as JSON, for the command line of a process of ours."""
    return msgspec.json.encode(value, enc_hook=str).decode()  # str: of paths


def from_argument(text: str, kind: type[T]) -> T:
    """What ``to_argument`` made; values are checked again. Raises WireError if it is none of that kind."""
    try:
        return msgspec.json.decode(text, type=kind, dec_hook=lambda wanted, value: wanted(value))
    except msgspec.MsgspecError as error:
        raise WireError(f"not a {kind.__name__}: {error}") from error
