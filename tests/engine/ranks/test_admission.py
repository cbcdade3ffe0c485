"""The admission's rules, one by one, without processes."""

from __future__ import annotations

import pytest

from coatcheck.delivery.readiness import Readiness
from coatcheck.engine.ranks.admission import Admission


def anything(_: str) -> bool:
    return True


def ready(admission: Admission, request: str) -> None:
    for rank in range(admission.ranks):
        admission.report(request, rank, None)


def test_admits_only_after_every_rank_reported() -> None:
    admission = Admission(Readiness(2, 10))
    admission.arrive("a", 0)
    admission.report("a", 0, None)
    admission.report("a", 0, None)  # twice is not two ranks
    assert admission.decide(1, anything).admitted == ()
    admission.report("a", 1, None)
    assert admission.decide(1, anything).admitted == ("a",)
    assert admission.decide(1, anything).admitted == ()


def test_a_slow_request_holds_nobody_up_and_ties_go_by_arrival() -> None:
    admission = Admission(Readiness(1, 10))
    for request in "abc":
        admission.arrive(request, 0)
    ready(admission, "c")
    ready(admission, "b")
    assert admission.decide(1, anything).admitted == ("b", "c")


def test_a_large_ready_request_is_not_overtaken() -> None:
    admission = Admission(Readiness(1, 10))
    for request in ("large", "small"):
        admission.arrive(request, 0)
        ready(admission, request)
    assert admission.decide(1, lambda request: request == "small").admitted == ()
    assert admission.decide(1, anything).admitted == ("large", "small")


def test_a_failure_on_one_rank_rejects_with_its_reason() -> None:
    admission = Admission(Readiness(2, 10))
    admission.arrive("a", 0)
    admission.report("a", 0, None)
    admission.report("a", 1, "broken")
    (rejection,) = admission.decide(1, anything).rejected
    assert (rejection.request, rejection.reason, rejection.rank) == ("a", "broken", 1)
    assert "a" not in admission


def test_a_rank_s_own_account_wins_over_a_symptom() -> None:
    admission = Admission(Readiness(2, 10))
    admission.arrive("a", 0)
    admission.fail("a", "a symptom")
    admission.report("a", 1, "the cause")
    admission.report("a", 0, "a second cause")
    assert admission.decide(1, anything).rejected[0].reason == "the cause"


def test_a_failure_of_a_running_request_rejects_it() -> None:
    admission = Admission(Readiness(1, 10))
    admission.arrive("a", 0)
    ready(admission, "a")
    admission.decide(1, anything)
    admission.report("a", 0, "later")
    assert admission.undecided()
    assert admission.decide(2, anything).rejected[0].reason == "later"


def test_waiting_for_reports_is_bounded() -> None:
    admission = Admission(Readiness(2, 10))
    admission.arrive("a", 5)
    admission.report("a", 0, None)
    assert admission.next_deadline() == 15
    assert admission.decide(14.9, anything).rejected == ()
    (rejection,) = admission.decide(15, anything).rejected
    assert rejection.rank == 1
    assert "rank 1 within 10 s" in rejection.reason
    admission.report("a", 1, None)  # too late: ignored
    assert admission.decide(16, anything).admitted == ()


def test_ready_but_without_room_does_not_expire() -> None:
    admission = Admission(Readiness(1, 10))
    admission.arrive("a", 0)
    ready(admission, "a")
    assert admission.decide(100, lambda _: False).rejected == ()
    assert admission.next_deadline() is None
    assert admission.decide(100, anything).admitted == ("a",)


def test_every_end_is_counted_once() -> None:
    admission = Admission(Readiness(1, 10))
    for request in "abcd":
        admission.arrive(request, 0)
    ready(admission, "a")
    ready(admission, "b")
    admission.report("c", 0, "broken")
    admission.decide(0, anything)
    assert admission.finish("a")
    assert not admission.finish("a")
    assert admission.abort("b")
    assert not admission.abort("b")
    statistics = admission.statistics()
    assert (statistics.finished, statistics.aborted, statistics.rejected, statistics.waiting) == (1, 1, 1, 1)
    assert admission.open() == ("d",)


def test_our_own_mistakes_are_loud() -> None:
    admission = Admission(Readiness(1, 10))
    admission.arrive("a", 0)
    with pytest.raises(ValueError, match="twice"):
        admission.arrive("a", 0)
    with pytest.raises(ValueError, match="not admitted"):
        admission.finish("a")
