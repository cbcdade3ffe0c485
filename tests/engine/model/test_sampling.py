"""Drawing tokens."""

from __future__ import annotations

import torch

from coatcheck.engine.model.sampling import Sampler
from coatcheck.engine.records import Sampling


def draws(sampling: Sampling, logits: torch.Tensor, count: int = 200) -> list[int]:
    sampler = Sampler(sampling)
    return [sampler.draw(logits) for _ in range(count)]


LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def test_temperature_zero_is_greedy() -> None:
    assert set(draws(Sampling(1, temperature=0), LOGITS)) == {0}


def test_a_seed_repeats_and_another_differs() -> None:
    first = draws(Sampling(1, temperature=1, seed=1), LOGITS)
    assert first == draws(Sampling(1, temperature=1, seed=1), LOGITS)
    assert first != draws(Sampling(1, temperature=1, seed=2), LOGITS)
    assert set(first) == {0, 1, 2, 3}


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    assert set(draws(Sampling(1, temperature=1, top_p=0.79, seed=3), LOGITS)) == {0, 1}
    assert set(draws(Sampling(1, temperature=1, top_p=0.81, seed=3), LOGITS)) == {0, 1, 2}
    assert set(draws(Sampling(1, temperature=1, top_p=1e-9, seed=3), LOGITS)) == {0}


def test_frequencies_follow_the_distribution() -> None:
    counts = torch.bincount(torch.tensor(draws(Sampling(1, temperature=1, seed=4), LOGITS, 4000)), minlength=4) / 4000
    assert torch.allclose(counts, LOGITS.exp(), atol=0.03)
