"""What is kept, what makes room for it, and a rank that lacks what a plan speaks of."""

from __future__ import annotations

import pytest
import torch

from coatcheck.engine.model.embedding_book import EmbeddingBook
from coatcheck.engine.model.embedding_cache import EmbeddingCache
from coatcheck.errors import RanksDisagree

A, B, C = (bytes([letter]) * 32 for letter in b"abc")


def kept(book: EmbeddingBook, *digests: bytes, tokens: int = 2) -> None:
    """Each kept and proven, one plan each."""
    for digest in digests:
        name = f"of {digest!r}"
        assert book.keep(name, digest, tokens)
        book.close_plan()
        book.prove(name)


def test_the_least_recently_used_makes_room_and_no_more_than_needed() -> None:
    book = EmbeddingBook(60, 10)
    kept(book, A, B, C)
    assert book.take("r", A)
    book.close_plan()
    assert book.keep("r", b"d" * 32, 1)
    assert book.close_plan() == (B,)
    assert book.keep("r", b"e" * 32, 1)
    assert book.close_plan() == ()


def test_what_a_plan_takes_it_does_not_evict() -> None:
    book = EmbeddingBook(40, 10)
    kept(book, A, B)
    assert book.take("r", A)
    assert not book.keep("r", C, 3), "room for it only without what this plan takes"
    assert book.close_plan() == (), "evicted in vain"
    assert book.keep("r", C, 3)
    assert set(book.close_plan()) == {A, B}


def test_what_is_larger_than_the_bound_or_nobodys_is_not_kept() -> None:
    book = EmbeddingBook(40, 10)
    kept(book, A)
    assert not book.keep("r", B, 5)
    assert not book.keep("r", b"", 1)
    assert not book.take("r", b"")
    assert book.close_plan() == ()
    assert not EmbeddingBook(0, 10).keep("r", A, 1)


def test_only_the_request_that_encodes_takes_it_before_its_first_token() -> None:
    book = EmbeddingBook(40, 10)
    assert book.keep("first", A, 2)
    assert book.take("first", A), "the same picture twice in one request"
    assert not book.take("second", A)
    assert not book.keep("second", A, 2)
    book.prove("second")
    assert not book.take("third", A)
    book.prove("first")
    assert book.take("third", A)


def test_the_end_before_the_first_token_evicts_and_the_end_after_it_does_not() -> None:
    book = EmbeddingBook(80, 10)
    kept(book, A)
    book.end(f"of {A!r}")
    assert book.keep("r", B, 2)
    assert book.close_plan() == ()
    book.end("r")
    assert book.close_plan() == (B,)
    assert book.take("s", A)
    book.distrust(f"of {A!r}")
    assert book.close_plan() == (A,)


def test_a_rank_that_lacks_what_a_plan_speaks_of_says_so() -> None:
    cache = EmbeddingCache(3)
    with pytest.raises(RanksDisagree, match="rank 3 has no embeddings 6161"):
        cache.take(A)
    with pytest.raises(RanksDisagree, match="rank 3 has no embeddings 6161"):
        cache.evict([A])
    cache.keep(A, torch.zeros(2, 3))
    with pytest.raises(RanksDisagree, match="that it has"):
        cache.keep(A, torch.zeros(2, 3))
    assert cache.statistics().nbytes == 24
