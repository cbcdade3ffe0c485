"""The embedding cache under any course of events, without processes.

The entry rank's book, and per rank a queue of plans on the way and a real cache. Hypothesis chooses what requests ask
for, which of them go on in a step, which fail to encode and on which rank, and when they draw, end or are distrusted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from coatcheck.engine.model.embedding_book import EmbeddingBook
from coatcheck.engine.model.embedding_cache import EmbeddingCache

TOKEN_BYTES = 4  # one float32
DIGESTS = [b"", *(bytes([tokens]) * 32 for tokens in range(1, 7))]  # of 1, 2, ... tokens; the empty one of 1


def tokens_of(digest: bytes) -> int:
    return digest[0] if digest else 1


@dataclass
class Request:
    """``fails``: the rank on which encoding fails, -1 for none."""

    name: str
    items: list[bytes]
    fails: int
    done: int = 0
    poisoned: bool = False  # it has encoded on that rank


@dataclass(frozen=True)
class Part:
    request: Request
    digest: bytes
    store: bool
    cached: bool


@dataclass(frozen=True)
class Plan:
    parts: list[Part] = field(default_factory=list)
    evicted: tuple[bytes, ...] = ()


class Group(RuleBasedStateMachine):
    """Every cache raises by itself if a plan does not fit what it has."""

    @initialize(ranks=st.integers(1, 3), tokens=st.integers(0, 12))
    def begin(self, ranks: int, tokens: int) -> None:
        self.limit = tokens * TOKEN_BYTES
        self.book = EmbeddingBook(self.limit, TOKEN_BYTES)
        self.caches = [EmbeddingCache(rank) for rank in range(ranks)]
        self.plans: list[deque[Plan]] = [deque() for _ in range(ranks)]
        self.running: list[Request] = []
        self.known: list[Request] = []
        self.owner: dict[bytes, Request] = {}  # of what is kept
        self.proven: set[bytes] = set()

    # -------------------------------------------------------------- the entry rank

    @rule(items=st.lists(st.sampled_from(DIGESTS), min_size=1, max_size=3), fails=st.sampled_from([-1, -1, -1, 0, 1]))
    def start(self, items: list[bytes], fails: int) -> None:
        request = Request(f"r{len(self.known)}", items, fails if fails < len(self.caches) else -1)
        self.running.append(request)
        self.known.append(request)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """One plan: some requests go on by some items each."""
        parts: list[Part] = []
        refused: list[bytes] = []
        stored: set[bytes] = set()
        for request in self.running:
            for _ in range(data.draw(st.integers(0, len(request.items) - request.done))):
                digest = request.items[request.done]
                request.done += 1
                cached = self.book.take(request.name, digest)
                if cached:
                    owner = self.owner[digest]
                    assert digest in self.proven or owner is request, "taken before it was proven"
                elif digest in self.proven:
                    refused.append(digest)
                store = not cached and self.book.keep(request.name, digest, tokens_of(digest))
                if store:
                    assert digest, "kept under no digest"
                    self.owner[digest] = request
                    self.proven.discard(digest)
                    stored.add(digest)
                if not cached:
                    request.poisoned |= request.fails >= 0
                parts.append(Part(request, digest, store, cached))
        evicted = self.book.close_plan()
        assert len(set(evicted)) == len(evicted)
        assert set(refused) <= set(evicted), "encoded again though every rank keeps it, proven"
        for digest in set(evicted) - stored:
            self.owner.pop(digest, None)
            self.proven.discard(digest)
        for queue in self.plans:
            queue.append(Plan(parts, evicted))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def draw(self, data: st.DataObject) -> None:
        """The first token, once all is encoded; a poisoned request ends instead, for no logit is finite."""
        request = data.draw(st.sampled_from(self.running))
        if request.done < len(request.items):
            return
        if request.poisoned:
            self._end(request)
            return
        self.book.prove(request.name)
        self.proven |= {digest for digest, owner in self.owner.items() if owner is request}

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self._end(data.draw(st.sampled_from(self.running)))

    def _end(self, request: Request) -> None:
        self.running.remove(request)
        self.book.end(request.name)
        self._forget([d for d, owner in self.owner.items() if owner is request and d not in self.proven])

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def distrust(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.known))
        self.book.distrust(request.name)
        self._forget([digest for digest, owner in self.owner.items() if owner is request])

    def _forget(self, digests: list[bytes]) -> None:
        for digest in digests:
            del self.owner[digest]
            self.proven.discard(digest)

    # -------------------------------------------------------------- the ranks

    @rule(data=st.data())
    def rank_executes(self, data: st.DataObject) -> None:
        rank = data.draw(st.integers(0, len(self.caches) - 1))
        if self.plans[rank]:
            self._execute(rank, self.plans[rank].popleft())

    def _execute(self, rank: int, plan: Plan) -> None:
        cache = self.caches[rank]
        cache.evict(plan.evicted)
        for part in plan.parts:
            if part.cached:
                features = cache.take(part.digest)
                assert len(features) == tokens_of(part.digest)
                assert part.request.fails == rank or features.isfinite().all(), "another request's failure was taken"
            if part.store:
                value = torch.nan if part.request.fails == rank else 1.0
                cache.keep(part.digest, torch.full((tokens_of(part.digest),), value))
            assert cache.statistics().nbytes <= self.limit

    def teardown(self) -> None:
        if not hasattr(self, "plans"):
            return
        evicted = self.book.close_plan()  # what ended after the last plan
        for rank, queue in enumerate(self.plans):
            for plan in (*queue, Plan(evicted=evicted)):
                self._execute(rank, plan)
            for digest in self.owner:
                self.caches[rank].take(digest)
            assert self.caches[rank].statistics().items == len(self.owner), "a rank keeps what nobody knows of"


TestGroup = Group.TestCase
TestGroup.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
