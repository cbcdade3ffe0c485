"""``python -m benchmarks.handoff`` with small payloads and our own contenders, and with contenders that go wrong."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from benchmarks.handoff import team
from benchmarks.handoff.command import app
from benchmarks.handoff.config import PATCH_BYTES, HandoffConfig, grid_of
from benchmarks.handoff.contenders import CONTENDERS, OWN, Contender
from benchmarks.handoff.member import FrontMember
from benchmarks.handoff.meter import Payload, Place, Written
from benchmarks.handoff.result import HandoffReport, Queued, Sample, Step
from benchmarks.handoff.rounds import measure
from benchmarks.handoff.summary import run_of, sampled
from benchmarks.handoff.table import markdown
from coatcheck.bench.support.files import read_json
from coatcheck.errors import ConfigError

OURS = ("coatcheck-handle", "coatcheck-handle-f32", "coatcheck-dict", "torch-object-list", "memcpy")
MB = 0.08  # 16 patches
ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.timeout(240),  # starting ranks is bounded by itself
    pytest.mark.processes,
]


def quiet(text: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where teams have their files: short, since sockets are among them."""
    tmp_path_factory.getbasetemp()  # pytest's own is not to be made in ours, which ends before it
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture(scope="module")
def report(temporary: Path) -> HandoffReport:
    """Two rounds of what needs no peer, and one peer that is not there."""
    config = HandoffConfig(
        contenders=(*OURS, "ray"),
        ranks=(2,),
        sizes=(MB, 4 * MB),
        rounds=2,
        repeats=2,
        burst=3,
        peers=temporary / "none",
    )
    return measure(config, quiet)


def test_every_rank_gets_every_byte_and_every_span_is_there(report: HandoffReport) -> None:
    runs = [run for run in report.runs if run.contender != "ray"]
    assert [run.failed for run in runs] == [""] * 2 * len(OURS)
    for run in runs:
        plain = [sample for sample in run.samples if sample.loop_block_ms is None]
        assert (len(plain), len(run.samples)) == (4, 6)
        assert {sample.round for sample in run.samples} == {1, 2}
        assert run.writer_ms is not None and run.writer_ms.p50 > 0 and run.loop_block_ms is not None
        if run.contender == "memcpy":
            assert (run.ready_ms, run.stall_ms.entry, run.queued) == (None, None, [])
            continue
        assert run.ready_ms is not None and run.stall_ms.entry is not None and run.stall_ms.follower is not None
        assert run.stall_ms.entry.cpu_p50 > 0 and run.idle_stall_ms.follower is not None
        assert [one.round for one in run.queued] == [1, 1, 2, 2]
        for sample in plain:
            assert sample.ready_ms is not None and sample.agreed_ms is not None
            assert 0 < sample.ready_ms < sample.agreed_ms or sample.ready_ms == sample.agreed_ms
            assert (sample.ready_ms < sample.agreed_ms) == run.contender.startswith("coatcheck")
            assert len(sample.steps) == len(sample.read_ms) == 2
            assert all(step.wall_ms >= 0 for steps in sample.steps for step in steps)


def test_handles_carry_an_eighth_and_the_rest_carries_all(report: HandoffReport) -> None:
    carried = {run.contender: run.carried_bytes / run.payload_bytes for run in report.runs if not run.failed}
    assert carried == {**dict.fromkeys(OURS, 1.0), "coatcheck-handle": 1 / 8}


def test_a_contender_that_is_not_installed_is_listed_with_the_reason(report: HandoffReport) -> None:
    (reason,) = {run.failed for run in report.runs if run.contender == "ray"}
    assert "make peers" in reason
    assert f"failed: {reason}" in markdown(report)


def test_the_load_of_others_is_recorded_for_each_turn(report: HandoffReport) -> None:
    assert [(turn.contender, turn.round) for turn in report.turns if turn.round == 1] == [
        (name, 1) for name in (*OURS[1:], OURS[0])
    ]
    assert len(report.turns) == 2 * len(OURS)
    assert all(turn.load >= 0 for turn in report.turns)


