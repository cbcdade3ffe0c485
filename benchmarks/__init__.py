"""Measurements of the whole server, run by hand: ``python -m benchmarks.NAME --help``."""
