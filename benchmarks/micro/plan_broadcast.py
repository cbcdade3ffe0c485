"""How long a gloo broadcast takes by size, and so why a plan's head is 16 KiB.

``python -m benchmarks.micro.plan_broadcast``.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist

SIZES = (256, 1024, 4096, 16384, 65536)
ROUNDS = 2000


def measure() -> None:
    """One rank; rank 0 prints. Sizes are interleaved in rounds, so that noise hits all alike."""
    dist.init_process_group("gloo")
    buffers = {size: torch.zeros(size, dtype=torch.uint8) for size in SIZES}
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size, buffer in buffers.items():
            dist.barrier()
            start = time.perf_counter()
            dist.broadcast(buffer, src=0)
            times[size].append(time.perf_counter() - start)
    slowest = [torch.tensor(times[size]) for size in SIZES]
    for seconds in slowest:  # a broadcast has ended when the last rank has the bytes
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        for size, seconds in zip(SIZES, slowest, strict=True):
            print(f"{size:6d} bytes: median {seconds.median() * 1e3:.3f} ms, p99 {seconds.quantile(0.99) * 1e3:.3f} ms")
    dist.destroy_process_group()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(args.ranks)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", "from benchmarks.micro.plan_broadcast import measure; measure()"],
            env={**environment, "RANK": str(rank)},
        )
        for rank in range(args.ranks)
    ]
    for process in ranks:
        process.wait(120)


if __name__ == "__main__":
    main()
