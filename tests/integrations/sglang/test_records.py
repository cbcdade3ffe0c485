"""The note that rides in one of SGLang's abort messages, and the claim that it pickles in place of inputs."""

from __future__ import annotations

import copy
import pickle

import pytest

from coatcheck.errors import WireError
from coatcheck.integrations.sglang.records import Claim, Hello, read_note, write_note


def test_the_note_comes_back_as_it_was() -> None:
    note = Hello("[]", "ipc://x")
    assert read_note(write_note(note)) == note


@pytest.mark.parametrize("text", ["", "{}", "aborted", '["Returned","1",0]', '["Hello","[]"]'])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        read_note(text)


@pytest.mark.parametrize("claim", [Claim("7"), Claim("", "why")])
def test_a_claim_travels_as_a_pickle_and_has_no_items(claim: Claim) -> None:
    made = pickle.loads(pickle.dumps(claim))
    assert type(made) is Claim
    assert made == claim == copy.copy(claim)
    assert made  # SGLang looks at the items of what is true
    assert [*made.mm_items] == []
