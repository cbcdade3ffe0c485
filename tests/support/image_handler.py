"""A worker's handler for tests of mode ``whole``: an image is its bytes, and some say what to do with them."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence

import numpy as np
from blake3 import blake3

from coatcheck.arena.queue import Want
from coatcheck.errors import BadRequest
from coatcheck.intake.records import Item, Stored
from coatcheck.intake.writer import PayloadWriter
from coatcheck.integrations.sglang.records import Images
from coatcheck.wire import Buffer, Decoder

HANDLER = f"{__name__}:BytesHandler"


class BytesHandler:
    """``config``: seconds that it takes to be made."""

    def __init__(self, config: str) -> None:
        time.sleep(float(config or 0))

    def handle(self, body: Sequence[Buffer], writer: PayloadWriter) -> tuple[tuple[Item, ...], bytes]:
        """See :class:`coatcheck.intake.worker.Handler`."""
        kinds = Decoder[Images](Images)(body[0]).base64
        images = [
            base64.b64decode(bytes(one)) if kind else bytes(one) for one, kind in zip(body[1:], kinds, strict=True)
        ]
        if b"bad" in images:
            raise BadRequest("bad")
        slots = writer.reserve([Want(len(one), blake3(one).digest()) for one in images])
        if b"nap" in images:
            time.sleep(0.3)
        if b"sleep" in images:
            time.sleep(60)
        items = []
        for image, slot in zip(images, slots, strict=True):
            if isinstance(slot, Stored):
                items.append(slot.item)
            else:
                pixels = writer.write(slot, np.frombuffer(image, np.uint8).reshape(1, -1), "uint8")
                items.append(Item(pixels, (1, 1, 1), 0, 1, blake3(image).digest()))
        return tuple(items), b""
