"""Bodies of POST /v1/chat/completions, in pieces, so that a picture's bytes are not copied."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import msgspec

from coatcheck.bench.serve.clips import Clips
from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.pictures import Pictures

ABOUT_PICTURE = "Describe the image."  # of a video too: the default model knows no other question
PROBE_TOKENS = 8
TEXT_TOKENS = 1024  # of a text stream's answer, if the server honours ignore_eos

Body = Sequence[bytes]


class Target(msgspec.Struct, frozen=True):
    """A server, as it was found: see :mod:`coatcheck.bench.serve.target`."""

    root: str  # without /v1 and without a slash at its end
    model: str
    fields: dict[str, Any]  # beyond OpenAI's own, and those which some servers refuse: what this one accepts
    health: bool  # it has GET /health
    idle_s: float  # what a probe took before any load


class Bodies:
    """Of image requests: each has pictures of its own, or a video. Text alone where the load has neither."""

    def __init__(self, load: Load, first: int = 0) -> None:
        """``first``: which of one's own pictures comes first."""
        self._load = load
        self._clips = Clips(load.video, load.seed) if load.video else None
        self._pictures = None
        if load.images and not load.video:
            self._pictures = Pictures(load.seed, load.size, load.image_format, load.directory, first)

    @property
    def taken(self) -> int:
        """Pictures or videos used so far."""
        return sum(of.taken for of in (self._clips, self._pictures) if of is not None)

    @property
    def repeated(self) -> int:
        """Of these, how many had been used before."""
        return sum(of.repeated for of in (self._clips, self._pictures) if of is not None)

    def next(self, target: Target) -> Body:
        """The next request."""
        parts: list[bytes] = []
        if self._clips is not None:
            parts += _part(
                "video_url", [f"data:{self._clips.kind};base64,".encode(), base64.b64encode(self._clips.next())]
            )
        if self._pictures is not None:
            for _ in range(self._load.images):
                parts += _part("image_url", self._pictures.next().url())
        if not parts:
            return text_body(target, self._load.output_tokens)
        question = json.dumps({"type": "text", "text": ABOUT_PICTURE}).encode()
        return _around([b"[", *parts, question, b"]"], target, self._load.output_tokens)


_counted = itertools.count()


def text_body(target: Target, tokens: int) -> Body:
    """A short question that no server has been asked before, so that no cache answers."""
    text = f"{os.urandom(4).hex()} {next(_counted)}: tell me a long story."
    return _around([json.dumps(text).encode()], target, tokens)


def _part(kind: str, url: Sequence[bytes]) -> list[bytes]:
    return [f'{{"type":"{kind}","{kind}":{{"url":"'.encode(), *url, b'"}},']


def _around(content: Sequence[bytes], target: Target, tokens: int) -> Body:
    settings = {"model": target.model, "max_tokens": tokens, "temperature": 0, "stream": True, **target.fields}
    head = json.dumps(settings).encode().removesuffix(b"}")
    return [head, b', "messages":[{"role":"user","content":', *content, b"}]}"]
