"""Objects and tensors to a block and back."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from array import array
from collections import OrderedDict
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from coatcheck.errors import MaterializeError
from coatcheck.integrations.sglang.codec import ALIGN, Packed, Packer, Unpackable, unpack


def block_of(packed: Packed) -> memoryview:
    room = bytearray(packed.nbytes)
    packed.write(memoryview(room))
    return memoryview(room).toreadonly()


def round_trip(thing: Any, lent: Any = (), lend: bool = True) -> Any:
    return unpack(block_of(Packer().pack(thing, lent)), lend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7), (2, 3, 4)])
def test_tensors_of_any_kind_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    for lend in (True, False):
        back = round_trip({"t": tensor}, [tensor], lend)["t"]
        assert (back.dtype, back.shape) == (dtype, tensor.shape)
        assert torch.equal(back, tensor)


def test_what_is_not_contiguous() -> None:
    whole = torch.arange(60).view(5, 12)
    for tensor in (whole.t(), whole[:, 3:7], whole[::2], whole[0].expand(4, -1)):
        assert torch.equal(round_trip([tensor], [tensor])[0], tensor)


def test_whatever_stands_around_the_tensors() -> None:
    tensor = torch.ones(3)
    thing = {
        "ids": list(range(1000)),
        "twice": (tensor, tensor),
        "array": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.float64(2.5),
        "machine": array("q", [1, 2, 3]),
        "ordered": OrderedDict(a=1),
        "size": tensor.shape,
        "none": None,
        "bytes": b"x",
    }
    back = round_trip(thing)
    assert back["twice"][0] is back["twice"][1]
    assert np.array_equal(back.pop("array"), thing.pop("array"))  # type: ignore[arg-type]
    assert torch.equal(back.pop("twice")[0], tensor)
    thing.pop("twice")
    assert back == thing


def test_only_what_is_lent_lies_over_the_block_and_it_is_aligned() -> None:
    feature, grid = torch.rand(100, 3), torch.tensor([[1, 2, 3]])
    packed = Packer().pack([feature, grid, np.arange(10)], [feature])
    room = np.zeros(packed.nbytes + ALIGN, np.uint8)
    start = -room.ctypes.data % ALIGN
    block = room.data[start : start + packed.nbytes]
    packed.write(block)
    lent, copied, values = unpack(block, lend=True)
    addresses = range(room.ctypes.data, room.ctypes.data + len(room))
    assert lent.data_ptr() in addresses
    assert lent.data_ptr() % ALIGN == 0
    assert copied.data_ptr() not in addresses
    assert values.ctypes.data not in addresses
    copied += 1
    values += 1
    for tensor in unpack(block, lend=False)[:2]:
        assert tensor.data_ptr() not in addresses


def test_equal_content_has_one_digest_and_other_content_another() -> None:
    def packed(*things: Any) -> bytes:
        return Packer().pack(list(things)).digest

    one = torch.arange(12.0)
    assert packed(one, 1) == packed(one.clone(), 1)
    others = [packed(one, 2), packed(one + 1, 1), packed(one.view(3, 4), 1), packed(one.view(torch.int32), 1)]
    assert len({packed(one, 1), *others}) == 5
    tensors = [one, one.view(3, 4), one.view(torch.int32), one + 1]
    assert len({Packer().digest(tensor) for tensor in tensors}) == 4
    assert Packer().digest(one) == Packer().digest(torch.cat([one, one])[:12])


class Stranger:
    """No pickle of ours may name it."""


class Evil:
    """What a pickle that is not ours could hold."""

    def __reduce__(self) -> Any:
        return os.getpid, ()


@pytest.mark.parametrize(
    "thing",
    [
        Stranger(),
        Stranger,
        os.getpid,
        lambda: None,
        Evil(),
        np.array([Stranger()], dtype=object),
        torch.ones(2, requires_grad=True),
        torch.nn.Parameter(torch.ones(2)),
        torch.eye(3).to_sparse(),
        torch.ones(2, device="meta"),
        torch.ones(2, dtype=torch.complex64).conj(),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_what_cannot_travel_is_said_before_anything_is_written(thing: Any) -> None:
    with pytest.raises(Unpackable):
        Packer().pack({"nested": [thing]})


@pytest.mark.parametrize("evil", [Evil(), Stranger(), Stranger, OrderedDict.fromkeys], ids=repr)
def test_a_pickle_that_names_something_else_is_refused(evil: Any) -> None:
    data = pickle.dumps(evil)
    table = msgspec.msgpack.encode([len(data)])
    head = len(table).to_bytes(8, "little") + table
    with pytest.raises(MaterializeError, match="not allowed"):
        unpack(memoryview(head.ljust(ALIGN, b"\0") + data), lend=True)


@pytest.mark.parametrize("length", [0, 4, 9, -1])
def test_a_block_that_ends_early_is_refused(length: int) -> None:
    with pytest.raises(MaterializeError):
        unpack(block_of(Packer().pack([torch.ones(9)]))[:length], lend=True)


CYCLE = """
import gc, torch
from coatcheck.integrations.sglang.codec import Packer
gc.disable()
for _ in range(20):
    packer = Packer()
    packed = packer.pack([torch.ones(1), torch.zeros(100)])
    cycle = [packer, packed]
    cycle.append(cycle)
    del cycle, packed, packer
    assert gc.collect()
"""


def test_what_is_packed_may_be_collected_in_a_cycle() -> None:
    done = subprocess.run([sys.executable, "-c", CYCLE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
