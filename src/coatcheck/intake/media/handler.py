"""The core's own handler: media in, items out, no prompt, no model. For programs that know their clients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from coatcheck.intake.limits import MediaLimits
from coatcheck.intake.media.processor import MediaProcessor, prepare
from coatcheck.intake.media.source import Source
from coatcheck.intake.records import Item
from coatcheck.intake.writer import PayloadWriter
from coatcheck.wire import Buffer, Decoder, Record, from_argument

HANDLER = "coatcheck.intake.media.handler:MediaHandler"  # for a pool


class Encoded(Record, frozen=True):
    """One image or video: encoded bytes, or the URL where they are (data: or http(s))."""

    kind: Literal["image", "video"]
    data: bytes = b""
    url: str = ""  # if there are no bytes
    param: str = ""  # what an error calls it


class Media(Record, frozen=True):
    """The body of a job."""

    media: tuple[Encoded, ...]


class MediaConfig(msgspec.Struct, frozen=True):
    """What the handler is made of."""

    model_dir: str  # with a preprocessor_config.json
    limits: MediaLimits = MediaLimits()


class MediaHandler:
    """A :class:`coatcheck.intake.worker.Handler`. Its items start at 0 each: the program has the prompt."""

    def __init__(self, config_json: str) -> None:
        """Raises ConfigError if the model directory has no usable image processor."""
        config = from_argument(config_json, MediaConfig)
        self._processor = MediaProcessor(Path(config.model_dir), config.limits)
        self._decode: Decoder[Any] = Decoder(Media)

    def handle(self, body: Sequence[Buffer], writer: PayloadWriter) -> tuple[tuple[Item, ...], bytes]:
        """The media of a :class:`Media`, in order; nothing beside. Raises BadRequest and NoRoom."""
        opened = []
        for encoded in self._decode(body[0]).media:
            source = Source(encoded.kind, encoded.param, encoded.url)
            known = self._processor.open_bytes(source, encoded.data) if encoded.data else self._processor.open(source)
            opened.append(known)
        return tuple(prepare(opened, writer)), b""
