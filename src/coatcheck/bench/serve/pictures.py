"""Pictures, encoded, none twice: not in a window, not in two, not at two servers, not in two sessions.

A few pictures are drawn and encoded before the window. Each that is asked for is one of them with a number of 63 bits
worked in where decoders look. That costs copying a few hundred bytes. In a JPEG each entry of the quantization table
grows by a bit of the number, so that texture of that frequency gets a little stronger, all over the picture. In a PNG
the number goes into low bits of the last rows. 42 bits of it are drawn by the system for each process that makes
pictures, 21 are counted.
"""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coatcheck.bench.serve.config import own_pictures

BASES = 8  # drawn before the window
QUALITY = 85
BITS = 63  # of the number: a bit for each entry of a quantization table but the first, which is brightness
COUNTED = 21  # of these
COARSE = 12  # pixels of the picture to one of its coarsest noise, roughly: what makes it look like a photograph
TEXTURED = 8  # one row in so many is strongly textured, so that no frequency is without a coefficient
ROWS = 8  # of a PNG that carry the number
BIT = 3  # of a PNG's channels that carries it: strong enough to outlive resizing

_SUFFIX_TYPES = {".png": "png", ".webp": "webp"}


class Rest:
    """Bytes that many pictures share, and their base64, made once."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @cached_property
    def base64(self) -> bytes:
        return base64.b64encode(self.data)


class Encoded:
    """One picture: pieces whose lengths are multiples of 3, but for the last one's."""

    def __init__(self, kind: str, *pieces: bytes | Rest) -> None:
        self.kind = kind  # of image/...
        self._pieces = pieces

    @property
    def data(self) -> bytes:
        """The file."""
        return b"".join(piece.data if isinstance(piece, Rest) else piece for piece in self._pieces)

    def url(self) -> list[bytes]:
        """As a data URL, in pieces; what pictures share is not copied."""
        parts = [piece.base64 if isinstance(piece, Rest) else base64.b64encode(piece) for piece in self._pieces]
        return [f"data:image/{self.kind};base64,".encode(), *parts]


class _Base(Protocol):
    def numbered(self, number: int) -> Encoded:
        """The picture with this number worked in."""
        ...


class Pictures:
    """An endless supply. ``load_seed`` says what they look like, never which they are.

    With a ``directory`` they are its pictures in turn, from the ``first`` on, as they are: they come again, which
    ``repeated`` counts. Raises ConfigError or OSError where there is none to be read.
    """

    def __init__(
        self,
        load_seed: int = 0,
        size: tuple[int, int] = (1024, 1024),
        image_format: str = "jpeg",
        directory: Path | None = None,
        first: int = 0,
    ) -> None:
        self.taken = 0
        self.repeated = 0
        self._first = first
        self._own = [_own(path) for path in own_pictures(directory)] if directory is not None else []
        if not self._own:
            self._bases = _bases(load_seed, size, image_format)
            self._numbers = numbers(BITS, COUNTED)

    def next(self) -> Encoded:
        """One that nobody got before (see ``repeated``)."""
        at = self._first + self.taken
        self.taken += 1
        if self._own:
            self.repeated += at >= len(self._own)
            return self._own[at % len(self._own)]
        return self._bases[at % BASES].numbered(next(self._numbers))


def numbers(bits: int, counted: int) -> Iterator[int]:
    """Numbers of so many bits that no other process draws: the upper ones random, the lower ones counted.

    The upper ones are drawn again when the lower ones are used up.
    """
    while True:
        drawn = int.from_bytes(os.urandom(16)) % 2 ** (bits - counted)
        for count in range(2**counted):
            yield drawn << counted | count


@cache
def _bases(load_seed: int, size: tuple[int, int], image_format: str) -> list[_Base]:
    rng = np.random.default_rng((load_seed, *size))
    kind = _Jpeg if image_format == "jpeg" else _Png
    return [kind(_photograph(rng, size)) for _ in range(BASES)]


def _own(path: Path) -> Encoded:
    return Encoded(_SUFFIX_TYPES.get(path.suffix.lower(), "jpeg"), Rest(path.read_bytes()))


def _photograph(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(height, width, 3): smooth noise of three scales, a strip of it strongly textured."""
    width, height = size
    made = np.full((height, width, 3), 128.0, np.float32)
    for scale, strength in ((16 * COARSE, 60), (4 * COARSE, 22), (COARSE, 9)):
        cells = (max(2, height // scale + 1), max(2, width // scale + 1), 3)
        noise = rng.normal(128, strength, cells).clip(0, 255).astype(np.uint8)
        made += np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), np.float32) - 128
    made += rng.normal(0, 1.5, made.shape)
    at, rows = int(rng.integers(0, height // 2)), max(16, height // TEXTURED)
    made[at : at + rows] += rng.normal(0, 24, made[at : at + rows].shape)
    return made.clip(16, 239).astype(np.uint8)


class _Jpeg:
    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
        data = buffer.getvalue()
        self._table = data.index(b"\xff\xdb\x00\x43\x00") + 5  # of brightness: 64 entries of a byte
        pad = -(self._table + 64 + 4) % 3
        comment = struct.pack(">BBH", 0xFF, 0xFE, 2 + pad) + bytes(pad)
        self._head = data[:2] + comment + data[2 : self._table + 64]
        self._table += len(comment)
        self._rest = Rest(data[self._table + 64 - len(comment) :])

    def numbered(self, number: int) -> Encoded:
        """See :class:`_Base`."""
        head = bytearray(self._head)
        for entry in range(BITS):
            if number >> entry & 1:
                head[self._table + 1 + entry] += 1
        return Encoded("jpeg", bytes(head), self._rest)


class _Png:
    """Rows but the last are compressed once; the last follow as they are, in a deflate block that is stored."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        height, width, _ = pixels.shape
        lines = np.zeros((height, 1 + width * 3), np.uint8)  # each with its filter before it
        flat = pixels.reshape(height, -1)
        lines[0, 1:] = flat[0]
        lines[1:, 0] = 2  # less the row above
        lines[1:, 1:] = flat[1:] - flat[:-1]
        lines[-ROWS:, 0] = 0
        lines[-ROWS:, 1:] = flat[-ROWS:]
        most = lines[:-ROWS].tobytes()
        self._sum = zlib.adler32(most)
        self._last = lines[-ROWS:].copy()
        squeeze = zlib.compressobj(1)
        packed = squeeze.compress(most) + squeeze.flush(zlib.Z_FULL_FLUSH)  # ends at a byte; the stream goes on
        start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        pad = -(len(start) + 12 + len(packed) + 20) % 3
        self._rest = Rest(start + _chunk(b"tEXt", b"Comment\0" + b" " * pad) + _chunk(b"IDAT", packed))

    def numbered(self, number: int) -> Encoded:
        """See :class:`_Base`."""
        last = self._last.copy()
        bits = np.array([number >> at & 1 for at in range(BITS)], np.uint8) << BIT
        last[:, 1:] &= ~np.uint8(1 << BIT)
        last[:, 1:] |= np.resize(bits, last.shape[1] - 1)
        rows = last.tobytes()
        blocks = [rows[at : at + 0xFFFF] for at in range(0, len(rows), 0xFFFF)]
        stored = b"".join(
            struct.pack("<BHH", block is blocks[-1], len(block), 0xFFFF ^ len(block)) + block for block in blocks
        )
        end = _chunk(b"IDAT", stored + struct.pack(">I", zlib.adler32(rows, self._sum))) + _chunk(b"IEND", b"")
        return Encoded("png", self._rest, end)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
