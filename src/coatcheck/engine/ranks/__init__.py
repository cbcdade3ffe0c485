"""One process per GPU (or CPU share), all executing the same plans. See :mod:`coatcheck.engine.ranks.loop`."""
