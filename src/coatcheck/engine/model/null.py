"""A runner without a model: shows what the input path itself can carry."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from coatcheck.engine.model.runner import Outcome, prefilled
from coatcheck.engine.records import Admit, Sampling, Work
from coatcheck.engine.strategies.inputs import MultimodalInputs

PAGE = 4096  # bytes: of each page one value is read
_MIX = 0x9E3779B97F4A7C15  # 2**64 / golden ratio (Knuth, TAOCP 3, 6.4): spreads a checksum over the vocabulary


@dataclass
class _Running:
    inputs: MultimodalInputs
    checksum: int = 0
    drawn: int = 0


class NullRunner:
    """A :class:`coatcheck.engine.model.runner.Runner` whose step sleeps for ``step_s`` in place of a forward pass.

    The step that ends a prefill reads every page of the request's pixels into a checksum, sums it over the ranks
    (``all_reduce``: int64, in place), and drops the inputs. Tokens derive from it: so equal tokens mean that every
    rank had the inputs before it. A rank whose checksum differs from the others' breaks the request.
    """

    def __init__(
        self,
        vocabulary: int,
        step_s: float,
        ranks: int,
        samples: bool,
        device: torch.device,
        all_reduce: Callable[[torch.Tensor], None],
    ) -> None:
        """``samples``: True on the entry rank; ``device``: where ``all_reduce`` wants its tensors."""
        self._vocabulary = vocabulary
        self._step_s = step_s
        self._ranks = ranks
        self._samples = samples
        self._device = device
        self._all_reduce = all_reduce
        self._running: dict[str, _Running] = {}

    def admit(self, admit: Admit, inputs: MultimodalInputs, sampling: Sampling) -> None:
        """See :class:`coatcheck.engine.model.runner.Runner`."""
        self._running[admit.request] = _Running(inputs)

    def release(self, request: str) -> None:
        """See :class:`coatcheck.engine.model.runner.Runner`."""
        self._running.pop(request, None)

    def evict(self, digests: Sequence[bytes]) -> None:
        """See :class:`coatcheck.engine.model.runner.Runner`. There are no embeddings here, so none are kept."""

    def execute(self, work: Sequence[Work]) -> Outcome:
        """See :class:`coatcheck.engine.model.runner.Runner`."""
        time.sleep(self._step_s)
        outcome = Outcome(consumed=prefilled(work))
        broken = self._finish_prefills(outcome.consumed)
        if not self._samples:
            return outcome
        for part in work:
            if part.request in broken:
                outcome.broken.append(part.request)
            elif part.sample:
                running = self._running[part.request]
                mixed = (running.checksum + running.drawn) * _MIX % 2**64
                outcome.drawn[part.request] = mixed * self._vocabulary >> 64
                running.drawn += 1
        return outcome

    def _finish_prefills(self, requests: Sequence[str]) -> set[str]:
        """Checksums of all ranks' inputs; returns the requests on which ranks differ."""
        if not requests:
            return set()
        own = torch.tensor([checksum(self._running[request].inputs) for request in requests])
        summed = own.to(self._device, copy=True)
        self._all_reduce(summed)
        for request, value in zip(requests, own.tolist(), strict=True):
            self._running[request] = _Running(_EMPTY, value)
        alike = summed.cpu() == own * self._ranks  # both wrap around alike
        return {request for request, same in zip(requests, alike.tolist(), strict=True) if not same}


def checksum(inputs: MultimodalInputs) -> int:
    """An int64 over one value of every page of the wide pixels, and over ids and positions."""
    total = inputs.ids.sum() + inputs.positions.sum() * 31
    for item in inputs.items:
        width = item.pixels.shape[1] if item.table is None else item.table.width
        values = len(item.pixels) * width
        where = torch.cat([torch.arange(0, values, PAGE // 4), torch.tensor([values - 1])])
        sampled = item.pixels.flatten()[where] if item.table is None else item.table.at(item.pixels, where)
        words = sampled.view(torch.int32)
        total = total * 31 + (words.to(torch.int64) * torch.arange(1, len(words) + 1)).sum()
    return int(total)


_EMPTY = MultimodalInputs(torch.empty(0, dtype=torch.int64), (), torch.empty((3, 0), dtype=torch.int64), 0)
