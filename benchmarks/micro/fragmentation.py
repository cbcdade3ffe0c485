"""How often a reservation fails in an arena at 90 % fill though the free bytes could hold it.

``python -m benchmarks.micro.fragmentation``. Payloads are the uint8 ones of 224, 448, 1024 and 2048 pixels square, each
plus or minus 20 %; blocks end in random order, which is worse than the order of arrival.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

from coatcheck.arena.allocator import Allocator

PAYLOADS = (150_528, 602_112, 3_219_888, 12_879_552)  # bytes
FILL = 0.9


def failing(arena: int, weights: Sequence[int], reservations: int, seed: int = 20261123) -> float:
    """Share of reservations that failed. ``arena``: bytes; ``weights``: how often each of PAYLOADS is asked for."""
    rng = random.Random(seed)
    allocator = Allocator(arena)
    held: list[int] = []
    refused = 0
    for _ in range(reservations):
        size = int(rng.choices(PAYLOADS, weights)[0] * rng.uniform(0.8, 1.2))
        while held and allocator.size - allocator.free_bytes + size > FILL * allocator.size:
            allocator.free(held.pop(rng.randrange(len(held))))
        start = allocator.take(size)
        if start is None:
            refused += 1
        else:
            held.append(start)
    return refused / reservations


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reservations", type=int, default=20_000)
    args = parser.parse_args()
    for arena in (256 << 20, 1 << 30):
        for weights in ((4, 4, 4, 1), (1, 1, 1, 1)):
            share = failing(arena, weights, args.reservations)
            mix = ":".join(map(str, weights))
            print(f"{arena >> 20} MiB, mix {mix}: {share:.2%} of {args.reservations} reservations failed")


if __name__ == "__main__":
    main()
