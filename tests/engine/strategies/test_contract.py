"""The contract of every strategy, on 1, 2 and 4 real ranks. A new strategy joins by its line in the table."""

from __future__ import annotations

import re
import time
from itertools import count

import msgspec
import pytest

from coatcheck.arena.handle import Handle, PixelForm
from coatcheck.engine.records import Sampling
from coatcheck.engine.strategies.table import NAMES, STRATEGIES
from tests.support.engine import READY_TIMEOUT_S, Engine
from tests.support.workload import Workload

pytestmark = pytest.mark.timeout(90)

GRIDS: list[list[tuple[int, ...]]] = [
    [],
    [(8, 8)],
    [(8, 12), (16, 8)],
    [(32, 32)],
    [(2, 2)],
    [(3, 8, 4)],  # a video
    [(4, 8), (2, 8, 8), (8, 8), (5, 4, 4)],
]
FORMS: tuple[PixelForm, ...] = ("float32", "uint8")
_names = count()


def fresh(label: str) -> str:
    """A request name never used before, also not with another strategy on the same group."""
    return f"{next(_names)}-{label}"


@pytest.fixture(params=sorted(NAMES))
def strategy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_inputs_are_identical_on_all_ranks_and_tokens_equal_generate(
    engine: Engine, strategy: str, workload: Workload
) -> None:
    for seed, grids in enumerate(GRIDS):
        for form in FORMS if strategy.startswith("handle") else FORMS[:1]:
            name, text = fresh("alone"), 3 + 5 * seed
            wide = workload.request(name, strategy, grids, text, seed)
            request = workload.request(name, strategy, grids, text, seed, form=form)
            engine.submit(request.arrived, request.frames)
            (result,) = engine.wait(request.arrived.request)
            assert result.digest == workload.digest(wide)
            assert result.tokens == workload.generate(wide)
            assert result.finish == "length"


def test_inputs_are_identical_under_load(engine: Engine, strategy: str, workload: Workload) -> None:
    requests = [
        workload.request(fresh("load"), strategy, GRIDS[index % len(GRIDS)], text=1 + index, seed=index)
        for index in range(24)
    ]
    for request in requests:
        engine.submit(request.arrived, request.frames)
    results = engine.wait(*[request.arrived.request for request in requests])
    assert [result.digest for result in results] == [workload.digest(request) for request in requests]
    assert all(len(result.tokens) == 6 for result in results)


@pytest.mark.parametrize("kind", ["raise", "memory", "encode"])
def test_a_failure_on_one_rank_rejects_everywhere_and_others_go_on(
    engine: Engine, strategy: str, workload: Workload, kind: str
) -> None:
    reason = {"raise": "a planted fault", "memory": "a planted shortage", "encode": "encoding item 0"}[kind]
    materializing = 1 if strategy.startswith("object") else engine.size  # object: the entry rank alone
    faults = [f"fault={kind}@{rank}" for rank in range(materializing)]
    labels = ["before", *[label for fault in faults for label in (fault, "after")], "last"]
    requests = [workload.request(fresh(label), strategy, [(8, 8)]) for label in labels]
    for request in requests:
        engine.submit(request.arrived, request.frames)
    results = engine.wait(*[request.arrived.request for request in requests])
    expected = workload.generate(requests[0])
    for label, result in zip(labels, results, strict=True):
        if label in faults:
            assert result.rejected is not None
            assert reason in result.rejected
            assert result.tokens == [], "a token was drawn from inputs that failed"
        else:
            assert result.tokens == expected


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name.startswith("object")])
def test_a_follower_that_fails_alone_rejects_everywhere_and_others_go_on(
    engine: Engine, workload: Workload, strategy: str
) -> None:
    if engine.size == 1:
        pytest.skip("one rank has no follower")
    labels = ("before", f"fault=unpickle@{engine.size - 1}", "after", "last")
    requests = [workload.request(fresh(label), strategy, [(8, 8)]) for label in labels]
    for request in requests:
        engine.submit(request.arrived, request.frames)
    before, failed, *after = engine.wait(*[request.arrived.request for request in requests])
    assert failed.rejected is not None
    assert "a planted fault" in failed.rejected
    assert failed.rank == engine.size - 1
    assert failed.tokens == []
    expected = workload.generate(requests[0])
    assert [before.tokens, *[result.tokens for result in after]] == [expected] * 3


