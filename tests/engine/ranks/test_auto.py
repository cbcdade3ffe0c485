"""When auto works inline and when in the background: the invariants, without processes."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.arena.handle import Handle
from coatcheck.engine.ranks.auto import Auto, Line, Load, decide
from coatcheck.engine.ranks.auto_threshold import LEAST_BYTES, MOST_BYTES, threshold
from coatcheck.engine.records import Arrived, AutoRule, Sampling
from coatcheck.engine.strategies.timing import Timing
from coatcheck.intake.records import Item, Tensor

MS = 1e-3
seconds = st.floats(0, 10, allow_nan=False)
counts = st.integers(0, 300)


def image(nbytes: int, by_handle: bool = False) -> Arrived:
    pixels = Handle(4096, 1, (nbytes,), "uint8") if by_handle else Tensor(0, (nbytes,), "uint8")
    return Arrived("r", "auto", (1,), (Item(pixels, (1, 1, 1), 0, 1),), Sampling(1))


TEXT = Arrived("r", "auto", (1,), (), Sampling(1))


@given(seconds, seconds, seconds)
def test_where_nobody_is_delayed_it_is_inline(cost: float, handover: float, backlog: float) -> None:
    assert decide(cost, handover, Load(0, backlog)) is Timing.INLINE


@given(seconds, seconds, counts, seconds)
def test_background_is_chosen_only_where_it_delays_less_in_sum(
    cost: float, handover: float, delayed: int, backlog: float
) -> None:
    background = decide(cost, handover, Load(delayed, backlog)) is Timing.BACKGROUND
    assert background == (backlog + handover < delayed * cost)


@given(seconds, seconds, counts, seconds, counts, seconds)
def test_more_that_wait_never_make_it_inline_and_a_longer_lane_never_background(
    cost: float, handover: float, delayed: int, backlog: float, more: int, longer: float
) -> None:
    before = decide(cost, handover, Load(delayed, backlog))
    if before is Timing.BACKGROUND:
        assert decide(cost, handover, Load(delayed + more, backlog)) is Timing.BACKGROUND
    else:
        assert decide(cost, handover, Load(delayed, backlog + longer)) is Timing.INLINE


@given(st.lists(st.tuples(st.floats(0.001, 1), st.integers(0, 20), st.floats(0, 0.5)), max_size=60), st.floats(0, 0.1))
def test_a_lane_that_falls_behind_gets_no_more(steps: list[tuple[float, int, float]], handover: float) -> None:
    """Requests of some cost come while some are delayed; between them the lane works for a time."""
    lane: deque[float] = deque()
    dearest, most = 0.0, 0
    for cost, delayed, worked in steps:
        dearest, most = max(dearest, cost), max(most, delayed)
        if decide(cost, handover, Load(delayed, sum(lane))) is Timing.BACKGROUND:
            lane.append(cost)
        assert sum(lane) <= most * dearest + dearest
        while lane and worked > 0:
            done = min(worked, lane[0])
            lane[0] -= done
            worked -= done
            if not lane[0]:
                lane.popleft()


def auto(timing: str = "measured") -> Auto:
    costs = {"dict": Line(1 * MS, 1e-9), "handle": Line(0.5 * MS, 0.0)}
    return Auto(AutoRule(4096, timing, 0.02 * MS), costs)


def test_the_carrier_is_where_the_payload_is() -> None:
    assert auto().strategy(image(100), Load(0, 0)) == "dict-inline"
    assert auto().strategy(image(100, by_handle=True), Load(0, 0)) == "handle-inline"
    assert auto().strategy(image(100), Load(1, 0)) == "dict-background"
    assert auto().strategy(image(100, by_handle=True), Load(1, 0)) == "handle-background"


def test_text_is_inline_under_any_load_and_option() -> None:
    assert {auto(timing).strategy(TEXT, Load(300, 0)) for timing in ("measured", "background")} == {"dict-inline"}


def test_the_cost_is_of_the_carrier_and_of_the_bytes() -> None:
    lane = Load(2, 2.5 * MS)
    assert auto().strategy(image(100), lane) == "dict-inline"  # 2 x 1 ms
    assert auto().strategy(image(1_000_000), lane) == "dict-background"  # 2 x 2 ms
    assert auto().strategy(image(1_000_000, by_handle=True), lane) == "handle-inline"  # 2 x 0.5 ms


@pytest.mark.parametrize(("timing", "load"), [("inline", Load(300, 0)), ("background", Load(0, 9))])
def test_an_option_overrules_the_measurement(timing: str, load: Load) -> None:
    assert auto(timing).strategy(image(100), load) == f"dict-{timing}"


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ([1, 1, 1], 30_000),
        ([1, 2, 3], 20_000),
        ([3, 1, 1], LEAST_BYTES),  # one lucky sample above is no reason
        ([1, 3, 1], 10_000),
    ],
)
def test_the_threshold_is_the_largest_size_up_to_which_inside_costs_no_more(inside: list[int], expected: int) -> None:
    sizes = (10_000, 20_000, 30_000)
    measured = dict(zip(sizes, map(float, inside), strict=True))
    assert threshold(measured, dict.fromkeys(sizes, 2.0)) == expected


def test_the_threshold_has_bounds() -> None:
    assert threshold({100: 1.0}, {100: 2.0}) == LEAST_BYTES
    assert threshold({5 << 20: 1.0}, {5 << 20: 2.0}) == MOST_BYTES
