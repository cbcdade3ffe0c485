"""The arena's mapping registered with CUDA, so that a copy out of it is direct, and asynchronous.

Out of pageable memory the driver copies through a buffer of its own while the scheduler's thread waits: on two H100
16 ms for 25.8 MB, a quarter of that thread's time (docs/gpu.md). Registered, issuing the copy takes microseconds.

Invariant: a copy may still be under way when the last reference to its source is gone. So a loan that is over is
*fenced*: given back only when everything has passed that the scheduler's streams had been told to do by then. SGLang
0.5.23 uploads features on the stream of its forward pass (``mm_schedule._move_items_to_device``, and the models' own
``materialize_multimodal_features``): ``forward_stream``, or ``schedule_stream`` without overlap.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)

_READ_ONLY = 8  # cudaHostRegisterReadOnly, driver_types.h: the mapping is read-only, and others are refused

Fence = Callable[[], Callable[[], bool]]
"""Called when a loan is over; what it returns says whether all that may still read the loan's bytes has passed."""


def register(mapping: memoryview, scheduler: Any, device: int) -> Fence | None:
    """Of a rank's whole mapping of the arena; on any thread, once.

    ``device``: the scheduler's GPU. None: CUDA does not register it, copies stay synchronous, and no fence is needed.
    The registration lasts as long as the process.
    """
    torch.cuda.set_device(device)  # this thread's
    address = np.frombuffer(mapping, np.uint8).ctypes.data
    start = time.monotonic()
    error = int(torch.cuda.cudart().cudaHostRegister(address, mapping.nbytes, _READ_ONLY))  # type: ignore[no-untyped-call]
    if error:
        log.info("CUDA does not register the arena (error %d): uploads out of it are synchronous", error)
        return None
    log.debug("CUDA registered %d MiB in %.1f s", mapping.nbytes >> 20, time.monotonic() - start)

    def fence() -> Callable[[], bool]:
        streams = (scheduler.forward_stream, scheduler.schedule_stream, torch.cuda.default_stream(device))
        events = [stream.record_event() for stream in streams]
        return lambda: all(event.query() for event in events)

    return fence
