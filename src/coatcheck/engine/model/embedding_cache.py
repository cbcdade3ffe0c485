"""A rank's own cache of vision embeddings. It decides nothing: plans say what is kept, taken and evicted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from coatcheck.errors import RanksDisagree


@dataclass(frozen=True)
class EmbeddingStatistics:
    """A snapshot: what is kept now, and how often something was taken since the start."""

    items: int
    nbytes: int
    hits: int


class EmbeddingCache:
    """Embeddings by the digest of the item: (tokens, hidden), on the model's device.

    Raises RanksDisagree where a plan does not fit what is here: the entry rank's book is about every rank. All calls
    but ``statistics`` come from the step loop's thread.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._features: dict[bytes, torch.Tensor] = {}
        self._nbytes = 0
        self._hits = 0

    def keep(self, digest: bytes, features: torch.Tensor) -> None:
        """Until it is evicted; the tensor is shared from now on, and nobody writes to it."""
        if digest in self._features:
            raise RanksDisagree(f"rank {self._rank} was told to keep embeddings {digest.hex()[:16]} that it has")
        self._features[digest] = features
        self._nbytes += features.nbytes

    def take(self, digest: bytes) -> torch.Tensor:
        """The embeddings, which stay the caller's after an eviction."""
        self._hits += 1
        return self._found(digest)

    def evict(self, digests: Iterable[bytes]) -> None:
        """Drops them."""
        for digest in digests:
            self._nbytes -= self._found(digest).nbytes
            del self._features[digest]

    def statistics(self) -> EmbeddingStatistics:
        """A frozen snapshot, from any thread."""
        return EmbeddingStatistics(len(self._features), self._nbytes, self._hits)

    def _found(self, digest: bytes) -> torch.Tensor:
        features = self._features.get(digest)
        if features is None:
            raise RanksDisagree(f"rank {self._rank} has no embeddings {digest.hex()[:16]}, of which a plan speaks")
        return features
