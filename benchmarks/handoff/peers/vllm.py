"""vLLM 0.32's own hand-off, without its engine: from the engine core to its workers.

The front end's side here is vLLM's engine core, the process that schedules: what its ``MessageQueue.enqueue`` takes is
a stall of its step loop. A worker's step begins when the message is there for it to read; workers do not agree with
each other about a request, and none broadcasts.

``vllm-queue``: as installed: a tensor below 24 MiB goes through the shared ring, a larger one over a socket.
``vllm-arena``: --enable-shm-tensor-arena, 8 slots of 256 MiB, tensors of 8 MiB and more. ``vllm-shm-store``:
--mm-processor-cache-type shm: the API server stores, a signed address travels, and each worker clones; the front
end's side is then the API server's. vLLM carries uint8 pixels of two frames, a quarter of what is handed off here:
for an image of 25 MB wide look at a payload of 6 MB.

Identity is vLLM's own ``MultiModalHasher`` (blake3) over the encoded image, known before there is a tensor.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.distributed.device_communicators.shm_object_storage import (
    SingleWriterShmObjectStorage,
    SingleWriterShmRingBuffer,
)
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media.base import MediaWithBytes

from benchmarks.handoff.meter import WAIT_S, Meter, Payload, Place, Written
from benchmarks.handoff.peers.pipe import Watch

STORE_BYTES = 1 << 30
OBJECT_BYTES = 128 << 20  # vLLM's default for --mm-shm-cache-max-object-size-mb


class FileLock:
    """Between processes that share no ancestor's semaphore; vLLM's workers inherit one."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)

    def __enter__(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)


class Front:
    """The engine core, or with ``store`` the API server and the engine core in one."""

    def __init__(self, place: Place, arena: bool = False, store: bool = False) -> None:
        os.environ["VLLM_RPC_BASE_PATH"] = place.directory  # its sockets stay where they are made
        self._queue = MessageQueue(place.ranks, place.ranks, enable_shm_tensor_arena=arena)
        self._store = None
        handles: dict[str, Any] = {"queue": self._queue.export_handle()}
        if store:
            ring = SingleWriterShmRingBuffer(STORE_BYTES, create=True)
            self._store = SingleWriterShmObjectStorage(OBJECT_BYTES, place.ranks, ring)
            handles["ring"] = ring.handle()
        Path(place.path("handles")).write_bytes(pickle.dumps(handles))
        self._connected = False

    async def hand_off(self, payload: Payload) -> Written:
        """See :class:`benchmarks.handoff.meter.Front`."""
        if not self._connected:
            self._queue.wait_until_ready()
            self._connected = True
        tensor = torch.from_numpy(payload.wide)
        image = MediaWithBytes(Image.open(io.BytesIO(payload.encoded)), payload.encoded)
        hashing = Watch()
        key = MultiModalHasher.hash_kwargs("blake3", image=image)
        hash_s = hashing.seconds()
        watch = Watch()
        if self._store is None:
            self._queue.enqueue((key, tensor), timeout=WAIT_S)
        else:
            key = f"{key}{payload.name}"  # each request is to be new content
            where = self._store.put(key, tensor)
            self._queue.enqueue((key, *where, self._store.get_signature(key)), timeout=WAIT_S)
        return Written(watch.start, watch.seconds(), hash_s, payload.wide)

    def settle(self) -> None:
        """Slots come back when a reader reads on."""

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.Front`."""
        if self._store is not None:
            self._store.close()


class Rank:
    """A worker. Its reader spins for a second after each message, then sleeps, as installed."""

    def __init__(self, place: Place) -> None:
        handles = pickle.loads(Path(place.path("handles")).read_bytes())
        self._name = f"dequeue {place.rank}"  # of its own: no worker waits for another
        self._queue = MessageQueue.create_from_handle(handles["queue"], place.rank)
        self._store = None
        if "ring" in handles:
            ring = SingleWriterShmRingBuffer(*handles["ring"])
            lock: Any = FileLock(place.path("lock"))
            self._store = SingleWriterShmObjectStorage(OBJECT_BYTES, place.ranks, ring, reader_lock=lock)
        self._connected = False
        self._began = (0.0, 0.0)
        self._acquire = self._queue.acquire_read
        self._queue.acquire_read = self._stamped
        self._held: list[torch.Tensor] = []

    @contextmanager
    def _stamped(self, *args: Any, **options: Any) -> Iterator[Any]:
        """``acquire_read``, noting when the message is there."""
        with self._acquire(*args, **options) as buffer:
            self._began = (time.monotonic(), time.thread_time())
            yield buffer

    def prepare(self) -> None:
        """Nothing."""

    def wait(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        if not self._connected:
            self._queue.wait_until_ready()
            self._connected = True

    def take(self, meter: Meter) -> torch.Tensor:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        found = self._queue.dequeue(timeout=WAIT_S)
        with meter.step_from(self._name, *self._began):
            if self._store is not None:
                key, address, number, signature = found
                found = key, self._store.get(address, number, signature, key)
            self._held = [found[1]]
        return self._held[0]

    def release(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        self._held.clear()

    def close(self) -> None:
        """See :class:`benchmarks.handoff.meter.RankSide`."""
        self._queue.shutdown()


SIDES = {
    "vllm-arena": (partial(Front, arena=True), Rank),
    "vllm-queue": (Front, Rank),
    "vllm-shm-store": (partial(Front, store=True), Rank),
}
