"""Measurements and checks, run by hand: ``python -m benchmarks.ROOM.NAME --help``; README.md lists them."""
