"""Incremental text equals text decoded at once; a stop string cuts the same wherever the pieces are split."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from coatcheck.engine.http.text import Detokenizer, StopStrings, Vocabulary
from coatcheck.errors import ConfigError

relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module")
def vocabulary(model_dir: Path) -> Vocabulary:
    return Vocabulary(model_dir)


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model_dir / "tokenizer.json"))


def pieces(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(vocabulary)
    return [*[detokenizer.push([token]) for token in ids], detokenizer.finish()]


@relaxed
@given(text=st.text())
def test_any_text_comes_back(vocabulary: Vocabulary, tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert "".join(pieces(vocabulary, ids)) == tokenizer.decode(ids)


@relaxed
@given(data=st.data())
def test_any_tokens_decode_as_at_once(vocabulary: Vocabulary, tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also sequences that are no UTF-8, special tokens, and numbers beyond the vocabulary."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 5)))
    assert "".join(pieces(vocabulary, ids)) == tokenizer.decode(ids)


def test_never_half_a_character(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    text = "ä🎉红"
    assert "\ufffd" not in "".join(pieces(vocabulary, tokenizer.encode(text).ids))
    assert pieces(vocabulary, tokenizer.encode("🎉").ids[:-1])[-1] == "\ufffd"  # the answer ends inside it


def test_special_tokens_are_no_text(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    assert "".join(pieces(vocabulary, tokenizer.encode("a<|im_end|>b").ids)) == "ab"


def test_a_tokenizer_that_is_not_byte_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"decoder": {"type": "WordPiece"}}')
    with pytest.raises(ConfigError, match="byte-level"):
        Vocabulary(tmp_path)


def cut(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    matcher = StopStrings(stops)
    text = "".join(matcher.push(part) for part in parts)
    return text + matcher.finish(), matcher.stopped


alphabet = st.text("ab", max_size=30)


@given(stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4), parts=st.lists(alphabet))
def test_the_cut_does_not_depend_on_the_pieces(stops: list[str], parts: list[str]) -> None:
    whole = "".join(parts)
    text, stopped = cut(stops, parts)
    assert (text, stopped) == cut(stops, list(whole))
    assert stopped == any(stop in whole for stop in stops)
    assert whole.startswith(text)
    assert not any(stop in text for stop in stops)
    if not stopped:
        assert text == whole


@given(stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4), parts=st.lists(alphabet))
def test_nothing_is_held_back_that_cannot_become_a_stop_string(stops: list[str], parts: list[str]) -> None:
    matcher = StopStrings(stops)
    emitted = "".join(matcher.push(part) for part in parts)
    if not matcher.stopped:
        held = "".join(parts)[len(emitted) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_comes_after_a_stop_string() -> None:
    matcher = StopStrings(["END"])
    assert [matcher.push(part) for part in ("a E", "ND b", "c")] == ["a ", "", ""]
    assert matcher.finish() == ""
