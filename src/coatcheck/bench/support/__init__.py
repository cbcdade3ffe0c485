"""What ``bench engine``, ``bench serve`` and the repository's benchmarks share."""
