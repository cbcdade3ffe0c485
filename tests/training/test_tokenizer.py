"""The tokenizer encodes any text, loads as Qwen2's, and the chat template writes Qwen2.5-VL's format."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.model_config import save_json
from training.questions import CHAT
from training.tokenizer import SPECIAL_IDS, VOCAB_SIZE, build_tokenizer, save_tokenizer

TOKENIZER = build_tokenizer()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The saved tokenizer through AutoTokenizer."""
    from transformers import AutoTokenizer

    directory: Path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(TOKENIZER, directory)
    save_json(directory)
    return AutoTokenizer.from_pretrained(directory)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    """Up to NFC, which Qwen2's tokenizer applies."""
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert all(0 <= k < VOCAB_SIZE for k in ids)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_it_is_the_same_every_time() -> None:
    assert build_tokenizer().to_str() == TOKENIZER.to_str()
    assert TOKENIZER.get_vocab_size() == VOCAB_SIZE


def test_auto_tokenizer_agrees(loaded: Any) -> None:
    assert len(loaded) == VOCAB_SIZE
    assert loaded.eos_token == "<|im_end|>" and loaded.pad_token == "<|endoftext|>"
    for text in [*CHAT, "naïve 日本語 🎉\n\n\t  x 12345", "What color is the star?", "a<|im_end|>b"]:
        ids = loaded.encode(text)
        assert ids == TOKENIZER.encode(text).ids
        assert loaded.decode(ids) == text
    assert loaded.decode([SPECIAL_IDS["<|im_end|>"]], skip_special_tokens=True) == ""
    assert {t: loaded.convert_tokens_to_ids(t) for t in SPECIAL_IDS} == SPECIAL_IDS


def test_common_words_are_one_token() -> None:
    for text in ("What color is the circle?", "A red circle at the top left, an orange star in the middle."):
        assert len(TOKENIZER.encode(text).ids) == len(text.replace(",", " ,").replace(".", " .").split()) + (
            "?" in text
        )


def test_chat_template(loaded: Any) -> None:
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    messages = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look: "},
                {"type": "image_url", "image_url": {"url": "data:"}},
                {"type": "image"},
                {"type": "text", "text": "Describe the image."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "Thanks!"},
    ]
    expected = (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        f"<|im_start|>user\nLook: {image}{image}Describe the image.<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nThanks!<|im_end|>\n"
    )
    assert loaded.apply_chat_template(messages, tokenize=False) == expected
    prompt = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == expected + "<|im_start|>assistant\n"


def test_configuration_has_both_layouts(tmp_path: Path) -> None:
    save_json(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config["text_config"]
    for key in ("hidden_size", "num_hidden_layers", "rope_theta", "rope_scaling", "vocab_size"):
        assert config[key] == text[key]
    assert sum(config["rope_scaling"]["mrope_section"]) * 2 == text["hidden_size"] // text["num_attention_heads"]
    assert config["rope_scaling"]["type"] == "mrope" and config["rope_scaling"]["rope_type"] == "default"
    for ranks in (1, 2, 4):
        for width in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
            assert text[width] % ranks == 0
