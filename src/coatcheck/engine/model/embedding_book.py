"""The entry rank's book of the vision embeddings that every rank keeps, so that equal content is encoded once.

Only the book decides, and its decisions travel in plans: so all ranks keep the same. Within a plan, evictions take
effect before the work. Invariants (property-tested without processes in ``tests/engine``):

* What is kept, proven or not, never exceeds ``limit`` bytes, at no point of a plan. What a running request has taken
  it holds for itself: that is no part of the sum, and eviction does not touch it.
* Work takes only what every rank keeps by then: what a plan's work takes or keeps, that plan does not evict.
* An embedding is unproven until the request that encoded it draws its first token. Where encoding failed NaN stands
  in, so finite logits prove it sound on every rank. Until then nobody else takes it or keeps another of that digest;
  if the request ends before, it is evicted.
* The least recently used goes first, and only where that makes room. An empty digest is never kept.

Pure logic: no tensor, no clock, no thread.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple


class _Kept(NamedTuple):
    request: str  # that encoded it
    size: int  # bytes


@dataclass
class EmbeddingBook:
    """``limit``: bytes on each rank, 0 for no cache. ``token_bytes``: of one token's embedding: hidden * itemsize."""

    limit: int
    token_bytes: int
    _kept: OrderedDict[bytes, _Kept] = field(default_factory=OrderedDict)  # by digest, least recently used first
    _unproven: set[bytes] = field(default_factory=set)
    _touched: set[bytes] = field(default_factory=set)  # taken or kept by the plan under way
    _evicted: list[bytes] = field(default_factory=list)  # for the plan under way
    _bytes: int = 0

    def take(self, request: str, digest: bytes) -> bool:
        """True if the request's item is to be taken from the cache in the plan under way."""
        kept = self._kept.get(digest)
        if kept is None or (digest in self._unproven and kept.request != request):
            return False
        self._kept.move_to_end(digest)
        self._touched.add(digest)
        return True

    def keep(self, request: str, digest: bytes, tokens: int) -> bool:
        """True if every rank is to keep what the request encodes in the plan under way: ``tokens`` embeddings."""
        size = tokens * self.token_bytes
        if not digest or digest in self._kept or not self._make_room(size):
            return False
        self._kept[digest] = _Kept(request, size)
        self._bytes += size
        self._unproven.add(digest)
        self._touched.add(digest)
        return True

    def prove(self, request: str) -> None:
        """The request has drawn its first token: what it encoded is sound on every rank."""
        self._unproven = {digest for digest in self._unproven if self._kept[digest].request != request}

    def end(self, request: str) -> None:
        """The request has ended; what it encoded and has not proven is evicted. Between plans."""
        for digest in [digest for digest in self._unproven if self._kept[digest].request == request]:
            self._evict(digest)

    def distrust(self, request: str) -> None:
        """The ranks had different inputs for the request: all that it encoded is evicted. Between plans."""
        for digest in [digest for digest, kept in self._kept.items() if kept.request == request]:
            self._evict(digest)

    def close_plan(self) -> tuple[bytes, ...]:
        """What the plan under way evicts; the next one begins."""
        evicted, self._evicted = tuple(self._evicted), []
        self._touched.clear()
        return evicted

    def _make_room(self, size: int) -> bool:
        """Evicts until ``size`` bytes are free; nothing if that cannot be reached."""
        room = self.limit - self._bytes
        victims = []
        for digest, kept in self._kept.items():
            if room >= size or digest in self._touched:  # then all that follow are this plan's too
                break
            victims.append(digest)
            room += kept.size
        if room < size:
            return False
        for digest in victims:
            self._evict(digest)
        return True

    def _evict(self, digest: bytes) -> None:
        self._bytes -= self._kept.pop(digest).size
        self._unproven.discard(digest)
        self._evicted.append(digest)
