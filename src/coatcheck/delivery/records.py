"""The records of the delivery: what a rank says of a request."""

from __future__ import annotations

from coatcheck.wire import Record


class Ready(Record, frozen=True):
    """A rank has materialized a request's inputs (``error`` None) or failed to, now or later in its life."""

    request: str
    rank: int
    error: str | None = None


class Returned(Record, frozen=True):
    """The rank will never again read what the request's handles point at. Once for each request with handles."""

    request: str
    rank: int | None  # None: of all ranks, since the request never went out to them
