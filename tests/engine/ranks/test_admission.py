"""The ledger's rules, one by one, without processes."""

from __future__ import annotations

import pytest

from coatcheck.delivery.parked import Parked
from coatcheck.engine.ranks.admission import Ledger
from coatcheck.errors import RanksDisagree


def anything(_: str) -> bool:
    return True


def ready(ledger: Ledger, request: str) -> None:
    for rank in range(ledger.ranks):
        ledger.report(request, rank, None)


def test_admits_only_after_every_rank_reported() -> None:
    ledger = Ledger(2, 10)
    ledger.arrive("a", 0)
    ledger.report("a", 0, None)
    ledger.report("a", 0, None)  # twice is not two ranks
    assert ledger.decide(1, anything).admitted == ()
    ledger.report("a", 1, None)
    assert ledger.decide(1, anything).admitted == ("a",)
    assert ledger.decide(1, anything).admitted == ()


def test_a_slow_request_holds_nobody_up_and_ties_go_by_arrival() -> None:
    ledger = Ledger(1, 10)
    for request in "abc":
        ledger.arrive(request, 0)
    ready(ledger, "c")
    ready(ledger, "b")
    assert ledger.decide(1, anything).admitted == ("b", "c")


def test_a_large_ready_request_is_not_overtaken() -> None:
    ledger = Ledger(1, 10)
    for request in ("large", "small"):
        ledger.arrive(request, 0)
        ready(ledger, request)
    assert ledger.decide(1, lambda request: request == "small").admitted == ()
    assert ledger.decide(1, anything).admitted == ("large", "small")


def test_a_failure_on_one_rank_rejects_with_its_reason() -> None:
    ledger = Ledger(2, 10)
    ledger.arrive("a", 0)
    ledger.report("a", 0, None)
    ledger.report("a", 1, "broken")
    (rejection,) = ledger.decide(1, anything).rejected
    assert (rejection.request, rejection.reason, rejection.rank) == ("a", "broken", 1)
    assert "a" not in ledger


def test_a_rank_s_own_account_wins_over_a_symptom() -> None:
    ledger = Ledger(2, 10)
    ledger.arrive("a", 0)
    ledger.fail("a", "a symptom")
    ledger.report("a", 1, "the cause")
    ledger.report("a", 0, "a second cause")
    assert ledger.decide(1, anything).rejected[0].reason == "the cause"


def test_a_failure_of_a_running_request_rejects_it() -> None:
    ledger = Ledger(1, 10)
    ledger.arrive("a", 0)
    ready(ledger, "a")
    ledger.decide(1, anything)
    ledger.report("a", 0, "later")
    assert ledger.undecided()
    assert ledger.decide(2, anything).rejected[0].reason == "later"


def test_waiting_for_reports_is_bounded() -> None:
    ledger = Ledger(2, 10)
    ledger.arrive("a", 5)
    ledger.report("a", 0, None)
    assert ledger.next_deadline() == 15
    assert ledger.decide(14.9, anything).rejected == ()
    (rejection,) = ledger.decide(15, anything).rejected
    assert rejection.rank == 1
    assert "rank 1 within 10 s" in rejection.reason
    ledger.report("a", 1, None)  # too late: ignored
    assert ledger.decide(16, anything).admitted == ()


def test_ready_but_without_room_does_not_expire() -> None:
    ledger = Ledger(1, 10)
    ledger.arrive("a", 0)
    ready(ledger, "a")
    assert ledger.decide(100, lambda _: False).rejected == ()
    assert ledger.next_deadline() is None
    assert ledger.decide(100, anything).admitted == ("a",)


def test_every_end_is_counted_once() -> None:
    ledger = Ledger(1, 10)
    for request in "abcd":
        ledger.arrive(request, 0)
    ready(ledger, "a")
    ready(ledger, "b")
    ledger.report("c", 0, "broken")
    ledger.decide(0, anything)
    assert ledger.finish("a")
    assert not ledger.finish("a")
    assert ledger.abort("b")
    assert not ledger.abort("b")
    statistics = ledger.statistics()
    assert (statistics.finished, statistics.aborted, statistics.rejected, statistics.waiting) == (1, 1, 1, 1)
    assert ledger.open() == ("d",)


def test_our_own_mistakes_are_loud() -> None:
    ledger = Ledger(1, 10)
    ledger.arrive("a", 0)
    with pytest.raises(ValueError, match="twice"):
        ledger.arrive("a", 0)
    with pytest.raises(ValueError, match="not admitted"):
        ledger.finish("a")
    with pytest.raises(RanksDisagree, match=r"rank 3 .* request a"):
        Parked[int](3).admit("a")
