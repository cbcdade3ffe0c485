"""Compact pixels out of the arena onto the model's device; the arena's mapping registered with CUDA for that.

So a copy out of it is direct, and asynchronous.

Out of pageable memory the driver copies through a buffer of its own while the scheduler's thread waits: on two H100
16 ms for 25.8 MB, a quarter of that thread's time (docs/gpu.md). Registered, issuing the copy takes microseconds.

Invariants:

* A copy may still be under way when the last reference to its source is gone. So a loan that is over is *fenced*: given
  back only when everything has passed that the streams which upload had been told to do by then: those that the program
  names, and the device's default stream.
* Fences are put up and looked at on a thread of ours. CUDA forbids that, by default, while another thread captures a
  graph, and breaks the capture, which ends a scheduler. So this thread is taken out of that rule; where it cannot be,
  nothing is registered and CUDA is not called at all.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coatcheck.pixels import LEVELS

log = logging.getLogger(__name__)

_READ_ONLY = 8  # cudaHostRegisterReadOnly, driver_types.h: the mapping is read-only, and others are refused
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: calls of this thread are not forbidden during another's capture


def widened(pixels: torch.Tensor, levels: torch.Tensor, temporal: int, area: int) -> torch.Tensor:
    """Compact pixels of pictures as the model takes them, in memory of their own, on the levels' device and dtype.

    ``pixels``: (patches, channels * area) uint8, on the CPU; ``levels``: (channels, 256), what a value becomes;
    ``temporal``: frames in a patch. Returns (patches, channels * temporal * area).

    An eighth of the bytes of float32 goes over the bus. On a GPU the copy is issued on the current stream, and nothing
    waits if the mapping is registered.
    """
    channels, patches = len(levels), len(pixels)
    index = pixels.to(levels.device, non_blocking=True).view(patches, channels, 1, area).int()
    index += _rows(channels, levels.device)
    return levels.view(-1)[index].expand(-1, -1, temporal, -1).reshape(patches, -1)


@lru_cache(maxsize=8)
def _rows(channels: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(channels, dtype=torch.int32) * LEVELS).view(1, -1, 1, 1).to(device)


class Registered:
    """A rank's whole mapping of the arena. ``release`` ends the registration, once nothing is lent."""

    def __init__(self, mapping: memoryview, device: int, streams: Callable[[], Sequence[Any]]) -> None:
        """On any thread. ``device``: the scheduler's GPU; ``streams``: those that upload, as they are then.

        Raises RuntimeError if CUDA does not register it.
        """
        self._streams, self._device = streams, device
        self._runtime: Any = torch.cuda
        torch.cuda.set_device(device)  # this thread's
        relax()
        self._address = np.frombuffer(mapping, np.uint8).ctypes.data
        start = time.monotonic()
        error = int(self._runtime.cudart().cudaHostRegister(self._address, mapping.nbytes, _READ_ONLY))
        if error:
            raise RuntimeError(f"cudaHostRegister: error {error}")
        log.debug("CUDA registered %d MiB in %.1f s", mapping.nbytes >> 20, time.monotonic() - start)

    def fence(self) -> Callable[[], bool]:
        """See :data:`coatcheck.delivery.leases.Fence`. On a thread that is ``relax``ed."""
        events = [stream.record_event() for stream in (*self._streams(), torch.cuda.default_stream(self._device))]
        return lambda: all(event.query() for event in events)

    def release(self) -> None:
        """On the thread that made it."""
        self._runtime.cudart().cudaHostUnregister(self._address)


def relax() -> None:
    """This thread's CUDA calls may happen while another captures a graph. Raises RuntimeError if that is not to be had.

    torch has no call for it: it is asked of the runtime that torch has loaded.
    """
    mode = ctypes.c_int(_RELAXED)
    try:
        error = _runtime().cudaThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    except (OSError, AttributeError) as missing:
        raise RuntimeError(f"CUDA's runtime cannot be asked: {missing}") from missing
    if error:
        raise RuntimeError(f"cudaThreadExchangeStreamCaptureMode: error {error}")


def _runtime() -> ctypes.CDLL:
    """The one that this process has loaded. Raises OSError."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.rpartition(" ")[2]
        if Path(path).name.startswith("libcudart.so"):
            return ctypes.CDLL(path)
    raise OSError("it is not loaded")
