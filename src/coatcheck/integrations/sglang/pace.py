"""How long a request may wait for room: as long as it still gets ahead of SGLang's own way, by what was measured.

SGLang's way costs a copy on the tokenizer's event loop, measured whenever a request takes it, and a sha256 over the
features on every rank where SGLang has no hash of them yet, measured once at start. Ours costs hashing, copying and
preparing beside everybody, measured whenever a request is carried. All of it is proportional to the bytes.
"""

from __future__ import annotations

import hashlib
import time

WEIGHT = 0.2  # of the newest sample in the running mean: some ten requests are remembered
_SAMPLE = 4 << 20  # bytes that are hashed at start: some milliseconds
_SMALL = 1 << 20  # bytes: of less, what is measured is not proportional to them


def sha256_seconds_per_byte() -> float:
    """Of this machine, now."""
    sample = bytes(_SAMPLE)
    start = time.perf_counter()
    hashlib.sha256(sample)
    return (time.perf_counter() - start) / _SAMPLE


class Pace:
    """Seconds per byte of either way, as running means."""

    def __init__(self, hash_s_per_byte: float) -> None:
        self._hash = hash_s_per_byte
        self._own: float | None = None
        self._carried: float | None = None

    def own(self, nbytes: int, seconds: float) -> None:
        """A request with so many bytes of features took SGLang's way, on the event loop."""
        if nbytes >= _SMALL:
            self._own = _mean(self._own, seconds / nbytes)

    def carried(self, nbytes: int, seconds: float) -> None:
        """A request was carried; from the room it got until every rank had it."""
        if nbytes >= _SMALL:
            self._carried = _mean(self._carried, seconds / nbytes)

    def patience_s(self, nbytes: int, unhashed: int) -> float:
        """How long so many bytes may wait for room; of ``unhashed`` of them ranks would compute sha256.

        0 as long as either way has not been measured.
        """
        if self._own is None or self._carried is None:
            return 0.0
        return max(0.0, self._own * nbytes + self._hash * unhashed - self._carried * nbytes)


def _mean(mean: float | None, sample: float) -> float:
    return sample if mean is None else mean + WEIGHT * (sample - mean)
