"""The trainer's batched forward pass is the library's model on the processor's inputs and the template's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.batches import Row, Words
from training.checkpoint import new_model, published_name, save_model
from training.evaluate import load_processor
from training.network import Trainee, encode_images, patchify
from training.scenes import make_scene

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model with random weights, and the directory it was saved to."""
    model = new_model(3).eval()
    directory = tmp_path_factory.mktemp("model")
    save_model(model, directory, {"seed": 3})
    return model, directory


def test_patches_are_the_processors(saved: tuple[Any, Path]) -> None:
    processor = load_processor(saved[1])[1]
    image = make_scene(5, (252, 140)).image
    expected = processor(images=[image], return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, 10, 18]]
    both = expected["pixel_values"].view(-1, 3, 2, 14, 14)
    got = patchify(torch.from_numpy(np.asarray(image).copy())[None])[0]
    assert torch.equal(both[:, :, 0], both[:, :, 1])
    torch.testing.assert_close(got, both[:, :, 0].flatten(1), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(112, 112), (448, 448), (308, 196), (252, 476)])
@torch.no_grad()
def test_vision_is_the_librarys(saved: tuple[Any, Path], size: tuple[int, int]) -> None:
    model, directory = saved
    image = make_scene(6, size).image
    inputs = load_processor(directory)[1](images=[image], return_tensors="pt")
    expected = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output[0]
    got = encode_images(model.model.visual, torch.from_numpy(np.asarray(image).copy())[None])[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_are_the_librarys(saved: tuple[Any, Path]) -> None:
    """Two images of different sizes, a system message, two turns: tokens, positions and logits agree."""
    model, directory = saved
    tokenizer, processor = load_processor(directory)
    images = [make_scene(1, (140, 112)).image, make_scene(2, (168, 224)).image]
    pads = [{"type": "image"}, {"type": "image"}]
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [*pads, {"type": "text", "text": "Describe the first image."}]},
        {"role": "assistant", "content": "A red circle in the middle."},
        {"role": "user", "content": "How many images are there?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=images, return_tensors="pt")
    for count in (inputs["image_grid_thw"].prod(-1) // 4).tolist():
        text = text.replace("<|image_pad|>", "<|seen|>" * count, 1)
    ids = tokenizer(text.replace("<|seen|>", "<|image_pad|>"), return_tensors="pt")["input_ids"]
    expected = model(input_ids=ids, **inputs, mm_token_type_ids=(ids == model.config.image_token_id).int()).logits[0]

    words, row = Words(), Row()
    row.text(words.turn("system", "Answer briefly."))
    row.text([tokenizer.convert_tokens_to_ids("<|im_start|>"), *words("user\n")])
    row.image((4, 5))
    row.image((8, 6))
    row.segment = 1
    end, start = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|im_start|>"))
    row.text([*words("Describe the first image."), end, *words("\n"), start, *words("assistant\n")])
    row.answer(words("A red circle in the middle."), "describe")
    row.text([*words("\n"), start, *words("user\n"), *words("How many images are there?"), end, *words("\n")])
    row.text([start, *words("assistant\n")])
    assert row.ids == ids[0].tolist()
    n = len(row.ids)
    batch = {
        "ids": torch.tensor([row.ids]),
        "images": [torch.from_numpy(np.asarray(i).copy())[None] for i in images],
        "starts": row.starts,
        "positions": torch.tensor(row.positions).T[None],
        "segments": torch.tensor([row.segments]),
        "sees_prefix": torch.tensor([row.sees_prefix]),
        "where": torch.arange(n),
    }
    got = Trainee(model)(batch)["next"]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_saved_weights_load_back_unchanged(saved: tuple[Any, Path]) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration as Library

    library: Any = Library
    model, directory = saved
    loaded, info = library.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for (name, one), two in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert published_name("model.visual.blocks.0.norm1.weight") == "visual.blocks.0.norm1.weight"
    assert published_name("model.language_model.norm.weight") == "model.norm.weight"
