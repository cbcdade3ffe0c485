"""What ``coatcheck bench serve --json`` writes: schema 1. Every sample stands beside the figures made of it."""

from __future__ import annotations

from typing import Any

import msgspec


class Tail(msgspec.Struct, frozen=True):
    """Over all samples of the window."""

    p50: float
    p99: float


class Peak(msgspec.Struct, frozen=True):
    """Over all samples of the window."""

    p50: float
    p99: float
    max: float


class Run(msgspec.Struct, frozen=True):
    """One window on one server. Rates count a request by its share in the window. A block without a sample is None.

    ``samples``: lists of numbers, in milliseconds. Of image requests that were answered in full ``sent_ms`` (since the
    window's start, so that it may be negative), ``latency_ms``, ``ttft_ms`` (None: no text came) and ``tokens``, by
    request. ``text_gap_ms``, ``probe_ms`` and ``health_ms``, each with ``..._at_ms``: when the gap ended or the
    request was sent, since the window's start.
    """

    contender: str
    round: int  # from 1
    tp: int | None  # tensor-parallel ranks of the server, if the caller knows
    clients: int
    images: int  # per request
    side: int  # pixels: the longer one
    output_tokens: int  # asked for
    requests_per_s: float
    latency_ms: Tail | None  # from sent to the answer's end
    ttft_ms: Tail | None  # from sent to the first text
    text_gap_ms: Peak | None  # between texts of a text stream that follow each other
    probe_ms: Peak | None
    health_ms: Peak | None
    errors: dict[str, int]  # by reason; of what is no image request, what it was stands before it
    tokens_expected: int  # of image requests that were answered in full
    tokens_received: int
    samples: dict[str, list[float | None]]
    extra: dict[str, Any] = {}  # of this client, see docs/serve.md; a caller may add its own


class Report(msgspec.Struct, frozen=True):
    """The file."""

    schema: int
    environment: dict[str, Any]
    options: dict[str, Any]
    runs: list[Run]
