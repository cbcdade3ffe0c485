"""Positions are the model's own, of images and videos mixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.model.positions import ModelPositions
from coatcheck.intake.records import Item, Tensor


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.device("meta"):
        return Qwen2_5_VLModel(AutoConfig.from_pretrained(DEFAULT_MODEL))


@pytest.fixture(scope="module")
def fractions(model: Any) -> bool:
    """Does this version of transformers take parts of a second? 5.17 cuts them off, Qwen's own code does not."""
    ids, kinds = torch.full((1, 2), 511), torch.full((1, 2), 2)
    more = {"video_grid_thw": torch.tensor([[2, 2, 2]]), "second_per_grid_ts": torch.tensor([1.5])}
    return bool(model.get_rope_index(ids, kinds, **more)[0][0, 0, 1] == 3)


def item(start: int, grid: tuple[int, int, int], seconds: float | None) -> Item:
    patches = grid[0] * grid[1] * grid[2]
    return Item(Tensor(0, (patches, 1176), "float32"), grid, start, patches // 4, seconds=seconds)


def test_positions_of_videos_and_images_mixed(model: Any, fractions: bool) -> None:
    ids, items, kinds = [1, 2, 3], list[Item](), [0, 0, 0]
    first, third = (1.5, 0.4) if fractions else (2.0, 1.0)
    for grid, seconds in (((3, 4, 6), first), ((1, 8, 4), None), ((5, 2, 2), third), ((1, 2, 2), 7.0)):
        items.append(item(len(ids), grid, seconds))
        ids += [511 if seconds else 510] * items[-1].count + [9, 9]
        kinds += [2 if seconds else 1] * items[-1].count + [0, 0]
    positions, delta = ModelPositions(model.config)(len(ids), items)
    expected, expected_delta = model.get_rope_index(
        torch.tensor([ids]),
        torch.tensor([kinds], dtype=torch.int32),
        image_grid_thw=torch.tensor([[1, 8, 4]]),
        video_grid_thw=torch.tensor([[3, 4, 6], [5, 2, 2], [1, 2, 2]]),
        second_per_grid_ts=torch.tensor([first, third, 7.0]),
    )
    assert np.array_equal(positions, expected[:, 0].numpy())
    assert delta == int(expected_delta)


def test_a_video_s_positions_follow_its_time(model: Any) -> None:
    # Two tokens a second (tokens_per_second of the model): 1.5 s are three steps, of 2 x 3 tokens each.
    positions, _ = ModelPositions(model.config)(21, [item(3, (3, 4, 6), 1.5)])
    assert positions[0, 3:21].tolist() == [3] * 6 + [6] * 6 + [9] * 6


def test_text_alone_counts_up(model: Any) -> None:
    positions, delta = ModelPositions(model.config)(7, [])
    assert (positions.tolist(), delta) == ([list(range(7))] * 3, 0)


GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 8).map(lambda n: 2 * n), st.integers(1, 8).map(lambda n: 2 * n))
PARTS = st.lists(
    st.tuples(GRIDS, st.none() | st.floats(0.0625, 40, width=32), st.integers(1, 9)), min_size=1, max_size=5
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS, before=st.integers(0, 5))
def test_any_prompt_has_the_model_s_own_positions(model: Any, fractions: bool, parts: list[Any], before: int) -> None:
    ids, items, kinds = [1] * before, list[Item](), [0] * before
    for (t, h, w), some, text in parts:
        seconds = some if fractions or some is None else float(math.ceil(some))
        grid = (t if seconds else 1, h, w)
        items.append(item(len(ids), grid, seconds))
        ids += [511 if seconds else 510] * items[-1].count + [9] * text
        kinds += [2 if seconds else 1] * items[-1].count + [0] * text
    positions, delta = ModelPositions(model.config)(len(ids), items)
    expected, expected_delta = model.get_rope_index(
        torch.tensor([ids]),
        torch.tensor([kinds], dtype=torch.int32),
        image_grid_thw=torch.tensor([item.grid for item in items if item.seconds is None]),
        video_grid_thw=torch.tensor([item.grid for item in items if item.seconds is not None]),
        second_per_grid_ts=torch.tensor([item.seconds for item in items if item.seconds is not None]),
    )
    assert np.array_equal(positions, expected[:, 0].numpy())
    assert delta == int(expected_delta)
