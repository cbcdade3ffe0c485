"""The arena registered with CUDA: copies out of it are asynchronous, and a block outlasts them."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coatcheck.arena import Arena, ArenaReader
from coatcheck.integrations.sglang.leases import Leases
from coatcheck.integrations.sglang.records import Ticket
from coatcheck.integrations.sglang.registered import register
from coatcheck.messages import Handle
from coatcheck.views import tensor_view

NBYTES = 64 << 20
BUSY = 400  # products of 8192 x 8192 matrices: some 300 ms on an H100


def test_a_mapping_that_cuda_refuses_needs_no_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = SimpleNamespace(cudaHostRegister=lambda address, nbytes, flags: 801)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    assert register(memoryview(bytes(4096)), SimpleNamespace(), 0) is None


def test_the_whole_mapping_is_registered_read_only_and_fenced_on_every_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Stream:
        def __init__(self) -> None:
            self.passed = False

        def record_event(self) -> Any:
            return SimpleNamespace(query=lambda: self.passed)

    def take(address: int, nbytes: int, flags: int) -> int:
        asked.append((nbytes, flags))
        return 0

    default = Stream()
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostRegister=take))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: default)
    scheduler = SimpleNamespace(forward_stream=Stream(), schedule_stream=Stream())
    fence = register(memoryview(bytes(8192)), scheduler, 0)
    assert fence is not None
    assert asked == [(8192, 8)]
    passed = fence()
    for stream in (scheduler.forward_stream, scheduler.schedule_stream, default):
        assert not passed()
        stream.passed = True
    assert passed()


@pytest.mark.gpu
@pytest.mark.timeout(120)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_a_block_is_given_back_when_its_copy_has_ended() -> None:
    device = torch.device("cuda", 0)
    cuda: Any = torch.cuda  # of which mypy knows no types
    streams = SimpleNamespace(forward_stream=cuda.Stream(), schedule_stream=cuda.Stream())
    back: list[float] = []
    with Arena(2 * NBYTES) as arena:
        values = np.random.default_rng(0).integers(0, 256, NBYTES, dtype=np.uint8)
        block = arena.put("r", values.data)
        reader = ArenaReader(arena.address)
        fence = register(reader.mapping, streams, 0)
        assert fence is not None, "an H100 registers a read-only mapping"
        leases = Leases(reader, lambda request: back.append(time.monotonic()), fence)
        matrix = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()
        with cuda.stream(streams.forward_stream):
            for _ in range(BUSY):
                torch.mm(matrix, matrix)
            (lent,) = leases.lend(Ticket("r", b"", (Handle(block.offset, block.nonce, (NBYTES,), "uint8"),)))
            tensor = tensor_view(lent, torch.uint8)
            start = time.monotonic()
            copy = tensor.to(device, non_blocking=True)
            issued = time.monotonic() - start
            del tensor, lent
            copied = cuda.Event()
            copied.record()
        assert not copied.query(), "the stream was to be busy"
        time.sleep(0.05)
        assert copied.query() or not back, "given back while the copy waits"
        copied.synchronize()
        deadline = time.monotonic() + 10
        while not back:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert torch.equal(copy.cpu(), torch.from_numpy(values))
        assert issued < 0.005, f"the copy was not asynchronous: {issued * 1e3:.1f} ms"
        print(f"issued in {issued * 1e6:.0f} us")
        assert leases.close(10)
        del copy
        reader.close()
