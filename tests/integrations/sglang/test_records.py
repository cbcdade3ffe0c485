"""Notes ride in SGLang's abort messages, as text."""

from __future__ import annotations

import pytest

from coatcheck.errors import WireError
from coatcheck.integrations.sglang.records import Hello, Note, Opened, Settled, read_note, write_note


@pytest.mark.parametrize(
    "note", [Hello("[]", "ipc://x"), Opened("ipc://y"), Settled(("1", "2"), (("3", "why"),)), Settled()]
)
def test_notes_come_back_as_they_were(note: Note) -> None:
    assert read_note(write_note(note)) == note


@pytest.mark.parametrize("text", ["", "{}", "aborted", '["Returned","1",0]', '["Settled",["1"]'])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        read_note(text)
