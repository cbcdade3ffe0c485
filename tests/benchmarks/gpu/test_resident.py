"""The oracle: requests that no cache knows, sizes from headers, pixels in place of what was carried."""

from __future__ import annotations

import asyncio
import base64
import io
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.gpu import resident


@dataclass
class Item:
    """What the oracle uses of SGLang's MultimodalDataItem."""

    feature: Any
    image_grid_thw: torch.Tensor = field(default_factory=lambda: torch.tensor([[1, 4, 6]]))
    offsets: list[tuple[int, int]] = field(default_factory=lambda: [(1, 2)])
    model_specific_data: dict[str, Any] = field(default_factory=dict)
    identity: bytes = b"first"

    def set_identity(self, identity: bytes) -> None:
        self.identity = identity


@dataclass
class Output:
    """Likewise of MultimodalProcessorOutput."""

    mm_items: list[Item]
    input_ids: list[int]
    padded_input_ids: list[Any] | None = None

    @staticmethod
    def build_padded_input_ids(ids: list[int], items: list[Item]) -> list[Any]:
        return [*ids, *(item.identity for item in items)]


def url(width: int, height: int, kind: str = "JPEG") -> str:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 50).save(buffer, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass
class ImageData:
    url: str


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_templates", {})
    monkeypatch.setattr(resident, "_pixels", {})


def test_sizes_stand_in_the_headers() -> None:
    assert resident.picture_sizes([ImageData(url(640, 480)), url(300, 200, "PNG")]) == ((640, 480), (300, 200))


def test_a_template_is_of_pictures_of_the_same_sizes_not_of_the_same_number() -> None:
    made: list[str] = []

    async def original(self: Any, image_data: Any, input_text: str, **more: Any) -> Output:
        made.append(input_text)
        return Output([Item(torch.ones(24, 1176))], [1, 2, 3])

    def ask(picture: str, text: str) -> Output:
        output: Output = asyncio.run(resident.process(original, None, image_data=[picture], input_text=text, more=1))
        return output

    first = ask(url(32, 32), "warm-up")  # as SGLang's own
    others = [ask(url(64, 64), "a"), ask(url(64, 64), "b"), ask(url(32, 32), "c")]
    assert made == ["warm-up", "a"]
    identities = {output.mm_items[0].identity for output in [first, *others]}
    assert len(identities) == 4 and b"first" not in identities
    assert {len(identity) for identity in identities} == {32}
    for output in [first, *others]:
        assert output.padded_input_ids == [1, 2, 3, output.mm_items[0].identity]
        assert output.mm_items[0].feature.numel() == 1


def test_requests_without_pictures_are_left_alone() -> None:
    async def original(self: Any, image_data: Any, **more: Any) -> str:
        return "as it was"

    assert asyncio.run(resident.process(original, None, image_data=None, input_text="x")) == "as it was"


def test_the_tower_gets_pixels_for_every_picture_and_the_items_get_theirs_back(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(resident, "_count", counted.append)
    carried = [torch.zeros(1, 1), torch.zeros(1, 1)]
    items = [Item(feature) for feature in carried]
    tower = type("Model", (), {"visual": torch.nn.Linear(1, 1)})()

    def original(self: Any, given: list[Item]) -> list[tuple[int, ...]]:
        return [tuple(item.feature.shape) for item in given]

    assert resident.features(original, tower, items) == [(24, 1176), (24, 1176)]
    assert counted == [48]
    assert [item.feature for item in items] == carried
