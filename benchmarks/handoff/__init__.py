"""``python -m benchmarks.handoff``: pixels handed to every rank, by us and by the peers' code.

From a tensor in the front end until every rank holds it.

A *team* is one front end and its ranks, all in one interpreter's environment: ours, or a peer's under ``.peers``
(``make peers``). ``member`` is what runs there; ``peers`` has a module for each environment, with one front end's and
one rank's side for each contender; ``meter`` is what they measure with, the same for all. Everything else runs in the
benchmark's own process: ``team`` starts and asks, ``rounds`` interleaves, ``summary`` makes figures of samples.
"""
