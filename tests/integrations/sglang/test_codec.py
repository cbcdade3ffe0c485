"""Objects and tensors to a body and blocks, and back."""

from __future__ import annotations

import gc
import os
import pickle
import weakref
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from coatcheck.errors import MaterializeError
from coatcheck.integrations.sglang.codec import LARGE, MOST_BODY, Digests, Unpackable, flat, large, leaves, pack, unpack
from tests.support.sglang_peer import Hashes


def blocks_of(tensors: Sequence[torch.Tensor]) -> list[memoryview]:
    return [memoryview(flat(tensor).tobytes()) for tensor in tensors]


def round_trip(thing: Any, lent: Sequence[torch.Tensor] = ()) -> Any:
    """With a block for each tensor that is large, or lent."""
    blocks = list({id(tensor): tensor for tensor in [*large(leaves(thing)), *lent]}.values())
    return unpack(pack(thing, blocks, lent), blocks_of(blocks))


def sized(nbytes: int) -> torch.Tensor:
    return torch.arange(nbytes // 4, dtype=torch.int32)


KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (5, 7), (2, 3, 4), (300, 300)])
def test_tensors_of_any_kind_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.randint(0, 2, shape).to(dtype)
    for lent in ([tensor], []) if tensor.numel() else ([],):
        back = round_trip({"t": tensor}, lent)["t"]
        assert (back.dtype, back.shape) == (dtype, tensor.shape)
        assert torch.equal(back, tensor)


def test_what_is_not_contiguous() -> None:
    whole = torch.arange(60).view(5, 12)
    for tensor in (whole.t(), whole[:, 3:7], whole[::2], whole[0].expand(4, -1)):
        assert torch.equal(round_trip([tensor], [tensor])[0], tensor)
        assert torch.equal(round_trip([tensor])[0], tensor)


