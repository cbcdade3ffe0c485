"""A rank that cannot construct a strategy, in a group of real ranks."""

from __future__ import annotations

import pytest

from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.engine.ranks.available import reason
from coatcheck.errors import RankLost
from tests.support.engine import Engine
from tests.support.faulty_rank import LACKING, NEEDED
from tests.support.workload import Workload

pytestmark = [pytest.mark.timeout(120), pytest.mark.processes]

REASON = f"rank {{}}: ImportError: {NEEDED}"


def test_a_reason_names_its_ranks() -> None:
    assert reason("a", [{"a": "x"}, {"b": "z"}, {"a": "x"}, {"a": "y"}]) == "rank 0, 2: x; rank 3: y"
    assert reason("c", [{"a": "x"}]) == ""


def test_what_one_rank_lacks_is_unavailable_on_all_and_the_rest_is_served(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LACKING, "object@1")
    with Engine(DEFAULT_MODEL, 2, runner="null") as engine:
        lacking = REASON.format(1)
        assert engine.ready.unavailable == (("object-inline", lacking), ("object-background", lacking))
        names = ("object-inline", "async", "dict-inline", "dict-background")
        for name in names:
            request = workload.request(name, name, [(8, 8)])
            engine.submit(request.arrived, request.frames)
        inline, alias, *served = engine.wait(*names)
        assert inline.rejected == f"strategy object-inline is unavailable: {lacking}"
        assert alias.rejected == f"strategy object-background is unavailable: {lacking}"
        assert [result.digest for result in served] == [workload.digest(request)] * 2


def test_a_group_without_the_fallback_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LACKING, "dict@0")
    with pytest.raises(RankLost, match="ended with status 1"):
        Engine(DEFAULT_MODEL, 2, runner="null")
    assert f"dict-inline cannot start, so the group cannot serve: {REASON.format(0)}" in capfd.readouterr().err
