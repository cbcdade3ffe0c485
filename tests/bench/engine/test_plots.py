"""What the figures hold; that they look right is for eyes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import matplotlib
import msgspec
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from coatcheck.bench.engine import plots
from coatcheck.bench.engine.result import Report, RequestSample, Round, Run, Stall
from coatcheck.bench.support.plots import BLACK, BLUE, GREY, LEAST_MS, ORANGE, svg
from tests.bench.conftest import failed_run, make_report, make_run

EVERY = [plots.stall, plots.latency, plots.throughput, plots.timeline]


def texts(figure: Figure) -> list[str]:
    return [axis.get_text() for axes in figure.axes for axis in axes.get_yticklabels()]


def with_round(run: Run, **changes: object) -> Run:
    """The run with its middle round, which the timeline shows, changed."""
    first, middle, last = run.samples
    return msgspec.structs.replace(run, samples=[first, msgspec.structs.replace(middle, **changes), last])


def failing(sample: RequestSample) -> RequestSample:
    return msgspec.structs.replace(sample, error="x", latency_ms=1e9, stall_ms=[], itl_ms=[])


def with_failures_only(run: Run) -> Run:
    rounds = [msgspec.structs.replace(r, requests=list(map(failing, r.requests))) for r in run.samples]
    return msgspec.structs.replace(run, samples=rounds)


@pytest.mark.parametrize("draw", EVERY)
def test_failed_strategies_keep_their_row_and_say_so(draw: Callable[[Report], Figure], report: Report) -> None:
    late = msgspec.structs.replace(failed_run(), samples=with_failures_only(make_run("handle-inline")).samples)
    for runs in (report.runs, [failed_run()], [late]):
        made = svg(draw(make_report(runs)), "a")
        assert made.count(">failed</text>") + made.count(": failed</text>") == 1
        assert "handle-inline" in made


@pytest.mark.parametrize("draw", EVERY)
def test_failed_requests_are_not_drawn(draw: Callable[[Report], Figure]) -> None:
    run = make_run("dict-inline")
    requests = run.samples[1].requests
    some = with_round(run, requests=[failing(requests[0]), *requests[1:]])
    figure = draw(make_report([some]))
    assert figure.axes[0].get_xlim()[1] < 1e6


def test_a_box_for_the_entry_rank_and_one_for_the_followers() -> None:
    figure = plots.stall(make_report([make_run("dict-inline"), make_run("dict-inline", tp=4)]))
    assert len(figure.axes[0].patches) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["entry rank", "followers"]
    assert figure.axes[0].get_xscale() == "log"


def test_one_rank_has_no_follower() -> None:
    report = make_report([make_run("object-inline", tp=1)])
    figure = plots.stall(report)
    (box,) = figure.axes[0].patches
    heights = box.get_path().get_extents()
    assert heights.y0 + heights.y1 == pytest.approx(0)  # in the middle of the row
    assert not figure.legends
    assert texts(plots.timeline(report)) == ["entry rank"]


def test_a_stall_of_nothing_has_a_place_on_the_logarithmic_axis() -> None:
    run = make_run("dict-inline", tp=1)
    none = [msgspec.structs.replace(sample, stall_ms=[0.0]) for sample in run.samples[1].requests]
    low, _ = plots.stall(make_report([with_round(run, requests=none)])).axes[0].get_xlim()
    assert 0 < low < LEAST_MS


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (41, 44, ["41", "42", "43", "44"]),
        (20, 50, ["20", "30", "40", "50"]),
        (0.9, 210, ["1", "2", "5", "10", "20", "50", "100", "200"]),
        (0.009, 110, ["0.01", "0.1", "1", "10", "100"]),
    ],
)
def test_the_logarithmic_axis_has_ticks_to_read(low: float, high: float, ticks: list[str]) -> None:
    run = make_run("dict-inline", tp=1)
    sample = run.samples[1].requests[0]
    ends = [msgspec.structs.replace(sample, stall_ms=[ms]) for ms in (low, high)]
    run = msgspec.structs.replace(run, samples=[msgspec.structs.replace(run.samples[1], requests=ends)])
    axis = plots.stall(make_report([run])).axes[0].xaxis
    shown = [axis.get_major_formatter()(at) for at in axis.get_majorticklocs() if low <= at <= high]
    assert shown == ticks


def test_throughput_shows_every_round_without_what_failed_in_it() -> None:
    run = make_run("dict-inline")
    requests = run.samples[1].requests
    run = with_round(run, requests=[failing(requests[0]), *requests[1:]])
    axes = plots.throughput(make_report([run])).axes[0]
    each = [count / r.seconds for count, r in zip((12, 11, 12), run.samples, strict=True)]
    drawn: list[Any] = [line.get_xdata() for line in axes.lines]
    assert any(list(xs) == pytest.approx(each) for xs in drawn)
    assert axes.get_xlim()[0] == 0


def spans(figure: Figure) -> list[list[tuple[float, float, str]]]:
    """Start, end and colour of each bar, by rank."""

    def bar(path: Any, colour: Any) -> tuple[float, float, str]:
        across = path.vertices[:, 0]
        return float(across.min()), float(across.max()), to_hex(colour).upper()

    bars: list[Any] = [of for of in figure.axes[0].collections if isinstance(of, PolyCollection)]
    return [list(map(bar, of.get_paths(), of.get_facecolor())) for of in bars]


def test_the_timeline_shows_the_middle_round_by_rank_and_phase_longest_on_top() -> None:
    stalls = [
        Stall(0, 0, "deliver", 0.5, 500.0, 0.0),
        Stall(0, 1, "broadcast", 0.25, 500.0, 0.0),  # half of it beside the first
        Stall(1, 1, "another", 1.75, 200.0, 0.0),
        Stall(1, 0, "admit", 1.5, 100.0, 0.0),
        Stall(0, 1, "receive", 2.5, 100.0, 0.0),
    ]
    figure = plots.timeline(make_report([with_round(make_run("dict-inline"), seconds=3.0, stalls=stalls)]))
    assert spans(figure) == [
        [(0.5, 1.0, BLUE), (0.25, 0.75, ORANGE)],
        [(1.5, 1.6, BLACK), (1.75, 1.95, GREY)],
    ]
    assert figure.axes[0].get_xlim() == (0, plots.TIMELINE_S)
    title = figure.axes[0].get_title(loc="left")
    assert title == "dict-inline, round 1: entry rank stalled 38 % of the time shown"  # 0.75 of 2 s


def test_the_timeline_ends_with_the_longest_round_shown() -> None:
    short, long = (with_round(make_run("dict-inline"), seconds=seconds) for seconds in (0.5, 0.75))
    figure = plots.timeline(make_report([short, long]))
    assert [axes.get_xlim() for axes in figure.axes] == [(0, 0.75)] * 2
    assert [len(axes.patches) for axes in figure.axes] == [1, 0]  # grey after the shorter one's end


def test_svg_is_text_that_stays_the_same(report: Report) -> None:
    made = [svg(plots.latency(report), name) for name in ("a", "a", "b")]
    assert made[0] == made[1]
    assert made[0].startswith("<svg") and ">object-inline, 2 ranks</text>" in made[0]
    assert "<metadata" not in made[0]
    assert 'id="a-figure_1"' in made[0] and 'id="b-figure_1"' in made[2]


def test_dollars_are_no_formula() -> None:
    run = msgspec.structs.replace(make_run("dict-inline"), strategy="$x_1$")
    for draw in EVERY:
        assert "$x_1$" in re.sub(r"<!--.*?-->", "", svg(draw(make_report([run])), "a"))


@pytest.mark.parametrize("draw", EVERY)
def test_matplotlibs_settings_stay_as_they_were(draw: Callable[[Report], Figure], report: Report) -> None:
    before = dict(matplotlib.rcParams)
    svg(draw(report), "a")
    assert dict(matplotlib.rcParams) == before


def test_a_round_without_requests_is_no_failure() -> None:
    run = make_run("dict-inline")
    empty = Round(0, 0.0, 0.1, {}, 0.0, [], [], "")
    report = make_report([msgspec.structs.replace(run, samples=[empty])])
    assert all(svg(draw(report), "a") for draw in EVERY)
