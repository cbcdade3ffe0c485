"""An answer of the ranks as pieces of text, up to its end or to a stop string."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from coatcheck.engine.http.detokenize import Detokenizer, StopStrings, Vocabulary
from coatcheck.engine.http.rank_link import Answer
from coatcheck.errors import Overloaded


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, perhaps "" (a character or a stop string is still open)."""

    text: str
    tokens: int  # generated up to here
    finish: Literal["stop", "length"] | None  # set on the last piece only


async def pieces(
    answer: Answer, vocabulary: Vocabulary, stops: Sequence[str], gap: Callable[[float], None]
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
