"""A reader's side of the arena (a rank): from a handle to the bytes, without a copy, read-only.

A view is valid within the lease; nothing can detect a later read through a stale one. So the nonce is checked when a
view is taken and again, by ``check``, after its last use.
"""

from __future__ import annotations

from coatcheck.arena.allocator import PAGE
from coatcheck.arena.handle import Handle, nbytes
from coatcheck.arena.memory import ArenaAddress, AttachedMemory
from coatcheck.errors import HandleInvalid, HandleStale


class ArenaReader:
    """Maps the segment read-only. ``close`` once no view is held any more."""

    def __init__(self, address: ArenaAddress) -> None:
        """Raises ConfigError if the owner is gone, or is another user's."""
        self._memory = AttachedMemory(address)
        self._address = address
        self._nonces = self._memory.view[: address.first].cast("Q")

    @property
    def mapping(self) -> memoryview:
        """All of the segment, read-only, the table of nonces included; to be registered with a device."""
        return self._memory.view

    def view(self, handle: Handle) -> memoryview:
        """The payload's bytes, read-only. Raises HandleInvalid, nothing read, or HandleStale."""
        if any(edge < 0 for edge in handle.shape):
            raise HandleInvalid(f"a handle of shape {handle.shape}")
        end = handle.offset + nbytes(handle)
        if handle.offset % PAGE or handle.offset < self._address.first or end > self._address.size:
            raise HandleInvalid(f"bytes {handle.offset} to {end} are not within the payloads of the arena")
        self.check(handle)
        return self._memory.view[handle.offset : end]

    def check(self, handle: Handle) -> None:
        """Raises HandleStale if the block is another payload's by now. Call it after the last use of a view."""
        if not self._address.first <= handle.offset < self._address.size:
            raise HandleInvalid(f"byte {handle.offset} is not within the payloads of the arena")
        if self._nonces[handle.offset // PAGE] != handle.nonce or not handle.nonce:
            raise HandleStale(f"the block at {handle.offset} is not this payload's any more")

    def close(self) -> None:
        """Idempotent. Raises BufferError while somebody holds a view."""
        self._nonces.release()
        self._memory.close()
