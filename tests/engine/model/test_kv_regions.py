"""The KV pool's regions: no overlap, full coalescing."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coatcheck.engine.model.kv_regions import Regions

SIZE = 64


class Pool(RuleBasedStateMachine):
    """Any order of reservations and releases."""

    def __init__(self) -> None:
        super().__init__()
        self.regions = Regions(SIZE)
        self.used: dict[str, range] = {}
        self.names = 0

    @rule(count=st.integers(1, SIZE + 1))
    def reserve(self, count: int) -> None:
        owner = f"o{self.names}"
        self.names += 1
        start = self.regions.reserve(owner, count)
        if start is None:
            assert self._longest_gap() < count, "refused although there is room"
        else:
            self.used[owner] = range(start, start + count)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.used:
            owner = data.draw(st.sampled_from(sorted(self.used)))
            del self.used[owner]
            self.regions.release(owner)
            self.regions.release(owner)  # twice is once

    def _longest_gap(self) -> int:
        taken = {token for region in self.used.values() for token in region}
        gaps = "".join(" " if token in taken else "." for token in range(SIZE)).split()
        return max((len(gap) for gap in gaps), default=0)

    @invariant()
    def regions_lie_apart_and_inside(self) -> None:
        tokens = [token for region in self.used.values() for token in region]
        assert len(tokens) == len(set(tokens))
        assert all(0 <= token < SIZE for token in tokens)
        assert self.regions.free == SIZE - len(tokens)

    def teardown(self) -> None:
        for owner in list(self.used):
            self.regions.release(owner)
        assert self.regions.reserve("all", SIZE) == 0


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=100, deadline=None)
