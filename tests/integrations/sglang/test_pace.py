"""How long a request may wait for room."""

from __future__ import annotations

import pytest

from coatcheck.integrations.sglang.pace import Pace, sha256_seconds_per_byte

MB = 1 << 20


def measured(own: float, carried: float, hashing: float = 0.0) -> Pace:
    """Seconds of a MiB, each."""
    pace = Pace(hashing / MB)
    pace.own(MB, own)
    pace.carried(MB, carried)
    return pace


def test_nobody_waits_until_both_ways_were_measured() -> None:
    pace = Pace(1.0)
    assert pace.patience_s(MB, MB) == 0
    pace.own(MB, 5.0)
    assert pace.patience_s(MB, MB) == 0
    pace.carried(MB, 1.0)
    assert pace.patience_s(MB, 0) == pytest.approx(4)
    other = Pace(1.0)
    other.carried(MB, 1.0)
    assert other.patience_s(MB, MB) == 0


def test_it_may_wait_for_what_sglang_s_own_way_takes_longer() -> None:
    assert measured(own=3, carried=1).patience_s(10 * MB, 0) == pytest.approx(20)
    assert measured(own=1, carried=3).patience_s(10 * MB, 0) == 0
    assert measured(own=3, carried=3).patience_s(10 * MB, 0) == 0


def test_what_ranks_would_hash_counts() -> None:
    pace = measured(own=1, carried=2, hashing=3)
    assert pace.patience_s(4 * MB, 4 * MB) == pytest.approx(4 * (1 + 3 - 2))
    assert pace.patience_s(4 * MB, 2 * MB) == pytest.approx(4 + 6 - 8)
    assert pace.patience_s(4 * MB, 0) == 0


def test_small_requests_are_not_measured() -> None:
    pace = measured(own=3, carried=1)
    pace.own(MB - 1, 1000)
    pace.carried(0, 1000)
    assert pace.patience_s(MB, 0) == pytest.approx(2)


def test_it_follows_what_changes_and_one_odd_sample_does_not_decide() -> None:
    pace = measured(own=3, carried=1)
    pace.own(MB, 13)
    assert pace.patience_s(MB, 0) == pytest.approx(4)
    for _ in range(30):
        pace.own(MB, 13)
    assert pace.patience_s(MB, 0) == pytest.approx(12, rel=0.01)


def test_this_machine_hashes_at_some_speed() -> None:
    assert 1e-11 < sha256_seconds_per_byte() < 1e-6
