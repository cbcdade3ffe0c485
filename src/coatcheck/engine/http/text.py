"""Tokens of the ranks -> pieces of text: never half a character, never a special token, never past a stop string."""

from __future__ import annotations

import codecs
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

from coatcheck.engine.http.rank_link import TokenStream
from coatcheck.engine.model_files import read_json
from coatcheck.errors import ConfigError, Overloaded

log = logging.getLogger("coatcheck.frontend")


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (as in GPT-2's bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(rest)}


_BYTES = _byte_alphabet()


class Vocabulary:
    """The bytes of each token of a byte-level BPE tokenizer, from ``tokenizer.json`` alone: torch stays out."""

    def __init__(self, model_dir: Path) -> None:
        """Raises ConfigError if there is no byte-level tokenizer."""
        path = model_dir / "tokenizer.json"
        decoder = read_json(path, required=True).get("decoder") or {}
        if decoder.get("type") != "ByteLevel":
            raise ConfigError(f"--model: {path} is not a byte-level tokenizer; only those are supported")
        self._tokenizer = Tokenizer.from_file(str(path))
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {number for number, token in added.items() if token.special}
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """b"" for special tokens and for numbers that are no token (models pad their vocabulary)."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> bytes:
        text = None if token in self._special else self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        try:
            return bytes([_BYTES[character] for character in text])
        except KeyError:  # an added token, stored as plain text
            return text.encode()


class Detokenizer:
    """One answer's text. The pieces joined equal the decoding of all tokens at once."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, tokens: Iterable[int]) -> str:
        """The text that is complete now; bytes of an unfinished character are kept back."""
        return self._decoder.decode(b"".join(map(self._vocabulary.bytes_of, tokens)))

    def finish(self) -> str:
        """What is left: "" or one U+FFFD for a character that was never finished."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Cuts text before the stop string that is complete first; of two that are, before the one that began first.

    The result does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Text that is safe to emit; sets ``stopped`` when a stop string is complete. Nothing is emitted after that."""
        if self.stopped:
            return ""
        text = self._held + text
        self._held = ""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        held = self._possible(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back; the text ended without completing a stop string."""
        held, self._held = self._held, ""
        return "" if self.stopped else held

    def _possible(self, text: str) -> int:
        """Length of the longest end of ``text`` that could become a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, perhaps "" (a character or a stop string is still open)."""

    text: str
    tokens: int  # generated up to here
    finish: Literal["stop", "length"] | None  # set on the last piece only


async def pieces(
    answer: TokenStream, vocabulary: Vocabulary, stops: Sequence[str], gap: Callable[[float], None]
) -> AsyncGenerator[Piece, None]:
    """One piece per message of the ranks. Leaving early, or a stop string, aborts the request on the ranks.

    ``gap`` is told the seconds between one message and the next.

    Raises what ``answer`` raises, and Overloaded if the ranks ended the request because they shut down.
    """
    detokenizer, matcher, count = Detokenizer(vocabulary), StopStrings(stops), 0
    heard: float | None = None
    async with aclosing(answer):
        async for word in answer:
            if word.finish == "abort":
                raise Overloaded("The server ended this request because it shuts down")
            before, heard = heard, time.monotonic()
            if before is not None:
                gap(heard - before)
            count += len(word.tokens)
            text = detokenizer.push(word.tokens)
            if word.finish is not None:
                text += detokenizer.finish()
            text = matcher.push(text)
            if matcher.stopped:
                yield Piece(text, count, "stop")
                return
            if word.finish is not None:
                text += matcher.finish()
            yield Piece(text, count, word.finish)
