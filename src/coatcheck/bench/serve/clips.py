"""Videos, none twice, without encoding one for each request.

A few clips are encoded before the window, each in groups of half a second that decode on their own. A video that is
asked for has each of its groups from one of them, as a number says: 40 bits in 20 groups.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from coatcheck.bench.serve.config import MADE
from coatcheck.bench.serve.pictures import numbers

BASES = 4
GROUP = 12  # frames
COUNTED = 14  # bits


class Clips:
    """An endless supply: of the benchmark's own clips, or of one file that comes again and again.

    ``kind`` is of the data URL. Needs PyAV for the former.
    """

    def __init__(self, video: str, seed: int = 0) -> None:
        self.taken = 0
        self.repeated = 0
        self.kind = "video/webm" if video.endswith(".webm") else "video/mp4"
        self._file = b"" if video == MADE else Path(video).read_bytes()
        if not self._file:
            self._bases = _bases(seed)
            self._groups = len(self._bases[0].groups)
            self._numbers: Iterator[int] = numbers(2 * self._groups, COUNTED)

    def next(self) -> bytes:
        """A whole file."""
        self.taken += 1
        if self._file:
            self.repeated += self.taken > 1
            return self._file
        number = next(self._numbers)
        return self.spliced([number >> 2 * at & 3 for at in range(self._groups)])

    def spliced(self, of: list[int]) -> bytes:
        """Group by group: from which of the clips."""
        import av

        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as made:
            stream: Any = made.add_stream_from_template(self._bases[0].stream)
            for at, base in enumerate(of):
                for packet in self._bases[base].groups[at]:
                    copy = av.Packet(bytes(packet))
                    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                    copy.duration, copy.is_keyframe, copy.stream = packet.duration, packet.is_keyframe, stream
                    made.mux(copy)
        return buffer.getvalue()


class _Groups:
    """A clip's packets, in groups."""

    def __init__(self, data: bytes) -> None:
        import av

        self._container = av.open(io.BytesIO(data), "r")  # kept: the packets belong to it
        self.stream = self._container.streams.video[0]
        self.groups: list[list[Any]] = []
        for packet in self._container.demux(self.stream):
            if packet.size and packet.dts is not None:
                if packet.is_keyframe:
                    self.groups.append([])
                self.groups[-1].append(packet)


@cache
def _bases(seed: int) -> list[_Groups]:
    from coatcheck.bench.support.clip import make

    return [_Groups(make(seed * BASES + at, GROUP)) for at in range(BASES)]
