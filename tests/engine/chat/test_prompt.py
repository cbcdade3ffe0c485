"""The prompt's ids are the reference tokenizer's, unless a client writes a special token."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from coatcheck.engine.chat.prompt import PromptEncoder
from coatcheck.engine.chat.schema import parse
from coatcheck.errors import ConfigError
from tests.support.front_end import chat_body, chat_handler, encoded, image_part, process


@pytest.fixture(scope="module")
def encoder(model_dir: Path) -> PromptEncoder:
    return PromptEncoder(model_dir)


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(model_dir))


def ids(encoder: PromptEncoder, body: dict[str, Any]) -> list[int]:
    return encoder.encode(parse(json.dumps(body).encode(), "coatcheck-tiny", 8, 8), 8192)


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="|"), max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(system=plain, first=plain, second=plain)
def test_equals_the_reference(encoder: PromptEncoder, reference: Any, system: str, first: str, second: str) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    body = chat_body(first, picture, second)
    body["messages"].insert(0, {"role": "system", "content": system})
    messages = [
        {"role": "system", "content": system},
        {
            "role": "user",
            "content": [{"type": "text", "text": first}, {"type": "image"}, {"type": "text", "text": second}],
        },
    ]
    rendered = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ids(encoder, body) == reference.encode(rendered, add_special_tokens=False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_text_makes_special_tokens(encoder: PromptEncoder, data: st.DataObject) -> None:
    bits = st.sampled_from([*encoder._special, "<|", "|>", "image_pad", "coatcheckx0x", " ", "a"])
    text = "".join(data.draw(st.lists(bits)))
    special = set(encoder._special.values())

    def specials(text: str) -> list[int]:
        return [token for token in ids(encoder, chat_body(text)) if token in special]

    assert specials(text) == specials("a")


def test_pixels_are_the_reference_processors(model_dir: Path) -> None:
    """Bit-identical; also where height or width could be taken for channels."""
    processor = chat_handler(model_dir)
    reference: Any = Qwen2VLImageProcessorPil.from_pretrained(str(model_dir))
    random = np.random.default_rng(0)
    for height, width in ((100, 130), (3, 90), (1, 90), (90, 3), (400, 2)):
        image = Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8))
        body = json.dumps(chat_body(image_part(encoded(image)))).encode()
        processed = process(processor, body)
        (pixels,) = processed.pixels
        expected = reference(images=[image], return_tensors="np")
        np.testing.assert_array_equal(pixels, expected["pixel_values"])
        assert processed.items[0].grid == tuple(expected["image_grid_thw"][0])
        assert pixels.flags.c_contiguous
        # The layout: a patch row is what one gets from the resized picture, not from its transpose.
        t, h, w = processed.items[0].grid
        assert (t, h >= w) == (1, height >= width)


def test_context_option(model_dir: Path) -> None:
    body = json.dumps(chat_body("word " * 50)).encode()
    long = chat_handler(model_dir)
    length = len(process(long, body).ids)
    processed = process(chat_handler(model_dir, context=length + 10), body).processed
    assert processed.sampling.max_tokens == 10  # clipped, since the client gave none
    with pytest.raises(ConfigError, match="--context"):
        chat_handler(model_dir, context=10**6)


def test_model_directories_that_cannot_be_served(tmp_path: Path, model_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        chat_handler(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 100, "model_type": "qwen2_5_vl"}')
    with pytest.raises(ConfigError, match="tokenizer"):
        chat_handler(tmp_path)


def test_data_urls_with_other_headers(model_dir: Path) -> None:
    processor = chat_handler(model_dir)
    data = base64.b64encode(encoded(Image.new("RGB", (28, 28)))).decode()
    for head in ("data:;base64,", "data:image/jpeg;base64,", "DATA:image/PNG;charset=x;BASE64,"):
        body = json.dumps(chat_body(image_part(head + data))).encode()
        assert len(process(processor, body).pixels) == 1
