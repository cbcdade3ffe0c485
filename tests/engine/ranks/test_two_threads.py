"""Why the lane has one thread: the pool of two in the notes' scheme 1, on one process group, mixes requests up.

Two ranks; requests A and B are handed to the pool in the same order on both. On the entry rank A takes longer to
materialize, so its second thread broadcasts B first; on the other rank the thread that waits for A takes what comes.
With one thread the order holds.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]

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


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("threads", "received"), [(2, "A<-B B<-A"), (1, "A<-A B<-B")])
def test_two_threads_on_one_group_mix_requests_up(threads: int, received: str) -> None:
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
        outputs = [process.communicate(timeout=50)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert outputs[1].strip() == received
