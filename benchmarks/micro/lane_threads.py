"""Why a rank's lane has one thread: a pool of two on one process group mixes requests up.

``python -m benchmarks.micro.lane_threads``. Two ranks hand requests A and B to their pools in the same order. On the
entry rank A takes longer to materialize, so with two threads B is broadcast first; on the other rank the thread that
waits for A takes what comes. Prints what arrived under which name. Exit status 1 if one thread mixes them up, or two
do not, since then this shows nothing.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys

LIMIT_S = 50
RANK = """
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
import torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, threads = dist.get_rank(), int(sys.argv[1])

def entry(request, seconds):
    time.sleep(seconds)  # materializing
    dist.broadcast(torch.tensor([ord(request)]), src=0)

def follower(request):
    received = torch.zeros(1, dtype=torch.int64)
    dist.broadcast(received, src=0)
    return request + "<-" + chr(int(received))

with ThreadPoolExecutor(threads) as pool:
    if rank == 0:
        for done in [pool.submit(entry, "A", 1.0), pool.submit(entry, "B", 0.0)]:
            done.result(10)
    else:
        waiting = [pool.submit(follower, "A")]
        time.sleep(0.3)  # the first thread has begun to wait for A
        waiting.append(pool.submit(follower, "B"))
        print(*[done.result(10) for done in waiting])
dist.barrier()
dist.destroy_process_group()
"""


def received(threads: int) -> str:
    """What the follower got: ``name<-what arrived``, for both requests."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(threads)],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return outputs[1].strip()


def main() -> int:
    """Command line."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    found = {threads: received(threads) for threads in (1, 2)}
    for threads, what in found.items():
        print(f"{threads} thread{'s' if threads > 1 else ''} on one group: {what}")
    return 0 if found == {1: "A<-A B<-B", 2: "A<-B B<-A"} else 1


if __name__ == "__main__":
    sys.exit(main())
