"""What touching memory costs on this machine: ``python -m benchmarks.fresh_memory``.

A virtual machine may hand freed pages back to its host, and then the next process that touches "new" memory waits for
the host to find some. Measurements in which the memory in use grows contain that; see docs/analysis.md.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import time

PAGE = 4096


def touch(size: int) -> tuple[mmap.mmap, float]:
    """A new anonymous mapping, and the milliseconds that writing to each of its pages took."""
    made = mmap.mmap(-1, size)
    start = time.perf_counter()
    for at in range(0, size, PAGE):
        made[at] = 1
    return made, (time.perf_counter() - start) * 1e3


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=25, help="of each piece")
    parser.add_argument("--pieces", type=int, default=100)
    parser.add_argument("--quiet-s", type=float, default=30.0, help="between the second and the third pass")
    args = parser.parse_args()
    for label, pause in (("first", 0.0), ("at once again", 0.0), (f"after {args.quiet_s:g} s of quiet", args.quiet_s)):
        time.sleep(pause)
        pieces = [touch(args.mib << 20) for _ in range(args.pieces)]
        times = sorted(ms for _, ms in pieces)
        print(
            f"{label}: {args.pieces} pieces of {args.mib} MiB held together, touching one takes "
            f"{statistics.median(times):.1f} ms (median; {times[0]:.1f} to {times[-1]:.1f})"
        )
        for piece, _ in pieces:
            piece.close()


if __name__ == "__main__":
    main()