def test_a_late_rank_gives_the_same_answer_later(engine: Engine, strategy: str, workload: Workload) -> None:
    rank = 0 if strategy.startswith("object") else engine.size - 1
    requests = [workload.request(fresh(label), strategy, [(8, 8)]) for label in (f"fault=late@{rank}", "b")]
    for request in requests:
        engine.submit(request.arrived, request.frames)
    late, other = engine.wait(*[request.arrived.request for request in requests])
    assert late.tokens == other.tokens == workload.generate(requests[0])


def test_a_rank_that_never_reports_in_time_is_waited_for_a_bounded_time(
    engine: Engine, strategy: str, workload: Workload
) -> None:
    if strategy.endswith(("inline", "auto")) and (engine.size == 1 or strategy.startswith("object")):
        pytest.skip("inline on the entry rank: if that hangs, nobody is left to decide")
    rank = 0 if strategy.startswith("object") else engine.size - 1
    request = workload.request(fresh(f"fault=hang@{rank}"), strategy, [(8, 8)])
    engine.submit(request.arrived, request.frames)
    (result,) = engine.wait(request.arrived.request)
    assert result.rejected is not None
    assert re.search(rf"no report from rank .*{rank}.* within {READY_TIMEOUT_S:g} s", result.rejected)
    # The rank is not back yet: what comes now waits behind the hanging request, and is in time all the same.
    after = workload.request(fresh("after"), strategy, [(8, 8)])
    engine.submit(after.arrived, after.frames)
    assert engine.wait(after.arrived.request)[0].tokens == workload.generate(after)


@pytest.mark.parametrize("stage", ["incoming", "parked", "running"])
def test_an_abort_at_every_stage(engine: Engine, strategy: str, workload: Workload, stage: str) -> None:
    rank = 0 if strategy.startswith("object") else engine.size - 1
    name = fresh(f"fault=late@{rank}" if stage == "parked" else "aborted")
    request = workload.request(name, strategy, [(8, 8)], sampling=Sampling(400))
    engine.submit(request.arrived, request.frames)
    result = engine.results[name]
    if stage == "running":
        while len(result.tokens) < 3:
            assert engine.pump(30)
    elif stage == "parked":
        engine.pump(0.5)
    engine.abort(name)
    engine.wait(name)
    assert result.finish == "abort"
    engine.abort(name)  # twice is once, and an abort of the unknown is nothing
    engine.abort("never heard of")
    after = workload.request(fresh("after"), strategy, [(8, 8)])
    engine.submit(after.arrived, after.frames)
    assert engine.wait(after.arrived.request)[0].tokens == workload.generate(after)


def test_strategies_run_side_by_side(engine: Engine, workload: Workload) -> None:
    requests = [workload.request(fresh("mixed"), name, [(8, 8)], seed=3) for _ in range(4) for name in sorted(NAMES)]
    for request in requests:
        engine.submit(request.arrived, request.frames)
    results = engine.wait(*[request.arrived.request for request in requests])
    assert {result.digest for result in results} == {workload.digest(requests[0])}


def test_background_work_lets_others_overtake(engine: Engine, workload: Workload) -> None:
    slow = workload.request(fresh(f"fault=slow@{engine.size - 1}"), "dict-background", [(8, 8)])
    others = [workload.request(fresh("quick"), "dict-inline", [(8, 8)]) for _ in range(3)]
    for request in (slow, *others):
        engine.submit(request.arrived, request.frames)
    engine.wait(*[request.arrived.request for request in others])
    assert not engine.results[slow.arrived.request].ended, "the step loop waited for the lane"
    assert engine.wait(slow.arrived.request)[0].tokens == engine.results[others[0].arrived.request].tokens


