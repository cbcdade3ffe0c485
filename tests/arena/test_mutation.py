"""The property test is worth something: without the quarantine rule it fails."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from coatcheck.arena import Arena
from coatcheck.arena.arena import _Lease
from tests.arena.test_arena_properties import ArenaMachine

FIND = settings(max_examples=2000, stateful_step_count=50, deadline=None, phases=[Phase.generate], database=None)


def test_without_quarantine_a_reader_sees_another_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Arena._settle

    def hasty(self: Arena, request: str, lease: _Lease) -> None:
        if lease.ended:
            lease.outstanding.clear()  # the end of a request taken for the end of all reading
        settle(self, request, lease)

    monkeypatch.setattr(Arena, "_settle", hasty)
    with pytest.raises(Exception, match=r"reads another payload|not this payload's any more"):
        run_state_machine_as_test(ArenaMachine, settings=FIND)
