"""The runner without a model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from coatcheck.engine.model.null import NullRunner, checksum
from coatcheck.engine.records import Admit, Sampling, Work
from coatcheck.engine.strategies.inputs import MultimodalInputs, MultimodalItem
from coatcheck.pixels import PixelTable

PREFILL = Work("a", 0, 4, (0,), None, sample=True)
DECODE = Work("a", 4, 1, (), 7, sample=True)


def inputs(*changes: int, values: int = 5000) -> MultimodalInputs:
    """Pixels of several pages; ``changes``: places where they differ from the usual."""
    pixels = torch.arange(values, dtype=torch.float32)
    for change in changes:
        pixels[change] += 1
    item = MultimodalItem(pixels.view(-1, 1), (1, 1, values), 0, 1, 0, 0)
    return MultimodalInputs(torch.tensor([1, 2, 3, 4]), (item,), torch.zeros((3, 4), dtype=torch.int64), 0)


def doubled(tensor: torch.Tensor) -> None:
    tensor *= 2


def runner(all_reduce: Callable[[torch.Tensor], None] = doubled, step_s: float = 0.0) -> NullRunner:
    made = NullRunner(512, step_s, 2, True, torch.device("cpu"), all_reduce)
    made.admit(Admit("a", 0, 10), inputs(), Sampling(3))
    return made


def test_the_checksum_sees_every_page_and_the_last_value() -> None:
    usual = checksum(inputs())
    assert usual == checksum(inputs())
    assert all(checksum(inputs(place)) != usual for place in (0, 1024, 2048, 3072, 4096, 4999))
    assert checksum(inputs(0)) != checksum(inputs(1024)), "a checksum that does not tell pages apart"


def test_the_checksum_is_the_same_for_compact_pixels() -> None:
    table = PixelTable(torch.arange(3.0 * 256).view(3, 256), temporal=2, area=49)
    pixels = torch.randint(256, (200, 3 * 49), dtype=torch.uint8)

    def made(pixels: torch.Tensor, table: PixelTable | None) -> MultimodalInputs:
        return replace(inputs(), items=(MultimodalItem(pixels, (1, 10, 20), 0, 50, 0, 0, table=table),))

    assert checksum(made(pixels, table)) == checksum(made(table.widen(pixels), None))
    changed = pixels.clone()
    changed[-1, -1] += 1
    assert checksum(made(changed, table)) != checksum(made(pixels, table))


def test_tokens_derive_from_the_inputs_of_all_ranks() -> None:
    one, two = runner(), runner()
    tokens = [one.execute([part]).drawn["a"] for part in (PREFILL, DECODE, DECODE)]
    assert tokens == [two.execute([part]).drawn["a"] for part in (PREFILL, DECODE, DECODE)]
    assert len(set(tokens)) > 1
    assert all(0 <= token < 512 for token in tokens)
    other = runner()
    other.admit(Admit("a", 0, 10), inputs(1024), Sampling(3))
    assert [other.execute([part]).drawn["a"] for part in (PREFILL, DECODE, DECODE)] != tokens


def test_a_rank_with_other_inputs_breaks_the_request() -> None:
    def differs(tensor: torch.Tensor) -> None:
        tensor *= 2
        tensor += 1

    outcome = runner(differs).execute([PREFILL])
    assert outcome.broken == ["a"]
    assert outcome.drawn == {}


def test_a_step_takes_its_time_and_a_chunk_draws_nothing() -> None:
    start = time.monotonic()
    outcome = runner(step_s=0.05).execute([Work("a", 0, 2, (0,), None, sample=False)])
    assert time.monotonic() - start >= 0.05
    assert outcome.drawn == {}