def test_an_aborted_background_collective_is_executed_all_the_same(engine: Engine, workload: Workload) -> None:
    if engine.size == 1:
        pytest.skip("one rank has nobody to get out of step with")
    # Entry rank and follower 1 come to the aborted request's turn with different knowledge: the plan that carries the
    # abort also carries an arrival that holds follower 1 up inline, before it reads of the abort; the entry rank's
    # lane is late, and has read it by then.
    first = workload.request(fresh("fault=late@0"), "object-background", [(8, 8)])
    aborted = workload.request(fresh("aborted"), "object-background", [(8, 8)], seed=1)
    holding = workload.request(fresh("fault=hang@1"), "dict-inline", [(8, 8)], seed=3)
    last = workload.request(fresh("last"), "object-background", [(8, 8)], seed=2)
    for request in (first, aborted, last):
        engine.submit(request.arrived, request.frames)
    engine.pump(0.5)
    engine.submit(holding.arrived, holding.frames)
    engine.abort(aborted.arrived.request)
    one, two, three = engine.wait(*[request.arrived.request for request in (first, aborted, last)])
    engine.wait(holding.arrived.request)
    assert two.finish == "abort"
    assert one.digest == workload.digest(first)
    assert three.digest == workload.digest(last), "the lane took another request's inputs"


def test_every_block_comes_back_however_requests_end(engine: Engine, workload: Workload) -> None:
    def idle() -> bool:
        statistics = engine.arena.statistics()
        return (statistics.reserved, statistics.in_use, statistics.quarantined) == (0, 0, 0)

    handles = [name for name in NAMES if name.startswith(("handle", "auto"))]
    requests = [
        workload.request(fresh(label), name, [(8, 8), (12, 8)], sampling=Sampling(3 + index))
        for index, (label, name) in enumerate(
            (label, name)
            for label in ("plain", f"fault=raise@{engine.size - 1}", "aborted", f"fault=late@{engine.size - 1}")
            for name in handles
        )
    ]
    for request in requests:
        engine.submit(request.arrived, request.frames)
    assert engine.arena.statistics().in_use > 0
    for request in requests:
        if "aborted" in request.arrived.request:
            engine.abort(request.arrived.request)
    engine.wait(*[request.arrived.request for request in requests])
    deadline = time.monotonic() + 10
    while not idle():
        engine.pump(0.1)
        assert time.monotonic() < deadline, engine.arena.statistics()


def test_blocks_come_back_when_the_prefill_is_done_not_at_the_end(engine: Engine, workload: Workload) -> None:
    for name in [name for name in STRATEGIES if name.startswith("handle")]:
        request = workload.request(fresh("long"), name, [(8, 8)], sampling=Sampling(100))
        engine.submit(request.arrived, request.frames)
        deadline = time.monotonic() + 20
        while engine.arena.statistics().in_use:
            engine.pump(0.1)
            assert not engine.results[request.arrived.request].ended, "the blocks were kept until the end"
            assert time.monotonic() < deadline
        assert engine.wait(request.arrived.request)[0].finish == "length"


@pytest.mark.parametrize("forgery", ["offset", "nonce", "shape"])
def test_a_forged_handle_rejects_the_request_everywhere(engine: Engine, workload: Workload, forgery: str) -> None:
    for name in [name for name in NAMES if name.startswith(("handle", "auto"))]:
        request = workload.request(fresh("forged"), name, [(8, 8)])
        arrived = engine.check_in(request.arrived, request.frames)
        handle = arrived.items[0].pixels
        assert isinstance(handle, Handle)
        change = {"offset": 1 << 40, "nonce": 4711, "shape": (1 << 20, 1176)}[forgery]
        item = msgspec.structs.replace(arrived.items[0], pixels=msgspec.structs.replace(handle, **{forgery: change}))
        engine.submit(msgspec.structs.replace(arrived, items=(item,)))
        (result,) = engine.wait(arrived.request)
        assert result.rejected is not None
        reason = {"offset": "HandleInvalid", "nonce": "HandleStale", "shape": "does not fit"}[forgery]
        assert reason in result.rejected
