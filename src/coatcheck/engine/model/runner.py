"""Executing a step's work on this rank: encode images and videos, prefill, decode, and, on the entry rank, sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from coatcheck.engine.model.attention import Packed, Segment
from coatcheck.engine.model.embedding_cache import EmbeddingCache
from coatcheck.engine.model.kv_cache import KVPool
from coatcheck.engine.model.sampling import Sampler
from coatcheck.engine.records import Admit, Sampling, Work
from coatcheck.engine.strategies.inputs import MultimodalInputs, MultimodalItem


@dataclass(frozen=True)
class Outcome:
    """What a step brought."""

    drawn: dict[str, int] = field(default_factory=dict)  # token by request; on the entry rank
    broken: list[str] = field(default_factory=list)  # requests with no usable result; on the entry rank
    consumed: list[str] = field(default_factory=list)  # requests whose pixels this rank will never read again


class Runner(Protocol):
    """What the step loop asks of a model. All calls come from one thread, in plan order, alike on every rank."""

    def admit(self, admit: Admit, inputs: MultimodalInputs, sampling: Sampling) -> None:
        """The request's inputs are this runner's from now on.

        Its pixels, until ``execute`` says that they are consumed, or ``release``: they may lie in memory that is given
        to another request then, so nothing may refer to them any more, no copy that is under way included.
        """
        ...

    def release(self, request: str) -> None:
        """Drops all there is of the request, and reads its pixels no more; unknown: nothing happens."""
        ...

    def evict(self, digests: Sequence[bytes]) -> None:
        """Drops the embeddings kept under these digests; running requests keep what they took.

        Raises RanksDisagree if this rank lacks one.
        """
        ...

    def execute(self, work: Sequence[Work]) -> Outcome:
        """One step. A failure on this rank that concerns one request alone does not raise: the others' work is done.

        It is reported at once, and no rank uses the request's result. Each request is among ``consumed`` once at most;
        where copies are asynchronous, only when they are done. Raises RanksDisagree if work takes embeddings from the
        cache that this rank lacks.
        """
        ...


@dataclass
class _Running:
    inputs: MultimodalInputs  # without pixels
    pictures: dict[int, MultimodalItem]  # with pixels, until it has features: a view may pin a buffer of many requests
    kv_start: int
    sampler: Sampler
    features: dict[int, torch.Tensor] = field(default_factory=dict)  # by item: (count, hidden), until prefill passed it


def prefilled(work: Sequence[Work]) -> list[str]:
    """Requests whose prefill ends with this work: every item of them has been encoded, or taken from the cache."""
    return [part.request for part in work if part.token is None and part.sample]


class ModelRunner:
    """Runs the transformers modules on packed rows.

    ``samples``: True on the entry rank, which alone computes logits. ``failed``: told the request and the reason when
    this rank fails on one request; then NaN stands in for what could not be computed. Through the sums over the ranks
    it reaches the entry rank, whatever reports may be late, and there no token is drawn from it. Requests share no
    attention and no row, so nobody else's result is touched; kept in ``cache``, NaN is taken by nobody else, as the
    entry rank sees to (:mod:`coatcheck.engine.model.embedding_book`).
    """

    def __init__(
        self,
        model: Any,
        pool: KVPool,
        cache: EmbeddingCache,
        device: torch.device,
        samples: bool,
        failed: Callable[[str, str], None],
    ) -> None:
        self._visual = model.model.visual
        self._language = model.model.language_model
        self._embed = model.model.language_model.embed_tokens
        self._head = model.lm_head
        self._pool = pool
        self._cache = cache
        self._device = device
        self._samples = samples
        self._failed = failed
        self._running: dict[str, _Running] = {}
        self.encoded = 0  # images given to the vision tower since the start

    def admit(self, admit: Admit, inputs: MultimodalInputs, sampling: Sampling) -> None:
        """See :class:`Runner`."""
        bare = replace(inputs, items=tuple(replace(item, pixels=item.pixels[:0].clone()) for item in inputs.items))
        pictures = dict(enumerate(inputs.items))
        self._running[admit.request] = _Running(bare, pictures, admit.kv_start, Sampler(sampling))

    def release(self, request: str) -> None:
        """See :class:`Runner`."""
        self._running.pop(request, None)

    def evict(self, digests: Sequence[bytes]) -> None:
        """See :class:`Runner`."""
        self._cache.evict(digests)

    @torch.inference_mode()
    def execute(self, work: Sequence[Work]) -> Outcome:
        """See :class:`Runner`."""
        outcome = Outcome(consumed=prefilled(work))
        segments = []
        embeds = []
        positions = []
        row = 0
        for part in work:
            running = self._running[part.request]
            self._features(part, running)
            embeds.append(self._embeddings(part, running))
            positions.append(_positions(part, running.inputs))
            segments.append(Segment(row, part.start, part.count, running.kv_start))
            row += part.count
        hidden = self._language(
            inputs_embeds=torch.cat(embeds)[None],
            position_ids=torch.cat(positions, dim=1)[:, None].to(self._device),
            attention_mask={"full_attention": None},
            use_cache=False,
            packed=Packed(self._pool, tuple(segments)),
        ).last_hidden_state[0]
        if self._samples:
            self._sample(work, segments, hidden, outcome)
        return outcome

    def _features(self, part: Work, running: _Running) -> None:
        """Encodes, keeps and takes what the part says; of each item the pixels are dropped."""
        items = running.inputs.items
        for index in part.encode:
            running.features[index] = self._encode(part.request, running, index)
        for index in part.store:
            self._cache.keep(items[index].digest, running.features[index])
        for index in part.cached:
            running.features[index] = self._cache.take(items[index].digest)
            del running.pictures[index]

    def _encode(self, request: str, running: _Running, index: int) -> torch.Tensor:
        """The item's vision embeddings, (count, hidden)."""
        item = running.inputs.items[index]
        weight = self._embed.weight
        self.encoded += 1
        try:
            pixels = running.pictures.pop(index).wide(self._device).to(weight.dtype)
            grid = torch.tensor([item.grid], device=self._device)
            features: torch.Tensor = self._visual(pixels, grid_thw=grid).pooler_output
            return features.to(weight.dtype)
        except Exception as error:  # any cause, such as out of memory, fails this request alone
            self._failed(request, f"encoding item {index}: {type(error).__name__}: {error}")
            return torch.full((item.count, weight.shape[1]), torch.nan, dtype=weight.dtype, device=self._device)

    def _embeddings(self, part: Work, running: _Running) -> torch.Tensor:
        """Token embeddings of the part, (count, hidden), with the items' features in place of placeholders."""
        if part.token is not None:
            embedded: torch.Tensor = self._embed(torch.tensor([part.token], device=self._device))
            return embedded
        end = part.start + part.count
        rows: torch.Tensor = self._embed(running.inputs.ids[part.start : end].to(self._device))
        for index, item in enumerate(running.inputs.items):
            first, last = max(item.start, part.start), min(item.start + item.count, end)
            if first < last:
                features = running.features[index]
                rows[first - part.start : last - part.start] = features[first - item.start : last - item.start]
            if item.start + item.count <= end:
                running.features.pop(index, None)
        return rows

    def _sample(
        self, work: Sequence[Work], segments: Sequence[Segment], hidden: torch.Tensor, outcome: Outcome
    ) -> None:
        pairs = [(part, segment) for part, segment in zip(work, segments, strict=True) if part.sample]
        if not pairs:
            return
        logits = self._head(hidden[[segment.row + segment.count - 1 for _, segment in pairs]])
        usable = logits.isfinite().all(dim=-1).tolist()
        for (part, _), line, finite in zip(pairs, logits, usable, strict=True):
            if finite:
                outcome.drawn[part.request] = self._running[part.request].sampler.draw(line)
            else:
                outcome.broken.append(part.request)


def _positions(part: Work, inputs: MultimodalInputs) -> torch.Tensor:
    """(3, count) int64."""
    if part.token is not None:
        return torch.full((3, 1), part.start + inputs.position_delta)
    return inputs.positions[:, part.start : part.start + part.count]
