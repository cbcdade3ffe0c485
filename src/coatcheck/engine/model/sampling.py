"""Drawing a token. Only the entry rank draws; the token reaches the others in the next plan."""

from __future__ import annotations

import torch

from coatcheck.engine.records import Sampling

GREEDY_BELOW = 1e-4  # a temperature under this picks the likeliest token: logits this far apart overflow when divided


class Sampler:
    """One request's sampler: greedy at temperature 0 (or next to it), else nucleus sampling from its own generator.

    The generator lives on the CPU and advances once per token, so the tokens do not depend on what else is in the
    batch.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def draw(self, logits: torch.Tensor) -> int:
        """``logits`` (vocabulary,), any floating dtype and device -> token id."""
        if self._temperature < GREEDY_BELOW:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.float().cpu() / self._temperature, dim=-1)
        if self._top_p < 1:
            ordered, order = probabilities.sort(descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered  # mass of all likelier tokens; the likeliest always stays
            probabilities[order[before >= self._top_p]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
