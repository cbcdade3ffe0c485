"""The arena registered with CUDA: copies out of it are asynchronous, and a block outlasts them."""

from __future__ import annotations

import ctypes
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from coatcheck.arena import Arena, ArenaReader
from coatcheck.delivery import upload
from coatcheck.delivery.leases import Leases
from coatcheck.delivery.upload import Registered, relax
from coatcheck.tensor_view import tensor_view

NBYTES = 64 << 20
BUSY = 400  # products of 8192 x 8192 matrices: some 300 ms on an H100


class Stream:
    def __init__(self) -> None:
        self.passed = False

    def record_event(self) -> Any:
        return SimpleNamespace(query=lambda: self.passed)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CUDA's runtime, as far as it is called: what was asked of it, and what it answers."""
    made = SimpleNamespace(registered=[], released=[], relaxed=[], error=0, capture_error=0, default=Stream())

    def register(address: int, nbytes: int, flags: int) -> int:
        made.registered.append((nbytes, flags))
        return int(made.error)

    def exchange(mode: Any) -> int:
        made.relaxed.append(ctypes.cast(mode, ctypes.POINTER(ctypes.c_int)).contents.value)
        return int(made.capture_error)

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=made.released.append)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: made.default)
    library = SimpleNamespace(cudaThreadExchangeStreamCaptureMode=exchange)
    monkeypatch.setattr(upload, "_runtime", lambda: library)
    return made


def test_the_whole_mapping_is_registered_read_only_and_fenced_on_every_stream(cuda: Any) -> None:
    streams = Stream(), Stream()
    made = Registered(memoryview(bytes(8192)), 0, lambda: streams)
    assert cuda.registered == [(8192, 8)]
    assert cuda.relaxed == [2], "its calls would break another thread's capture of a graph"
    passed = made.fence()
    for stream in (*streams, cuda.default):
        assert not passed()
        stream.passed = True
    assert passed()
    made.release()
    assert len(cuda.released) == 1


@pytest.mark.parametrize("what", ["error", "capture_error"])
def test_what_cuda_refuses_is_an_error(what: str, cuda: Any) -> None:
    setattr(cuda, what, 801)
    with pytest.raises(RuntimeError, match="801"):
        Registered(memoryview(bytes(4096)), 0, lambda: ())
    assert cuda.registered == ([(4096, 8)] if what == "error" else [])


def test_without_a_runtime_that_can_be_asked_nothing_is_registered(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_runtime", lambda: SimpleNamespace())
    with pytest.raises(RuntimeError, match="cannot be asked"):
        Registered(memoryview(bytes(4096)), 0, lambda: ())
    assert cuda.registered == []


@pytest.mark.gpu
@pytest.mark.timeout(120)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_a_block_is_given_back_when_its_copy_has_ended() -> None:
    device = torch.device("cuda", 0)
    cuda: Any = torch.cuda  # of which mypy knows no types
    streams = cuda.Stream(), cuda.Stream()
    back: list[float] = []
    with Arena(2 * NBYTES) as arena:
        values = np.random.default_rng(0).integers(0, 256, NBYTES, dtype=np.uint8)
        block = arena.put("r", values.data)
        reader = ArenaReader(arena.address)
        made = Registered(reader.mapping, 0, lambda: streams)
        leases = Leases(reader, 0, lambda returned: back.append(time.monotonic()), made.fence, relax)
        matrix = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()
        with cuda.stream(streams[0]):
            for _ in range(BUSY):
                torch.mm(matrix, matrix)
            (lent,) = leases.lend("r", [block.handle((NBYTES,), "uint8")])
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
        graph, static = cuda.CUDAGraph(), torch.zeros(4, device=device)
        with cuda.graph(graph):  # calls of other threads, unless they are relaxed, would break it
            static += 1
            passed: list[bool] = []

            def fence() -> None:
                relax()
                passed.append(made.fence()())

            thread = threading.Thread(target=fence)
            thread.start()
            thread.join(10)
        graph.replay()
        torch.cuda.synchronize()
        assert passed and static.tolist() == [1.0] * 4
        assert leases.close(10)
        del copy
        made.release()
        reader.close()