def test_nothing_is_left(report: HandoffReport, temporary: Path) -> None:
    assert not [child for child in psutil.Process().children(recursive=True) if "handoff" in " ".join(child.cmdline())]
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("will-not-start", "front end: RuntimeError: no such device"),
        ("raises", "rank 1: ValueError: cannot be mapped"),
        ("dies", "the rank 1 has ended"),
        ("hangs", "the rank 1 did not answer within"),
        ("other-bytes", "rank 1 got other bytes"),
    ],
)
def test_one_that_goes_wrong_is_listed_and_the_others_go_on(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (name, "works"):
        monkeypatch.setitem(CONTENDERS, one, Contender(one, OWN, "tests.support.handoff_faults"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}/src:{ROOT}")
    monkeypatch.setattr(team, "HAND_OFF_S", 5.0)
    config = HandoffConfig(contenders=(name, "works"), ranks=(2,), sizes=(MB,), rounds=1, repeats=1)
    wrong, right = measure(config, quiet).runs
    assert wrong.failed.startswith(reason) and "\n" not in wrong.failed
    assert right.failed == "" and right.ready_ms is not None
    assert not list(Path("/dev/shm").glob(f"coatcheck-test-{os.getpid()}-*"))


class Slow:
    """A front end that takes a while, with or without the event loop."""

    def __init__(self, place: Place) -> None:
        self._blocks = place.contender == "blocks"

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        if self._blocks:
            time.sleep(0.2)  # noqa: ASYNC251 - the fault
        else:
            await asyncio.sleep(0.2)
        return Written(time.monotonic(), 0.0, None, payload.wide)

    def settle(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@pytest.mark.serial
@pytest.mark.parametrize("blocks", [True, False])
def test_a_blocked_event_loop_is_seen_and_a_waiting_one_is_none(blocks: bool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    member = FrontMember(Slow, Place("blocks" if blocks else "waits", str(tmp_path), 1))
    gap = member.hand_off("a", (1, 2, 2), str(image), True)["loop_block_s"]
    member.close()
    assert (gap >= 0.2) if blocks else (gap < 0.15)


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    options = ["--contenders", "memcpy", "--ranks", "1", "--sizes", "0.08,0.3", "--rounds", "1"]
    done = CliRunner().invoke(app, [*options, "--json", str(tmp_path / "r.json.gz")])
    assert done.exit_code == 0, done.output
    written = read_json(tmp_path / "r.json.gz", HandoffReport)
    assert [run.contender for run in written.runs] == ["memcpy"] * 2
    assert "memcpy" in done.output


def answer(steps: list[tuple[str, float, float, float]], held: float, release: float) -> dict[str, Any]:
    """A rank's, in seconds."""
    return {"steps": steps, "held": held, "release": [release, release / 2], "read_s": 0.001}


def test_a_followers_step_begins_with_the_entry_ranks_of_that_name() -> None:
    entry = answer([("arrive", 1.0, 1.002, 0.001), ("admit", 1.010, 1.011, 0.0005)], 1.003, 0.0001)
    other = answer([("arrive", 1.0015, 1.004, 0.001), ("lane", 1.0, 1.5, 0.3), ("admit", 1.0, 1.012, 0.001)], 1.006, 0)
    written = {"writer_s": 0.2, "hash_s": None, "started": 0.9, "loop_block_s": None}
    made = sampled(1, written, [entry, other])
    assert [(step.name, step.wall_ms) for step in made.steps[0]] == [("arrive", 2.0), ("admit", 1.0), ("release", 0.1)]
    assert [step.wall_ms for step in made.steps[1]] == [4.0, 500.0, 2.0, 0.0]
    assert (made.writer_ms, made.ready_ms, made.agreed_ms) == (200.0, 106.0, 600.0)


def test_queued_requests_and_idle_ones_and_the_watched_loop_count_apart() -> None:
    def steps(ms: float) -> list[list[Step]]:
        return [[Step("a", ms, ms), Step("lane", 50.0, 3.0), Step("release", ms, ms)] for _ in range(2)]

    plain = Sample(1, 1.0, None, 2.0, 3.0, steps(4.0), [5.0, 5.0])
    watched = Sample(1, 100.0, None, 100.0, 100.0, steps(100.0), [100.0, 100.0], 7.0)
    run = run_of("x", 2, (1, 2, 2), [plain, watched], [Queued(1, steps(6.0))], 10, "")
    assert run.stall_ms.entry is not None and run.idle_stall_ms.follower is not None
    assert (run.stall_ms.entry.p50, run.idle_stall_ms.follower.p50) == (12.0, 8.0)
    assert run.writer_ms is not None and run.loop_block_ms is not None and run.lane_cpu_ms is not None
    assert (run.writer_ms.p50, run.loop_block_ms.p50, run.lane_cpu_ms.p50) == (1.0, 7.0, 3.0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--contenders", "memcpy,pigeon"], "pigeon"),
        (["--contenders", ""], "--contenders"),
        (["--ranks", "2.5"], "--ranks"),
        (["--ranks", "0"], "--ranks"),
        (["--sizes", "big"], "--sizes"),
        (["--sizes", "1000"], "--sizes"),
        (["--rounds", "0"], "--rounds"),
        (["--burst", "1"], "--burst"),
        (["--json", "/nowhere/at/all.json"], "--json"),
    ],
)
def test_an_impossible_option_is_named(options: list[str], named: str) -> None:
    done = CliRunner().invoke(app, options)
    assert isinstance(done.exception, ConfigError)
    assert named in str(done.exception)


@pytest.mark.parametrize("megabytes", [0.02, 1, 5.8, 25, 100])
def test_the_image_taken_is_about_as_large_as_asked(megabytes: float) -> None:
    t, h, w = grid_of(megabytes)
    assert t == 1 and h % 2 == w % 2 == 0
    assert abs(h * w * PATCH_BYTES / 1e6 - megabytes) <= max(0.02 * megabytes, 0.02)
    assert 0.5 <= h / w <= 2
