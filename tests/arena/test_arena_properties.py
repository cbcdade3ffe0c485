"""No block is given to another payload while a reader may be reading it, whatever happens in whatever order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coatcheck.arena import Arena, ArenaReader, Block
from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle
from coatcheck.errors import ArenaFull

PAGES = 12
READERS = (0, 1)


@dataclass
class Held:
    """A request as the readers know it."""

    handles: list[tuple[Handle, bytes]] = field(default_factory=list)
    reading: list[int] = field(default_factory=list)  # readers, once per dispatch that they have not acknowledged
    dispatched: bool = False
    ended: bool = False


class ArenaMachine(RuleBasedStateMachine):
    """Readers look at every byte that they may read, after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(PAGES * PAGE, poison=True)
        self.reader = ArenaReader(self.arena.address)
        self.reserved: list[Block] = []
        self.requests: dict[str, Held] = {}
        self.contents: dict[bytes, bytes] = {}  # by digest, there or evicted
        self.number = 0

    def _open(self) -> list[str]:
        return sorted(name for name, held in self.requests.items() if not held.ended)

    @rule(npages=st.integers(1, 5))
    def reserve(self, npages: int) -> None:
        try:
            self.reserved.append(self.arena.reserve(npages * PAGE - 7))
        except ArenaFull:
            hopeless = self.arena.available < npages * PAGE
            assert hopeless or self.arena.statistics().cached == 0, "cached content was not given up"

    @precondition(lambda self: self.reserved)
    @rule(content=st.integers(1, 4), share=st.floats(0.1, 1), request=st.integers(0, 3), shared=st.booleans())
    def commit_and_lease(self, content: int, share: float, request: int, shared: bool) -> None:
        block = self.reserved.pop(0)
        nbytes = max(1, int(block.size * share)) if not shared else content * 1000
        nbytes = min(nbytes, block.size)
        payload = bytes([content]) * nbytes
        with self.arena.writable(block) as view:
            view[:nbytes] = payload
        digest = bytes([content]) * 32 + bytes([nbytes % 251]) if shared else b""
        name = f"{request}"
        if name in self.requests and (self.requests[name].ended or self.requests[name].dispatched):
            self.number += 1
            name = f"more{self.number}"
        if digest:
            self.contents[digest] = payload
        block = self.arena.commit(name, block, nbytes, digest)
        handle = Handle(block.offset, block.nonce, (block.nbytes,), "uint8")
        self.requests.setdefault(name, Held()).handles.append((handle, payload))

    @precondition(lambda self: self.reserved)
    @rule()
    def cancel(self) -> None:
        self.arena.cancel(self.reserved.pop())

    @precondition(lambda self: self.contents)
    @rule(data=st.data(), keep=st.booleans())
    def find(self, data: st.DataObject, keep: bool) -> None:
        digest = data.draw(st.sampled_from(sorted(self.contents)))
        self.number += 1
        name, there = f"found{self.number}", self.arena.known(digest) is not None
        block = self.arena.find(name, digest)
        assert (block is not None) == there
        if block is None:
            return
        if keep:
            handle = Handle(block.offset, block.nonce, (block.nbytes,), "uint8")
            self.requests[name] = Held([(handle, self.contents[digest])])
        else:
            before = self.arena.statistics().in_use
            self.arena.end(name)
            self.arena.end(name)
            assert self.arena.statistics().in_use <= before
            assert self.arena.known(digest) is not None

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def dispatch(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._open()))
        self.arena.dispatch(name, READERS)
        self.requests[name].reading += READERS
        self.requests[name].dispatched = True

    @precondition(lambda self: any(held.reading for held in self.requests.values()))
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, held in self.requests.items() if held.reading)))
        reader = data.draw(st.sampled_from(self.requests[name].reading))
        self.requests[name].reading.remove(reader)
        self.arena.acknowledge(name, reader)
        self._forget(name)

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def never_went_out(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._open()))
        self.requests[name].reading, self.requests[name].ended = [], True
        self.arena.returned(name, None)
        self.arena.returned(name, None)  # said twice, or of nothing known: nothing happens
        self._forget(name)

    @precondition(lambda self: self._open())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self._open()))
        self.requests[name].ended = True
        self.arena.end(name)
        self.arena.end(name)
        self._forget(name)

    @rule(reader=st.sampled_from(READERS))
    def reader_gone(self, reader: int) -> None:
        self.arena.reader_gone(reader)
        for name, held in list(self.requests.items()):
            held.reading = [other for other in held.reading if other != reader]
            self._forget(name)

    def _forget(self, name: str) -> None:
        if self.requests[name].ended and not self.requests[name].reading:
            del self.requests[name]

    @invariant()
    def readers_see_what_was_written(self) -> None:
        for name, held in self.requests.items():
            if held.reading or not held.ended:
                for handle, payload in held.handles:
                    with self.reader.view(handle) as view:
                        assert view == payload, f"request {name} reads another payload"
                    self.reader.check(handle)

    @invariant()
    def every_byte_is_accounted_for(self) -> None:
        s = self.arena.statistics()
        assert s.reserved + s.in_use + s.quarantined + s.cached + s.free == s.size
        assert s.reserved == sum(block.size for block in self.reserved)
        assert min(s.reserved, s.in_use, s.quarantined, s.cached, s.free) >= 0

    def teardown(self) -> None:
        for block in self.reserved:
            self.arena.cancel(block)
        for name, held in list(self.requests.items()):
            self.arena.end(name)
            for reader in held.reading:
                self.arena.acknowledge(name, reader)
        s = self.arena.statistics()
        assert (s.reserved, s.in_use, s.quarantined) == (0, 0, 0)
        self.arena.reserve(self.arena.capacity)  # gives up what is cached: all is one free range again
        self.reader.close()
        self.arena.close()


TestArena = ArenaMachine.TestCase
TestArena.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
