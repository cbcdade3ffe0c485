"""The entry rank's choice of what the next step computes: continuous batching with chunked prefill.

Decoding requests come first, one token each, so that no prefill delays them by more than one step's budget; what is
left of the budget goes to prefills in order of admission. An item's placeholders are computed only after the item
is encoded, or taken from the embedding cache, which costs nothing of the budget.

Invariant: for every running request the work handed out covers positions 0, 1, 2, ... of its sequence exactly once,
in order, and exactly the steps that complete the known tokens sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from coatcheck.engine.model.embedding_book import EmbeddingBook
from coatcheck.engine.records import Arrived, Sampling, Tokens, Work
from coatcheck.engine.strategies.materialize import is_valid
from coatcheck.intake.records import Item, prompt_tokens

Finish = Literal["stop", "length"]


@dataclass
class _Sequence:
    prompt: int  # tokens
    items: tuple[Item, ...]  # those that are valid, in order
    sampling: Sampling
    computed: int = 0  # tokens whose KV is in the cache
    encoded: int = 0  # items encoded, or taken from the cache
    last: int | None = None  # token drawn but not yet fed
    drawn: int = 0  # tokens drawn


@dataclass
class Schedule:
    """``chunk_tokens`` and ``encode_patches``: budgets of one step (EngineConfig).

    Writes the book of ``embeddings``; the caller closes the book's plan with the plan that carries the work.
    """

    chunk_tokens: int
    encode_patches: int
    embeddings: EmbeddingBook
    _running: dict[str, _Sequence] = field(default_factory=dict)  # in order of admission

    def admit(self, arrived: Arrived) -> None:
        """The request runs from the next step on."""
        items = tuple(item for item in arrived.items if is_valid(item))
        self._running[arrived.request] = _Sequence(prompt_tokens(arrived.ids, arrived.items), items, arrived.sampling)

    def end(self, request: str) -> None:
        """The request no longer runs; unknown: nothing happens."""
        self._running.pop(request, None)
        self.embeddings.end(request)

    def __len__(self) -> int:
        return len(self._running)

    def compose(self) -> tuple[Work, ...]:
        """The next step's work; empty if nothing runs. Assumes that every rank will execute it."""
        budget = self.chunk_tokens
        patches = self.encode_patches
        work = []
        for request, sequence in self._running.items():
            if sequence.last is not None:
                work.append(Work(request, sequence.computed, 1, (), sequence.last, sample=True))
                sequence.computed += 1
                sequence.last = None
                budget -= 1
        for request, sequence in self._running.items():
            if budget <= 0:
                break
            if sequence.computed >= sequence.prompt:
                continue
            chunk, used = self._prefill(request, sequence, budget, patches)
            if chunk is not None:
                work.append(chunk)
                budget -= chunk.count
                patches -= used
        return tuple(work)

    def _prefill(self, request: str, sequence: _Sequence, budget: int, patches: int) -> tuple[Work | None, int]:
        """The next chunk of a prompt within the budgets, and the patches it encodes."""
        start = sequence.computed
        end = min(start + budget, sequence.prompt)
        encode: list[int] = []
        store: list[int] = []
        cached: list[int] = []
        used = 0
        while sequence.encoded < len(sequence.items) and (item := sequence.items[sequence.encoded]).start < end:
            size = item.pixels.shape[0]
            if self.embeddings.take(request, item.digest):
                cached.append(sequence.encoded)
            elif size > patches - used and not (used == 0 and patches == self.encode_patches):
                end = item.start  # no room to encode it in this step: compute up to it
                break
            else:
                encode.append(sequence.encoded)
                used += size
                if self.embeddings.keep(request, item.digest, item.count):
                    store.append(sequence.encoded)
            sequence.encoded += 1
        if end <= start:
            return None, 0
        sequence.computed = end
        sample = end == sequence.prompt
        return Work(request, start, end - start, tuple(encode), None, sample, tuple(store), tuple(cached)), used

    def absorb(self, drawn: Mapping[str, int]) -> list[Tokens]:
        """Takes the tokens that a step drew; returns what to tell the front end. Ended requests' tokens are dropped.

        The caller ends a request whose ``finish`` is set.
        """
        told = []
        for request, token in drawn.items():
            sequence = self._running.get(request)
            if sequence is None:
                continue
            if sequence.drawn == 0:
                self.embeddings.prove(request)
            sequence.drawn += 1
            finish: Finish | None = None
            if token in sequence.sampling.stop_ids:
                finish = "stop"
            elif sequence.drawn >= sequence.sampling.max_tokens:
                finish = "length"
            sequence.last = token
            told.append(Tokens(request, (token,), finish))
        return told
