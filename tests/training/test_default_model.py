"""The shipped directory: small, loadable, and right about a few held-out questions."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from PIL import Image

from training.evaluate import DEFAULT_MODEL, Generator, Sample, evaluate, held_out, held_out_form, table
from training.questions import CHAT

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore")]
FILES = {
    "README.md",
    "__init__.py",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
    "vocab.json",
}


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    """The shipped model behind transformers' generate()."""
    yield Generator(DEFAULT_MODEL)


def test_the_directory_is_complete_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in DEFAULT_MODEL.iterdir()}
    assert set(sizes) == FILES
    assert sum(sizes.values()) <= 10_000_000


def test_its_files_are_what_the_scripts_write(tmp_path_factory: pytest.TempPathFactory) -> None:
    """All but the weights, the card and the record of the run."""
    from training.model_config import save_json
    from training.tokenizer import build_tokenizer, save_tokenizer

    directory = tmp_path_factory.mktemp("written")
    save_json(directory)
    save_tokenizer(build_tokenizer(), directory)
    for path in directory.iterdir():
        assert path.read_bytes() == (DEFAULT_MODEL / path.name).read_bytes(), path.name
    assert json.loads((DEFAULT_MODEL / "training.json").read_text())["parameters"] < 2_500_000


def test_held_out_questions(generator: Generator) -> None:
    result = evaluate(held_out(42, seed=77), generator)
    right, asked = result["overall"]["all"]
    assert asked == 42
    assert right >= 0.9 * asked, table(result) + str(result["wrong"])


@pytest.mark.parametrize("form", ["two-images", "text-first", "system", "second-turn", "chat"])
def test_other_forms(generator: Generator, form: str) -> None:
    result = evaluate(held_out_form(form, 10, seed=78), generator)
    assert result["overall"]["all"][0] >= 7, result["wrong"]


def test_small_talk_and_tiny_images(generator: Generator) -> None:
    samples = [Sample((), text, answer, "chat", "chat") for text, answer in CHAT.items()]
    assert evaluate(samples, generator)["wrong"] == []
    for size in ((28, 28), (1, 1), (30, 200)):
        (answer,) = generator([Sample((Image.new("RGB", size, (240, 240, 240)),), "Describe the image.", "", "", "")])
        assert isinstance(answer, str)


def test_a_large_image_has_37_by_37_tokens(generator: Generator) -> None:
    ids, pixels = generator.prompt(Sample((Image.new("RGB", (1024, 1024)),), "Describe the image.", "", "", ""))
    assert pixels["image_grid_thw"].tolist() == [[1, 74, 74]]
    assert ids.count(generator.model.config.image_token_id) == 1369
