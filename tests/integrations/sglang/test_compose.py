"""Prompts expanded by counting. That SGLang does the same: ``tests/sglang/test_whole.py``."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.integrations.sglang.compose import expand, positions

PLACEHOLDER = 9

grids = st.tuples(st.just(1), st.integers(1, 6).map(lambda n: 2 * n), st.integers(1, 6).map(lambda n: 2 * n))


@given(st.lists(st.integers(0, 8)), st.lists(grids, max_size=4), st.randoms(use_true_random=False))
def test_a_prompt_is_expanded_and_counted_on(
    text: list[int], images: list[tuple[int, int, int]], random: object
) -> None:
    ids = list(text)
    for at in sorted((random.randint(0, len(text)) for _ in images), reverse=True):  # type: ignore[attr-defined]
        ids.insert(at, PLACEHOLDER)
    counts = [h * w // 4 for _, h, w in images]
    made = expand(ids, PLACEHOLDER, counts)
    assert made is not None
    whole, spans = made
    assert [token for token in whole if token != PLACEHOLDER] == text
    assert [last - first + 1 for first, last in spans] == counts
    assert sum(token == PLACEHOLDER for token in whole) == sum(counts)
    assert all(set(whole[first : last + 1]) == {PLACEHOLDER} for first, last in spans)
    places, delta = positions(len(whole), spans, images, 2)
    assert places.shape == (3, len(whole))
    # Token by token, as the rule says it.
    following, at, expected = 0, 0, np.empty((3, len(whole)), dtype=np.int64)
    for (first, last), (_, h, w) in zip(spans, images, strict=True):
        for place in range(at, first):
            expected[:, place], following = following, following + 1
        for place in range(first, last + 1):
            row, column = divmod(place - first, w // 2)
            expected[:, place] = following, following + row, following + column
        following, at = following + max(1, h // 2, w // 2), last + 1
    for place in range(at, len(whole)):
        expected[:, place], following = following, following + 1
    assert (places == expected).all()
    assert int(delta[0, 0]) == (int(expected.max()) + 1 - len(whole) if whole else 0)


def test_placeholders_must_be_as_many_as_images() -> None:
    assert expand([1, PLACEHOLDER, 2], PLACEHOLDER, []) is None
    assert expand([1, 2], PLACEHOLDER, [4]) is None
    assert expand([PLACEHOLDER], PLACEHOLDER, [2]) == ([PLACEHOLDER] * 2, [(0, 1)])
