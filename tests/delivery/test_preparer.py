"""Inputs between a request's arrival and its claim."""

from __future__ import annotations

import gc
import logging
import threading
import weakref

import pytest

from coatcheck.delivery.preparer import Failure, Preparer
from coatcheck.errors import MaterializeError, RankLost, RanksDisagree


class Inputs:
    pass


def test_what_is_prepared_is_claimed_once() -> None:
    preparer = Preparer[Inputs](0)
    made = Inputs()
    preparer.expect("a")
    assert preparer.wanted("a")
    assert preparer.prepare("a", lambda: made) is None
    claimed, waited = preparer.claim("a")
    assert claimed is made
    assert 0 <= waited < 10
    assert not preparer.wanted("a")
    with pytest.raises(RanksDisagree, match=r"rank 0 .* request a"):
        preparer.claim("a")


def test_what_is_not_prepared_cannot_be_claimed() -> None:
    preparer = Preparer[Inputs](3)
    preparer.expect("a")
    with pytest.raises(RanksDisagree, match=r"rank 3 .* request a"):
        preparer.claim("a")


def test_inputs_that_come_after_the_end_are_dropped_at_once() -> None:
    preparer = Preparer[Inputs](0)
    preparer.expect("a")
    ends: list[weakref.ref[Inputs]] = []

    def make() -> Inputs:
        preparer.drop("a")  # the request ends meanwhile
        inputs = Inputs()
        ends.append(weakref.ref(inputs))
        return inputs

    assert preparer.prepare("a", make) is None
    assert ends[0]() is None
    assert len(preparer) == 0


def test_what_goes_wrong_is_the_request_s_failure() -> None:
    preparer = Preparer[Inputs](0)
    preparer.expect("a")

    def fail() -> Inputs:
        raise MaterializeError("no pixels")

    failure = preparer.prepare("a", fail)
    assert failure == Failure(MaterializeError, "no pixels")
    assert str(failure) == "MaterializeError: no pixels"
    assert str(Failure(MemoryError, "")) == "MemoryError"
    preparer.drop("a")
    assert len(preparer) == 0


def test_what_failed_is_let_go_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coatcheck.delivery.preparer.log", logging.Logger("nobody's", logging.CRITICAL))
    preparer = Preparer[Inputs](0)
    ends: list[weakref.ref[Inputs]] = []

    def fail() -> Inputs:
        lent = Inputs()
        ends.append(weakref.ref(lent))
        raise ValueError("SGLang's")

    gc.collect()
    gc.disable()
    try:
        failure = preparer.prepare("a", fail)
        assert failure is not None
        assert ends[0]() is None, "only the garbage collector would end it"
    finally:
        gc.enable()


@pytest.mark.parametrize("broken", [RankLost("gone"), RanksDisagree("out of step")])
def test_a_broken_group_is_no_failure_of_a_request(broken: Exception) -> None:
    preparer = Preparer[Inputs](0)
    preparer.expect("a")

    def fail() -> Inputs:
        raise broken

    with pytest.raises(type(broken)):
        preparer.prepare("a", fail)


def test_two_threads() -> None:
    preparer = Preparer[int](0)
    names = [str(number) for number in range(2000)]
    for name in names:
        preparer.expect(name)
    thread = threading.Thread(target=lambda: [preparer.prepare(name, lambda: 1) for name in names])
    thread.start()
    for name in names[::2]:
        preparer.drop(name)
    thread.join(10)
    assert not thread.is_alive()
    assert len(preparer) == len(names) // 2
    assert [preparer.claim(name)[0] for name in names[1::2]] == [1] * (len(names) // 2)