def test_whatever_stands_around_the_tensors() -> None:
    tensor, picture = torch.ones(3), sized(LARGE)
    thing = {
        "ids": list(range(1000)),
        "twice": (tensor, tensor),
        "pictures": [picture, picture],
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
    assert back["pictures"][0] is back["pictures"][1]
    assert np.array_equal(back.pop("array"), thing.pop("array"))  # type: ignore[arg-type]
    assert torch.equal(back.pop("twice")[0], tensor)
    assert torch.equal(back.pop("pictures")[0], picture)
    thing.pop("twice")
    thing.pop("pictures")
    assert back == thing


def test_large_tensors_travel_beside_the_body_each_once() -> None:
    picture, other, small = sized(LARGE), sized(LARGE), sized(LARGE - 4)
    found = large([picture, small, other, picture])
    assert len(found) == 2
    assert found[0] is picture
    assert found[1] is other
    assert len(pack([picture, other, picture], found, found)) < 1000


def test_the_body_does_not_depend_on_the_pixels() -> None:
    one, other = sized(LARGE), sized(LARGE) + 1
    assert pack(["ids", one], [one], [one]) == pack(["ids", other], [other], [other])


def test_only_what_is_lent_lies_over_its_block() -> None:
    feature, table, grid = torch.rand(300, 300), torch.rand(300, 300), torch.tensor([[1, 2, 3]])
    blocks = large([feature, table, grid])
    rooms = [np.frombuffer(block, np.uint8).copy() for block in blocks_of(blocks)]
    body = pack([feature, table, grid, np.arange(10)], blocks, [feature])
    lent, copied, small, values = unpack(body, [room.data for room in rooms])
    assert lent.data_ptr() == rooms[0].ctypes.data
    assert copied.data_ptr() not in range(rooms[1].ctypes.data, rooms[1].ctypes.data + len(rooms[1]))
    copied += 1
    small += 1
    values += 1
    rooms[0][:] = 0
    assert not lent.any()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only reference counts end anything."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_once_unpacked_nothing_but_the_tensors_holds_a_block(no_collector: None) -> None:
    tensors = [sized(LARGE), sized(LARGE) + 1]
    rooms = [np.frombuffer(block, np.uint8) for block in blocks_of(tensors)]
    ends = [weakref.ref(room) for room in rooms]
    body = pack(tensors, tensors, tensors[:1])
    lent, copied = unpack(body, [room.data for room in rooms])
    del rooms
    assert ends[1]() is None, "of a copy"
    assert ends[0]() is not None
    del lent
    assert ends[0]() is None
    assert copied[0] == 1


def test_nor_does_anything_if_unpacking_failed(no_collector: None) -> None:
    tensors = [sized(LARGE), sized(LARGE) + 1]
    rooms = [np.frombuffer(block, np.uint8) for block in blocks_of(tensors)]
    ends = [weakref.ref(room) for room in rooms]
    body = pack([*tensors, "and more"], tensors, tensors)
    with pytest.raises(MaterializeError):
        unpack(body[:-5], [room.data for room in rooms])
    del rooms
    assert [end() for end in ends] == [None, None]


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
def test_what_cannot_travel_is_said(thing: Any) -> None:
    with pytest.raises(Unpackable):
        pack({"nested": [thing]}, [], [])
    if isinstance(thing, torch.Tensor):
        with pytest.raises(Unpackable):
            large([torch.ones(1), thing])


def test_a_body_that_is_too_large_for_a_socket_cannot_travel() -> None:
    assert pack(bytes(MOST_BODY - 100), [], [])
    with pytest.raises(Unpackable, match=r"\d+ bytes beside the tensors"):
        pack(bytes(MOST_BODY), [], [])
    with pytest.raises(Unpackable, match="beside the tensors"):
        pack(np.zeros(MOST_BODY, np.uint8), [], [])


@pytest.mark.parametrize(
    "evil",
    [Evil(), Stranger(), Stranger, OrderedDict.fromkeys],
    ids=["evil", "instance", "class", "method"],
)
def test_a_pickle_that_names_something_else_is_refused(evil: Any) -> None:
    with pytest.raises(MaterializeError, match="not allowed"):
        unpack(pickle.dumps(evil), [])


@pytest.mark.parametrize("length", [0, 4, 9, -1])
def test_a_body_that_ends_early_is_refused(length: int) -> None:
    tensor = torch.ones(9)
    with pytest.raises(MaterializeError):
        unpack(pack([tensor], [tensor], [tensor])[:length], blocks_of([tensor]))


@pytest.mark.parametrize("missing", [0, 1, 100, 4])
def test_a_block_that_is_missing_or_too_small_is_refused(missing: int) -> None:
    tensor = torch.ones(25)
    body = pack([tensor], [tensor], [tensor])
    blocks = [block[: 100 - missing] for block in blocks_of([tensor])] if missing else []
    with pytest.raises(MaterializeError):
        unpack(body, blocks)


def test_equal_tensors_have_one_digest_and_others_another() -> None:
    one = torch.arange(2 * LARGE, dtype=torch.float32)
    digests = Digests()
    assert digests.of(one) == digests.of(one.clone()) == Digests().of(one, flat(one))
    assert digests.of(one) == digests.of(torch.cat([one, one])[: len(one)])
    others = [one.view(2, -1), one.view(torch.int32), one + 1, one[:-1]]
    assert len({digests.of(tensor) for tensor in [one, *others]}) == 5


def test_a_large_tensor_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes, digests, tensor = Hashes(monkeypatch), Digests(), sized(LARGE)
    assert digests.known(tensor) is None
    digest = digests.of(tensor)
    assert digests.known(tensor) == digests.of(tensor) == digest
    assert hashes.count == 1


def test_one_that_was_changed_in_place_is_hashed_again() -> None:
    digests, tensor = Digests(), sized(LARGE)
    before = digests.of(tensor)
    tensor[5] += 1
    assert digests.known(tensor) is None
    assert digests.of(tensor) == Digests().of(tensor) != before


def test_a_digest_is_kept_no_longer_than_its_tensor() -> None:
    digests = Digests()
    kept = sized(LARGE)
    digests.of(kept)
    for _ in range(100):  # mostly at the same address, each with other content
        tensor = torch.full((LARGE,), float(torch.rand(1)))
        assert digests.known(tensor) is None
        assert digests.of(tensor) == Digests().of(tensor)
        del tensor
    assert len(digests._kept._known) == 1


def test_a_tensor_whose_changes_torch_does_not_count_is_hashed_each_time() -> None:
    with torch.inference_mode():
        tensor = sized(LARGE)
        digests = Digests()
        before = digests.of(tensor)
        tensor[5] += 1
        assert digests.known(tensor) is None
        assert digests.of(tensor) != before
    assert torch.equal(round_trip([tensor], [tensor])[0], tensor)


@pytest.mark.parametrize("odd", [torch.float32, torch.strided, torch.contiguous_format, ..., slice(1)])
def test_what_unpack_would_refuse_is_not_packed(odd: object) -> None:
    with pytest.raises(Unpackable):
        pack([odd], [], [])


def test_an_array_with_gaps_travels() -> None:
    array = np.arange(12).reshape(3, 4)[:, ::2]
    (made,) = unpack(pack([array], [], []), [])
    assert np.array_equal(made, array)
